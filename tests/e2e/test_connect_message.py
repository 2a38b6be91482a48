"""The contract, section 1: the upgrade, the connect message with each of its fields, and what waits behind it."""
from __future__ import annotations

import asyncio
import base64
import json
import os

import pytest

from harness.client import KEY, Client, connect_frame
from harness import frames
from harness.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_payload, frame, masked
from harness.process import key_entry


async def refused(world, message, contains: str, code: str = "invalid_connect_message", **options):
    """This message gets the error, naming `contains`."""
    gateway = await world.gateway(**options)
    client = await world.client(gateway)
    await client.connect(message)
    got = await client.expect_error(code, 1008, contains=contains)
    if code == "invalid_connect_message":
        assert got["message"].startswith("Invalid connect message: "), got
    return got


def with_target(target, **fields) -> dict:
    return {"apiKey": KEY, "url": target.url("/"), **fields}


async def dialled(world, gateway, target, message, headers: dict | None = None):
    """Sends this message and gives the target's connection, request read, after "connected" has come."""
    client = await world.client(gateway, headers)
    await client.connect(message)
    connection = await (await target.accept()).open()
    await client.expect_connected()
    return connection


# --- the upgrade ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/ws", "/ws/", "/ws?other=1"])
async def test_upgrade_is_accepted_at_once(world, path):
    """1.1: The gateway accepts the WebSocket upgrade at once (no authentication at upgrade); `/ws/` is the same."""
    gateway = await world.gateway()
    await world.client(gateway, path=path)


async def test_upgrade_selects_no_extension_and_no_subprotocol(world):
    """1.1: It selects no extension and no subprotocol."""
    gateway = await world.gateway()
    client = await world.tcp(gateway)
    head = await client.upgrade(headers={"Sec-WebSocket-Protocol": "chat, superchat", "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"})
    assert "sec-websocket-protocol" not in head.lower() and "sec-websocket-extensions" not in head.lower(), head


async def test_upgrade_with_browser_spellings(world):
    """RFC 6455 4.2.1: `Connection: keep-alive, Upgrade` and tokens in any case."""
    gateway = await world.gateway()
    await world.client(gateway, {"Connection": "keep-alive, Upgrade", "Upgrade": "WebSocket"})


# --- how the message may arrive -------------------------------------------------------------------------------------
@pytest.mark.parametrize("cuts", [1, 2, 7])
async def test_fragmented_connect_message(world, cuts):
    """1.2: may be fragmented; control frames stand between the fragments."""
    gateway, target = await world.gateway(), world.target()
    client = await world.client(gateway)
    body = json.dumps(with_target(target)).encode()
    at = [len(body) * i // (cuts + 1) for i in range(cuts + 2)]
    pieces = [body[a:b] for a, b in zip(at, at[1:])]
    for number, piece in enumerate(pieces):
        await client.send_frame(TEXT if number == 0 else CONTINUATION, piece, fin=number == len(pieces) - 1)
        if number < len(pieces) - 1:
            await client.send_frame(PING, b"between")
            await client.expect_frame(PONG, b"between")
    await (await target.accept()).open()
    await client.expect_connected()


async def test_connect_message_with_empty_fragments(world):
    """1.2: may be fragmented, empty fragments too."""
    gateway, target = await world.gateway(), world.target()
    client = await world.client(gateway)
    body = json.dumps(with_target(target)).encode()
    await client.send(masked(TEXT, b"", fin=False) + masked(CONTINUATION, body, fin=False) + masked(CONTINUATION, b""))
    await (await target.accept()).open()
    await client.expect_connected()


async def test_connect_message_byte_by_byte(world):
    """1.2: may arrive byte by byte."""
    gateway, target = await world.gateway(), world.target()
    client = await world.client(gateway)
    await client.send_slices(connect_frame(with_target(target)))
    await (await target.accept()).open()
    await client.expect_connected()


async def test_connect_message_and_frames_in_one_segment_with_the_upgrade(world):
    """1.2: A client may send further frames right behind it without waiting: they reach the target, in order, none lost."""
    gateway, target = await world.gateway(), world.target()
    client = await world.tcp(gateway)
    behind = masked(TEXT, b"one") + masked(PING, b"two") + masked(BINARY, b"three" * 100)
    await client.upgrade(behind=connect_frame(with_target(target)) + behind)
    connection = await (await target.accept()).open()
    await client.expect_connected()
    await connection.expect_raw(behind)


async def test_message_of_64_kib_is_taken(world):
    """A message over 64 KiB is an error; one of exactly 64 KiB is not."""
    gateway, target = await world.gateway(), world.target()
    message = json.dumps(with_target(target, pad=""))
    message = json.dumps(with_target(target, pad="x" * (65536 - len(message))))
    assert len(message) == 65536
    await dialled(world, gateway, target, message)


@pytest.mark.parametrize("fragmented", [False, True])
async def test_message_over_64_kib(world, fragmented):
    """a message over 64 KiB: `invalid_connect_message`"""
    gateway = await world.gateway()
    client = await world.client(gateway)
    body = json.dumps({"apiKey": KEY, "url": "ws://127.0.0.1:1/", "pad": "x" * 65536}).encode()
    if fragmented:
        await client.send(b"".join(masked(TEXT if at == 0 else CONTINUATION, body[at : at + 1000], fin=at + 1000 >= len(body)) for at in range(0, len(body), 1000)))
    else:
        await client.connect(body)
    await client.expect_error("invalid_connect_message", 1008)


async def test_announced_message_of_many_gib_is_refused_without_waiting(world):
    """a message over 64 KiB: the header alone says so, and no memory is taken for what it announces."""
    gateway = await world.gateway()
    client = await world.client(gateway)
    before = gateway.rss()
    await client.send(frames.header(TEXT, 1 << 40, mask=b"abcd") + b"{" * 1000)
    got = await client.read_json(5)
    assert got["code"] == "invalid_connect_message", got
    await client.expect_close(1008)
    assert gateway.rss() - before < 2 << 20


# --- what is no usable message --------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["", "hello", "{", '{"apiKey":"test-key",}', "[]", '"text"', "null", "17", '{"apiKey":"test-key"} {}', "{'apiKey':'test-key'}"])
async def test_broken_json(world, text):
    """broken JSON, or JSON that is no object: `invalid_connect_message`"""
    await refused(world, text, "")


async def test_binary_message(world):
    """a binary message: `invalid_connect_message`"""
    gateway = await world.gateway()
    client = await world.client(gateway)
    await client.send_frame(BINARY, json.dumps({"apiKey": KEY, "url": "ws://127.0.0.1:1/"}).encode())
    await client.expect_error("invalid_connect_message", 1008)


async def test_not_utf8(world):
    """not UTF-8: `invalid_connect_message`"""
    await refused(world, b'{"apiKey":"test-key","url":"ws://127.0.0.1:1/\xff"}', "")


# --- apiKey / key ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fields, headers",
    [
        ({"apiKey": KEY}, None),
        ({"key": KEY}, None),
        ({"apiKey": KEY, "key": "wrong"}, None),
        ({"key": "wrong", "apiKey": KEY}, None),
        ({"apiKey": None, "key": KEY}, None),
        ({}, {"X-API-Key": KEY}),
        ({"apiKey": None, "key": None}, {"X-API-Key": KEY}),
        ({"apiKey": KEY}, {"X-API-Key": "wrong"}),
        ({}, {"x-api-key": KEY}),
    ],
)
async def test_key_is_found(world, fields, headers):
    """if both: `apiKey`. The request header `X-API-Key` at the upgrade serves where both are absent or `null`"""
    gateway, target = await world.gateway(), world.target()
    connection = await dialled(world, gateway, target, {"url": target.url("/"), **fields}, headers)
    assert KEY.encode() not in connection.head


@pytest.mark.parametrize(
    "fields, headers",
    [
        ({}, None),
        ({"apiKey": None}, None),
        ({"apiKey": ""}, None),
        ({"apiKey": "unknown"}, None),
        ({"key": "unknown"}, None),
        ({"apiKey": "unknown", "key": KEY}, None),
        ({"apiKey": "", "key": KEY}, None),
        ({"apiKey": "unknown"}, {"X-API-Key": KEY}),
        ({"apiKey": ""}, {"X-API-Key": KEY}),
        ({}, {"X-API-Key": "unknown"}),
        ({"apiKey": KEY + " "}, None),
        ({"apiKey": KEY.upper()}, None),
    ],
)
async def test_key_is_invalid(world, fields, headers):
    """A key that is missing, `null`, empty or unknown is `invalid_key`."""
    gateway = await world.gateway()
    client = await world.client(gateway, headers)
    await client.connect({"url": "ws://127.0.0.1:1/", **fields})
    await client.expect_error("invalid_key", 1008, "Invalid or missing API key")


async def test_key_that_expired(world):
    """key missing or unknown, revoked, expired: `Invalid or missing API key`"""
    gateway = await world.gateway(keys=[key_entry(KEY, expires="2020-01-01T00:00:00Z"), key_entry("later", expires="2999-01-01T00:00:00Z")])
    target = world.target()
    await world.refused(gateway, with_target(target), "invalid_key", 1008, "Invalid or missing API key")
    await dialled(world, gateway, target, {**with_target(target), "apiKey": "later"})


@pytest.mark.parametrize("field", ["apiKey", "key"])
@pytest.mark.parametrize("value", [1, True, [], {}, ["test-key"]])
async def test_key_of_a_wrong_type(world, field, value):
    """A wrong type (of `apiKey` too): `invalid_connect_message`, naming the field"""
    await refused(world, {"url": "ws://127.0.0.1:1/", field: value}, field)


async def test_key_is_checked_before_the_fields(world):
    """4: Order of the checks: JSON, key (known, not expired), fields"""
    await refused(world, {"apiKey": "unknown", "url": 7, "headers": []}, "Invalid or missing API key", code="invalid_key")


# --- url ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "url",
    [
        None, 7, [], {}, "", "example.com", "//example.com/", "/path", "http://127.0.0.1:1/", "https://127.0.0.1:1/", "ftp://127.0.0.1/", "ws:", "ws://",
        "ws:///path", "ws://:80/", "ws://127.0.0.1:99999/", "ws://127.0.0.1:port/", "ws://[::1/", "ws://[zz]/", "ws://127.0.0.1:1/#fragment", "ws://127.0.0.1:1/#",
        "ws://a b/", "ws://127.0.0.1:1/a b\r\nX: y",
    ],
)
async def test_url_is_wrong(world, url):
    """`url`: required, `ws://` or `wss://`, host name, IPv4 or `[IPv6]`, port, path, query; a fragment is an error"""
    await refused(world, {"apiKey": KEY, "url": url}, "url")


async def test_url_is_missing(world):
    """`url`: string, required"""
    await refused(world, {"apiKey": KEY}, "url")


@pytest.mark.parametrize(
    "rest, line",
    [
        ("", "GET / HTTP/1.1"),
        ("/", "GET / HTTP/1.1"),
        ("/stream/v1", "GET /stream/v1 HTTP/1.1"),
        ("/a?b=c&d=%20e%2F", "GET /a?b=c&d=%20e%2F HTTP/1.1"),
        ("?q=1", "GET /?q=1 HTTP/1.1"),
        ("/?", "GET /? HTTP/1.1"),
    ],
)
async def test_url_path_and_query(world, rest, line):
    """`url`: path and query reach the target as they are"""
    gateway, target = await world.gateway(), world.target()
    connection = await dialled(world, gateway, target, {"apiKey": KEY, "url": target.url(rest)})
    assert connection.request_line == line
    assert connection.header("Host") == f"127.0.0.1:{target.port}"


@pytest.mark.parametrize("scheme", ["ws", "WS", "Ws"])
async def test_url_scheme_in_any_case(world, scheme):
    """RFC 3986: a scheme is read in any case"""
    gateway, target = await world.gateway(), world.target()
    await dialled(world, gateway, target, {"apiKey": KEY, "url": target.url("/").replace("ws", scheme, 1)})


async def test_url_with_ipv6_host(world):
    """`url`: `[IPv6]`"""
    gateway, target = await world.gateway(), world.target("::1")
    connection = await dialled(world, gateway, target, {"apiKey": KEY, "url": target.url("/")})
    assert connection.header("Host") == f"[::1]:{target.port}"


async def test_url_with_host_name(world):
    """`url`: host name"""
    gateway, target = await world.gateway(), world.target()
    connection = await dialled(world, gateway, target, {"apiKey": KEY, "url": f"ws://localhost:{target.port}/"})
    assert connection.header("Host") == f"localhost:{target.port}"


@pytest.mark.parametrize("part, decoded", [("user:pass", "user:pass"), ("us%40er:p%3Aa%2Fss", "us@er:p:a/ss"), ("user", "user:"), ("user:", "user:"), (":pass", ":pass")])
async def test_url_credentials(world, part, decoded):
    """`user:pass@` becomes `Authorization: Basic`"""
    gateway, target = await world.gateway(), world.target()
    connection = await dialled(world, gateway, target, {"apiKey": KEY, "url": f"ws://{part}@127.0.0.1:{target.port}/"})
    assert connection.header("Authorization") == "Basic " + base64.b64encode(decoded.encode()).decode()
    assert connection.header("Host") == f"127.0.0.1:{target.port}"
    assert "@" not in connection.request_line


async def test_url_credentials_yield_to_headers(world):
    """`user:pass@` becomes `Authorization: Basic` unless given in `headers`"""
    gateway, target = await world.gateway(), world.target()
    connection = await dialled(world, gateway, target, {"apiKey": KEY, "url": f"ws://user:pass@127.0.0.1:{target.port}/", "headers": {"authorization": "Bearer token"}})
    assert connection.header("Authorization") == "Bearer token"


# --- headers --------------------------------------------------------------------------------------------------------
async def test_headers_are_sent_as_written(world):
    """`headers`: sent to the target with the upgrade, names as written"""
    gateway, target = await world.gateway(), world.target()
    given = {"X-Ünknown".replace("Ü", "U"): "1", "x-lower": "two words", "X-UPPER": "", "Origin": "https://example.com", "Accept-Language": "de,en;q=0.5"}
    connection = await dialled(world, gateway, target, with_target(target, headers=given))
    for name, value in given.items():
        assert any(line.partition(":")[0] == name and line.partition(":")[2].strip() == value for line in connection.header_lines), (name, connection.header_lines)


@pytest.mark.parametrize("name", ["Host", "Origin", "User-Agent", "Authorization", "Cookie"])
@pytest.mark.parametrize("spelling", [str, str.lower, str.upper])
async def test_headers_that_may_be_set(world, name, spelling):
    """`Host`, `Origin`, `User-Agent`, `Authorization`, `Cookie` may be set (one line each, never doubled)"""
    gateway, target = await world.gateway(), world.target()
    value = {"Host": "other.example.com", "Cookie": "a=1"}.get(name, "own value")
    connection = await dialled(world, gateway, target, with_target(target, headers={spelling(name): value}))
    assert connection.header(name) == value
    assert any(line.startswith(spelling(name) + ":") for line in connection.header_lines), connection.header_lines


async def test_headers_subprotocol_is_offered_and_reported(world):
    """`Sec-WebSocket-Protocol` may be set; 1.3: `subprotocol` is added when the target selected one."""
    gateway, target = await world.gateway(), world.target()
    client = await world.client(gateway)
    await client.connect(with_target(target, headers={"Sec-WebSocket-Protocol": "chat, superchat"}))
    connection = await target.accept()
    await connection.open("Sec-WebSocket-Protocol: superchat\r\n")
    assert connection.header("Sec-WebSocket-Protocol") == "chat, superchat"
    await client.expect_connected(subprotocol="superchat")


async def test_headers_subprotocol_that_the_target_does_not_select(world):
    """1.3: `subprotocol` is added when the target selected one, and only then."""
    gateway, target = await world.gateway(), world.target()
    await dialled(world, gateway, target, with_target(target, headers={"sec-websocket-protocol": "chat"}))


DROPPED = {
    "Connection": "keep-alive", "Upgrade": "h2c", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version": "8", "Sec-WebSocket-Extensions": "permessage-deflate",
    "Sec-WebSocket-Accept": "x", "Content-Length": "5", "Transfer-Encoding": "chunked", "TE": "trailers", "Trailer": "X", "Keep-Alive": "5", "Proxy-Authorization": "x", "Proxy-Connection": "x", "Proxy-Anything": "x",
}


@pytest.mark.parametrize("spelling", [str, str.lower, str.upper])
async def test_headers_of_the_handshake_are_dropped_in_silence(world, spelling):
    """what the handshake owns is dropped in silence"""
    gateway, target = await world.gateway(), world.target()
    connection = await dialled(world, gateway, target, with_target(target, headers={spelling(n): v for n, v in DROPPED.items()} | {"X-Kept": "1"}))
    own = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    for name in DROPPED:
        got = connection.header(name)
        if name.lower() in own:
            assert got.lower() == own[name.lower()], (name, got)
        elif name == "Sec-WebSocket-Key":
            assert got != DROPPED[name] and len(base64.b64decode(got)) == 16, got
        else:
            assert got is None, (name, got)
    assert connection.header("X-Kept") == "1"


@pytest.mark.parametrize("name, value", [("X", "a\rb"), ("X", "a\nb"), ("X", "a\r\nY: z"), ("X", "a\0b"), ("", "v"), ("a b", "v"), ("a:b", "v"), ("X\r\nY", "v"), ("X\0", "v"), ("Ünïcode", "v")])
async def test_headers_that_are_not_legal_http(world, name, value):
    """A name or value that is not legal HTTP (CR, LF, NUL, space in a name, empty name) is an error"""
    await refused(world, {"apiKey": KEY, "url": "ws://127.0.0.1:1/", "headers": {name: value}}, "headers")


@pytest.mark.parametrize("name", ["Connection", "sec-websocket-key", "Proxy-X"])
async def test_headers_that_are_dropped_anyway_may_be_illegal(world, name):
    """… is an error, unless it is dropped anyway"""
    gateway, target = await world.gateway(), world.target()
    connection = await dialled(world, gateway, target, with_target(target, headers={name: "a\r\nX-Smuggled: 1"}))
    assert b"Smuggled" not in connection.head


@pytest.mark.parametrize("field", ["headers", "cookies"])
@pytest.mark.parametrize("value", [[], "text", 7, True, {"a": 1}, {"a": None}, {"a": ["b"]}, {"a": {}}, {"a": True}])
async def test_objects_of_a_wrong_type(world, field, value):
    """object string→string; a wrong type: `invalid_connect_message`, naming the field"""
    await refused(world, {"apiKey": KEY, "url": "ws://127.0.0.1:1/", field: value}, field)


async def test_headers_given_twice(world):
    """of a name given twice the last counts, in `headers` also when only the case differs (in the place of the first)"""
    gateway, target = await world.gateway(), world.target()
    message = '{"apiKey":"%s","url":"%s","headers":{"X-A":"1","X-B":"2","x-a":"3","X-C":"4","X-C":"5"}}' % (KEY, target.url("/"))
    connection = await dialled(world, gateway, target, message)
    assert connection.header("X-A") == "3" and connection.header("X-C") == "5"
    own = [line.partition(":")[0].lower() for line in connection.header_lines if line.lower().startswith("x-")]
    assert own == ["x-a", "x-b", "x-c"], connection.header_lines


async def test_many_headers_keep_their_order(world):
    """headers are sent in the order of the object, more than 32 of them too"""
    gateway, target = await world.gateway(), world.target()
    given = {f"X-{i}": str(i) for i in range(60)}
    connection = await dialled(world, gateway, target, with_target(target, headers=given))
    assert [line for line in connection.header_lines if line.startswith("X-")] == [f"{n}: {v}" for n, v in given.items()]


# --- cookies --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "header, cookies, sent",
    [
        (None, {"a": "1"}, "a=1"),
        (None, {"a": "1", "b": "2"}, "a=1; b=2"),
        ("a=1; b=2", None, "a=1; b=2"),
        ("a=1; b=2", {"c": "3"}, "a=1; b=2; c=3"),
        ("a=1; b=2; c=3", {"d": "4", "b": "9"}, "a=1; b=9; c=3; d=4"),
        ("a=1", {}, "a=1"),
        (None, {}, None),
        (None, {"a": ""}, "a="),
        (None, {"a": "x=y"}, "a=x=y"),
    ],
)
async def test_cookies_are_merged(world, header, cookies, sent):
    """merged into one header, `a=1; b=2`: the header's first, then the object's, order kept; a name in both stands once, in the header's place with the object's value"""
    gateway, target = await world.gateway(), world.target()
    fields = {"cookies": cookies, **({"headers": {"Cookie": header}} if header else {})}
    connection = await dialled(world, gateway, target, with_target(target, **fields))
    assert connection.header("Cookie") == sent


async def test_many_cookies_keep_their_order(world):
    """order kept, with more than 32 too"""
    gateway, target = await world.gateway(), world.target()
    connection = await dialled(world, gateway, target, with_target(target, cookies={f"c{i}": str(i) for i in range(60)}))
    assert connection.header("Cookie") == "; ".join(f"c{i}={i}" for i in range(60))


async def test_cookies_given_twice(world):
    """of a name given twice the last counts"""
    gateway, target = await world.gateway(), world.target()
    connection = await dialled(world, gateway, target, '{"apiKey":"%s","url":"%s","cookies":{"a":"1","a":"2"}}' % (KEY, target.url("/")))
    assert connection.header("Cookie") == "a=2"


@pytest.mark.parametrize("name, value", [("a", "1; b=2"), ("a;b", "1"), ("a", "1\r\nX: y"), ("a\n", "1"), ("a", "\0"), ("a", "\x7f"), ("a=b", "1"), ("", "1")])
async def test_cookies_that_would_break_out(world, name, value):
    """a name or value that would break out of the header (`;`, control characters) is an error"""
    await refused(world, {"apiKey": KEY, "url": "ws://127.0.0.1:1/", "cookies": {name: value}}, "cookies")


# --- geo and agent --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fields",
    [
        {"geo": "DE"}, {"geo": "de"}, {"geo": "US,DE"}, {"geo": " us , de ,, "}, {"geo": ""}, {"geo": ","}, {"geo": " , , "}, {"geo": None},
        {"agent": "de1"}, {"agent": "DE1"}, {"agent": "at5, de1 ,us3"}, {"agent": ""}, {"agent": " ,"}, {"agent": None}, {"geo": "DE", "agent": "de1"}, {"geo": "", "agent": "de1"},
    ],
)
async def test_agent_matches(world, fields):
    """comma list; spaces, case and empty items ignored; none left is no restriction; with `geo`, the agent must match both"""
    gateway, target = await world.gateway(), world.target()
    await dialled(world, gateway, target, with_target(target, **fields))


@pytest.mark.parametrize("fields", [{"geo": "US"}, {"geo": "US,AT"}, {"geo": "DEU"}, {"geo": "D"}, {"geo": "D E"}, {"agent": "us1"}, {"agent": "de"}, {"agent": "de11"}, {"geo": "US", "agent": "de1"}, {"geo": "DE", "agent": "us1"}])
async def test_no_agent_matches(world, fields):
    """a code that no agent has matches none; no agent matches or is up: `No agent available`, 1011"""
    gateway = await world.gateway()
    await world.refused(gateway, {"apiKey": KEY, "url": "ws://127.0.0.1:1/", **fields}, "no_agent", 1011, "No agent available")


@pytest.mark.parametrize("field", ["geo", "agent"])
@pytest.mark.parametrize("value", [1, True, ["DE"], {}])
async def test_lists_of_a_wrong_type(world, field, value):
    """string; a wrong type: `invalid_connect_message`, naming the field"""
    await refused(world, {"apiKey": KEY, "url": "ws://127.0.0.1:1/", field: value}, field)


# --- idle_timeout and proxy -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", ["0", "0.0", "-0.0", "5", "2.5", "1e3", "1e300", "18446744073709551615", "18446744073709551616", "99999999999999999999999999999999", "null"])
async def test_idle_timeout_is_taken(world, value):
    """number ≥ 0, seconds; 0 or more than the clock can hold: none"""
    gateway, target = await world.gateway(), world.target()
    await dialled(world, gateway, target, '{"apiKey":"%s","url":"%s","idle_timeout":%s}' % (KEY, target.url("/"), value))


@pytest.mark.parametrize("value", ["-1", "-0.001", "1e999", "-1e999", '"5"', "true", "[]", "{}", "[5]"])
async def test_idle_timeout_is_wrong(world, value):
    """A wrong type, a number below 0 or not finite: `invalid_connect_message`, naming the field"""
    got = await refused(world, '{"apiKey":"%s","url":"ws://127.0.0.1:1/","idle_timeout":%s}' % (KEY, value), "")
    if "999" not in value:
        assert "idle_timeout" in got["message"], got


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "05", "+5", ".5", "5."])
async def test_idle_timeout_that_is_no_json(world, value):
    """broken JSON: `invalid_connect_message`"""
    await refused(world, '{"apiKey":"%s","url":"ws://127.0.0.1:1/","idle_timeout":%s}' % (KEY, value), "")


@pytest.mark.parametrize("value", ["https://user:s3cr3t@127.0.0.1", "socks4://user:s3cr3t@127.0.0.1", "user:s3cr3t@127.0.0.1:1080", "socks5://user:s3cr3t@127.0.0.1/path", "http://user:s3cr3t@127.0.0.1?query", "http://user:s3cr3t@127.0.0.1#fragment", "socks5://user:s3cr3t@127.0.0.1:0", "socks5://user:s3cr3t@", "socks5://user:" + "s3cr3t" * 43 + "@127.0.0.1", "", 7])
async def test_proxy_that_is_none(world, value):
    """`socks5://`, `socks5h://` or `http://`; a wrong type; the error names the field"""
    got = await refused(world, {"apiKey": KEY, "url": "ws://127.0.0.1:1/", "proxy": value}, "proxy")
    assert "s3cr3t" not in got["message"], "credentials never reach an error"


async def test_proxy_null_is_the_default(world):
    """`null` is the default"""
    gateway, target = await world.gateway(), world.target()
    await dialled(world, gateway, target, with_target(target, proxy=None))


# --- all fields -----------------------------------------------------------------------------------------------------
async def test_unknown_fields_are_ignored(world):
    """Unknown fields are ignored"""
    gateway, target = await world.gateway(), world.target()
    await dialled(world, gateway, target, with_target(target, type="connect", nested={"a": [1, {"b": None}]}, APIKEY="wrong", Url=7))


async def test_null_is_the_default(world):
    """`null` is the default"""
    gateway, target = await world.gateway(), world.target()
    await dialled(world, gateway, target, with_target(target, headers=None, cookies=None, geo=None, agent=None, idle_timeout=None))


async def test_a_field_given_twice(world):
    """of a name given twice the last counts"""
    gateway, target = await world.gateway(), world.target()
    await dialled(world, gateway, target, '{"apiKey":"wrong","url":7,"geo":"US","apiKey":"%s","url":"%s","geo":"DE","idle_timeout":-1,"idle_timeout":0}' % (KEY, target.url("/")))


async def test_escapes_in_names_and_values(world):
    """JSON as it is: escaped names and values, whitespace around"""
    gateway, target = await world.gateway(), world.target()
    message = ' \r\n\t{ "api\\u004bey" : "test\\u002dkey" ,"url":"%s", "headers":{"X-A":"\\u0041\\t\\"q\\""}} \n' % target.url("/").replace("/", "\\/")
    connection = await dialled(world, gateway, target, message)
    assert connection.header("X-A") == 'A\t"q"'


async def test_node_id_of_the_embedded_agent(world):
    """1.3: `node_id` is that of the agent that dialled; `/ws/docs` shows the gateway's"""
    gateway, target = await world.gateway(top={"node_id": "gateway-node"}, agent={"node_id": "agent-node"}), world.target()
    client = await world.client(gateway)
    await client.connect(with_target(target))
    await (await target.accept()).open()
    assert (await client.read_json())["node_id"] == "agent-node"
    docs = await world.tcp(gateway)
    await docs.send(b"GET /ws/docs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b'"node_id":"gateway-node"' in (await docs.read_to_end()).replace(b": ", b":")


# --- a strict endpoint before the message ---------------------------------------------------------------------------
async def test_ping_before_the_message_is_answered(world):
    """Before the connect message the gateway answers pings; pongs are ignored"""
    gateway, target = await world.gateway(), world.target()
    client = await world.client(gateway)
    await client.send(masked(PING, b"") + masked(PONG, b"unasked") + masked(PING, b"x" * 125))
    await client.expect_frame(PONG, b"")
    await client.expect_frame(PONG, b"x" * 125)
    await client.connect(with_target(target))
    await (await target.accept()).open()
    await client.expect_connected()


@pytest.mark.parametrize("code, reason", [(1000, "bye"), (1001, ""), (3000, "x"), (4999, "ü" * 61)])
async def test_close_before_the_message_is_answered(world, code, reason):
    """Before the connect message the gateway answers Close, as an ordinary endpoint"""
    gateway = await world.gateway()
    client = await world.client(gateway)
    await client.send_close(code, reason)
    await client.expect_close(code)
    await client.expect_end()


async def test_empty_close_before_the_message_is_answered(world):
    """… and a Close without a code gets one without a code, or 1000"""
    gateway = await world.gateway()
    client = await world.client(gateway)
    await client.send_close(None)
    got = await client.read_frame()
    assert got.opcode == CLOSE and got.close_code in (None, 1000), got
    await client.expect_end()


BROKEN = {
    "unmasked": frame(TEXT, b"{}"),
    "unmasked ping": frame(PING, b"{}"),
    "rsv1": masked(TEXT, b"{}", rsv=4),
    "rsv2": masked(TEXT, b"{}", rsv=2),
    "rsv3": masked(PING, b"{}", rsv=1),
    "reserved data opcode": masked(3, b"{}"),
    "reserved control opcode": masked(0xB, b"{}"),
    "continuation of nothing": masked(CONTINUATION, b"{}"),
    "text inside a message": masked(TEXT, b"{", fin=False) + masked(TEXT, b"}"),
    "fragmented ping": masked(PING, b"x", fin=False),
    "long ping": masked(PING, b"x" * 126),
    "16-bit form of a short length": masked(TEXT, b"{}", form=16),
    "64-bit form of a short length": masked(TEXT, b"{}" * 100, form=64),
    "top bit of the length": frames.header(TEXT, 1 << 63, mask=b"abcd"),
    "Close of one byte": masked(CLOSE, b"\x03"),
    "Close with 1005": masked(CLOSE, close_payload(1005)),
    "Close with 999": masked(CLOSE, close_payload(999)),
    "Close with 1006": masked(CLOSE, close_payload(1006)),
    "Close with 2000": masked(CLOSE, close_payload(2000)),
    "Close with 5000": masked(CLOSE, close_payload(5000)),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_frames_before_the_message(world, name):
    """Before the connect message the gateway is a strict endpoint: fails broken frames with 1002"""
    gateway = await world.gateway()
    client = await world.client(gateway)
    await client.send(BROKEN[name])
    await client.expect_close(1002)
    await client.finish(1002)


async def test_close_with_a_reason_that_is_not_utf8(world):
    """fails broken frames with 1002 (RFC 6455 would have 1007 for the text of a reason)"""
    gateway = await world.gateway()
    client = await world.client(gateway)
    await client.send_close(1000, b"\xff\xfe")
    got = await client.read_frame()
    assert got.opcode == CLOSE and got.close_code in (1002, 1007), got


# --- the time for it ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sent", [b"", connect_frame('{"apiKey":"test-key"')[:-3], masked(TEXT, b"{", fin=False), masked(PING, b"alive"), b"\x81"], ids=["nothing", "half a frame", "a fragment", "a ping", "half a header"])
async def test_no_connect_message_in_time(world, sent):
    """no connect message within 10 s: no error JSON, 1008 `Connect timeout` (`limits.connect_timeout`)"""
    gateway = await world.gateway(limits={"connect_timeout": "1s"})
    client = await world.client(gateway)
    began = asyncio.get_running_loop().time()
    if sent:
        await client.send(sent)
    if sent[:1] == b"\x89":
        await client.expect_frame(PONG, b"alive")
    await client.expect_close(1008, "Connect timeout")
    assert 0.8 < asyncio.get_running_loop().time() - began < 4
    await client.finish(1008)


async def test_connect_message_that_trickles_is_late(world):
    """1.2: within 10 s of the upgrade: bytes do not start the clock anew"""
    gateway = await world.gateway(limits={"connect_timeout": "1s"})
    client = await world.client(gateway)

    async def trickle() -> None:
        for byte in connect_frame({"apiKey": KEY, "url": "ws://127.0.0.1:1/", "pad": "x" * 200}):
            await client.send(bytes([byte]))
            await asyncio.sleep(0.05)

    sending = asyncio.create_task(trickle())
    await client.expect_close(1008, "Connect timeout", patience=4)
    sending.cancel()


async def test_connect_timeout_by_default_is_10_s(world):
    """1.2: within 10 s of the upgrade"""
    gateway = await world.gateway()
    client = await world.client(gateway)
    await client.expect_silence(9)
    await client.expect_close(1008, "Connect timeout", patience=4)


# --- held frames ----------------------------------------------------------------------------------------------------
async def test_held_frames_reach_the_target_in_order(world):
    """Behind the connect message every frame belongs to the target: held in order"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    held = b"".join(masked(TEXT, b"%d" % i) for i in range(1000)) + masked(PING, b"p")
    await client.send(held)
    await connection.send(connection.switching())
    await client.expect_connected()
    await connection.expect_raw(held)


async def test_held_ping_is_not_answered(world):
    """1.4: ping and pong included (the gateway answers none itself), while held too"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    ping = await client.send_frame(PING, b"for the target")
    await client.expect_silence(0.5)
    await connection.send(connection.switching())
    await client.expect_connected()
    await connection.expect_raw(ping)


async def test_held_frames_are_not_judged(world):
    """1.4: The gateway judges no frame … for the endpoints to judge"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    held = frame(TEXT, b"unmasked") + masked(0xF, b"reserved", rsv=7) + masked(CONTINUATION, b"of nothing") + masked(TEXT, b"\xff") + masked(TEXT, b"cut")[:4]
    await client.send(held)
    await connection.send(connection.switching())
    await client.expect_connected()
    await connection.expect_raw(held[:-4])


async def test_more_than_64_kib_is_held_and_then_not_read(world):
    """held in order, up to 64 KiB, then not read"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target, sizes={"sndbuf": 65536})
    before = gateway.rss()
    flood = b"".join(masked(BINARY, os.urandom(60000)) for _ in range(500))
    sending = asyncio.create_task(client.send(flood, 40))
    await asyncio.sleep(2)
    assert not sending.done(), "30 MB were taken while the target had not answered"
    assert gateway.rss() - before < 2 << 20, "what is held has a bound"
    await connection.send(connection.switching())
    await client.expect_connected()
    await connection.expect_raw(flood)
    await sending


@pytest.mark.parametrize("code, reason, answered", [(4000, "gone", 4000), (1000, "", 1000), (1005, "", 1002), (1006, "", 1002), (999, "", 1002)])
async def test_close_while_dialling_gives_the_dial_up(world, code, reason, answered):
    """If the first held frame other than ping or pong is a Close, the dial is given up (the Close is answered with its own code, or 1002 if it is not a legal one)"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    await client.send(masked(PING, b"1") + masked(PONG, b"2") + masked(CLOSE, close_payload(code, reason)))
    await client.expect_close(answered)
    await client.expect_end()
    await connection.expect_end()


async def test_close_without_a_code_while_dialling(world):
    """the Close is answered with its own code (it has none)"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    await client.send_close(None)
    got = await client.read_frame()
    assert got.opcode == CLOSE and got.close_code in (None, 1000), got
    await client.expect_end()
    await connection.expect_end()


async def test_close_behind_a_held_message_belongs_to_the_target(world):
    """If the FIRST held frame other than ping or pong is a Close: one behind a message waits for the target"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    held = masked(TEXT, b"last words") + masked(CLOSE, close_payload(4001, "done"))
    await client.send(held)
    await client.expect_silence(0.7)
    await connection.send(connection.switching())
    await client.expect_connected()
    await connection.expect_raw(held)
    await connection.send_close(4001)
    await client.expect_close(4001)


@pytest.mark.parametrize("how", ["half_close", "reset"])
async def test_tcp_end_while_dialling_gives_the_dial_up(world, how):
    """or the client's TCP ends, the dial is given up"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    getattr(client, how)()
    await connection.expect_end(4)


async def test_tcp_end_behind_held_frames_gives_the_dial_up(world):
    """or the client's TCP ends, the dial is given up: with fewer than 64 KiB held it is noticed"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    await client.send_text("held")
    client.half_close()
    await connection.expect_end(4)


async def test_reset_while_more_than_64_kib_wait_is_noticed(world):
    """While more than 64 KiB wait, only a reset of the client's TCP is noticed"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    await client.send(masked(BINARY, bytes(100_000)))
    await asyncio.sleep(0.5)
    client.reset()
    await connection.expect_end(5)


async def test_fin_while_more_than_64_kib_wait_is_not_noticed(world):
    """While more than 64 KiB wait, only a reset of the client's TCP is noticed: all of it reaches the target, then 1001"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    held = masked(BINARY, os.urandom(200_000))
    await client.send(held)
    client.half_close()
    await asyncio.sleep(0.5)
    await connection.send(connection.switching())
    await client.expect_connected()
    await connection.expect_raw(held)
    await connection.expect_close(1001, "Client disconnected")


# --- after an error -------------------------------------------------------------------------------------------------
async def test_error_is_not_lost_in_a_reset(world):
    """After an error the held frames are read and dropped until the client closes, so that the error is not lost in a reset."""
    gateway = await world.gateway()
    client = await world.client(gateway)
    await client.send(connect_frame({"apiKey": "unknown", "url": "ws://127.0.0.1:1/"}) + masked(BINARY, bytes(1_000_000)))
    await client.send(masked(BINARY, bytes(1_000_000)))
    await client.expect_error("invalid_key", 1008, "Invalid or missing API key")


async def test_error_waits_at_most_5_s_for_the_client(world):
    """… at most 5 s"""
    gateway = await world.gateway()
    client = await world.client(gateway)
    await client.connect({"apiKey": "unknown", "url": "ws://127.0.0.1:1/"})
    assert (await client.read_json())["code"] == "invalid_key"
    await client.expect_close(1008)
    began = asyncio.get_running_loop().time()
    await client.expect_end(9)
    assert asyncio.get_running_loop().time() - began < 8


async def test_endless_sender_after_an_error_is_gone_after_5_s(world):
    """… at most 5 s, also when the client goes on sending"""
    gateway = await world.gateway()
    client = await world.client(gateway)
    await client.connect({"apiKey": "unknown", "url": "ws://127.0.0.1:1/"})

    async def flood() -> None:
        while True:
            await client.send(masked(PING, b"x" * 100))
            await asyncio.sleep(0.05)

    with pytest.raises((ConnectionError, OSError)):
        await asyncio.wait_for(flood(), 12)
