"""The contract, section 2: `GET /ws?url=…`, where the opening handshake is end to end."""
from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import zlib

import pytest

from harness import frames
from harness.client import KEY, upgrade_request
from harness.frames import CLOSE, PING, TEXT, close_payload, frame, masked
from harness.http import fetch, read_answer, samples, sessions
from harness.process import key_entry
from harness.transparent import address, ask, dialling, refused, session

JSON = {"RINGWAY_LOG_FORMAT": "json"}


# --- the handshake ------------------------------------------------------------------------------------------------------
async def test_the_handshake_is_end_to_end(world):
    """`Sec-WebSocket-Key`, `-Protocol`, `-Extensions` and `-Accept` are the endpoints' own; headers go on as written, in order; nothing is added but `Host`"""
    gateway, target = await world.gateway(), world.target()
    client = await world.tcp(gateway)
    lines = [
        "Host: relay.example.com",
        f"X-API-Key: {KEY}",
        "uSER-aGENT: Odd/1.0",
        "Connection: keep-alive, Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==",
        "Sec-WebSocket-Protocol: chat, superchat",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-own",
        "Origin: https://page.example",
        "X-Twice: 1",
        "x-twice: 2",
        "X-Latin: \u00fc",
        "Authorization: Bearer of-the-target",
        "Cookie: a=b",
    ]
    await client.send(("\r\n".join([f"GET {address(target.url('/p%20q?x=1&y'))} HTTP/1.1", *lines]) + "\r\n\r\n").encode("latin-1"))
    connection = await target.accept()
    await connection.read_request()
    want = [f"Host: 127.0.0.1:{target.port}", *lines[2:]]
    assert connection.request_line == "GET /p%20q?x=1&y HTTP/1.1"
    assert connection.header_lines == want
    answer = [
        "Upgrade: WebSocket",
        "Connection: upgrade",
        "Sec-WebSocket-Accept: HSmrc0sMlYUkAGmm5OPpG2HaGWk=",
        "Sec-WebSocket-Protocol: superchat",
        "Sec-WebSocket-Extensions: permessage-deflate",
        "Server: odd \u00fc",
    ]
    await connection.send(("HTTP/1.1 101 Whatever\r\n" + "\r\n".join(answer) + "\r\n\r\n").encode("latin-1") + frame(TEXT, b"at once"))
    head = (await client.read_until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    assert head[0] == "HTTP/1.1 101 Switching Protocols"
    assert head[1:-2] == answer
    assert head[-2] == "Ringway-Node-Id: scraping-de1"
    assert re.fullmatch(r"Ringway-Session-Id: [0-9a-f]{16}", head[-1])
    await client.expect_raw(frame(TEXT, b"at once"))
    sent = masked(TEXT, b"there")
    await client.send(sent)
    await connection.expect_raw(sent)
    await client.part(connection)


@pytest.mark.parametrize("name", ["Keep-Alive", "TE", "Trailer", "Proxy-Authorization", "Proxy-Connection", "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "Via", "True-Client-IP", "CF-Connecting-IP", "cf-ray", "X-Named-By-Connection", "X-API-Key", "Content-Length"])
async def test_what_does_not_reach_the_target(world, name):
    """except hop-by-hop headers, `Content-Length`, and what would tell who the client is"""
    gateway, target = await world.gateway(), world.target()
    headers = {name: KEY if name == "X-API-Key" else "0", "Connection": "Upgrade, x-named-by-connection", "X-Stays": "yes"}
    _, connection = await dialling(world, gateway, target, headers=headers)
    assert connection.header(name) is None
    assert connection.header("X-Stays") == "yes"


@pytest.mark.parametrize("name", ["Set-Cookie", "Set-Cookie2", "Strict-Transport-Security", "Alt-Svc", "Clear-Site-Data", "Access-Control-Allow-Origin", "Keep-Alive", "Ringway-Node-Id"])
async def test_what_does_not_reach_the_client(world, name):
    """end-to-end headers, except `Set-Cookie`, `Set-Cookie2`, `Strict-Transport-Security`, `Alt-Svc`, `Clear-Site-Data`, `Access-Control-*`"""
    gateway, target = await world.gateway(), world.target()
    client, _ = await session(world, gateway, target, extra=f"{name}: forged\r\nX-Stays: yes\r\n")
    assert "forged" not in client.head and "X-Stays: yes\r\n" in client.head, client.head


@pytest.mark.parametrize("accept", ["wrong", ""])
async def test_an_answer_is_the_clients_to_judge(world, accept):
    """the gateway answers the upgrade with the target's own answer (the 101's validity is checked in the connect-message form only)"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await dialling(world, gateway, target)
    await connection.send(connection.switching("Sec-WebSocket-Extensions: never-asked-for\r\n", accept=accept))
    head = (await client.read_until(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 101 ") and f"Sec-WebSocket-Accept: {accept}\r\n" in head, head
    assert "Sec-WebSocket-Extensions: never-asked-for\r\n" in head


async def test_credentials_in_the_url(world):
    """`user:pass@` becomes `Authorization: Basic` unless given"""
    gateway, target = await world.gateway(), world.target()
    url = target.url().replace("ws://", "ws://user:pass@")
    await ask(world, gateway, address(url))
    connection = await target.accept()
    await connection.read_request()
    assert connection.header("Authorization") == "Basic dXNlcjpwYXNz"
    await ask(world, gateway, address(url), {"Authorization": "Bearer own"})
    connection = await target.accept()
    await connection.read_request()
    assert connection.header("Authorization") == "Bearer own"


async def test_any_other_query_is_ignored(world):
    """Meant whenever `url` is in the query; any other query on /ws is ignored"""
    gateway, target = await world.gateway(), world.target().serve_echo()
    client = await world.client(gateway, path="/ws?key=wrong&geo=XX&URL=x")
    await client.connect({"apiKey": KEY, "url": target.url()})
    await client.expect_connected()


# --- the key ------------------------------------------------------------------------------------------------------------
HEADER, BEARER = {"X-API-Key": KEY}, {"X-API-Key": None, "Authorization": f"Bearer {KEY}"}
NONE = {"X-API-Key": None}
FOUND = {
    "X-API-Key": ({}, HEADER),
    "key": ({"key": KEY}, NONE),
    "apiKey": ({"apiKey": KEY}, NONE),
    "Bearer": ({}, BEARER),
    "a bearer in small letters": ({}, {"X-API-Key": None, "Authorization": f"bearer {KEY}"}),
    "X-API-Key before key": ({"key": "wrong"}, HEADER),
    "X-API-Key before Bearer": ({}, {**HEADER, "Authorization": "Bearer wrong"}),
    "key before Bearer": ({"key": KEY}, {"X-API-Key": None, "Authorization": "Bearer wrong"}),
    "apiKey before key": ({"key": "wrong", "apiKey": KEY}, NONE),
}


@pytest.mark.parametrize("name", FOUND)
async def test_the_key_is_found(world, name):
    """The key is taken from the first found of: `X-API-Key`, `apiKey` or `key` in the query, `Authorization: Bearer`. What carried the key never reaches the target"""
    gateway, target = await world.gateway(), world.target()
    fields, headers = FOUND[name]
    _, connection = await dialling(world, gateway, target, "/?own=1", headers={**headers, "Cookie": "a=b"}, **fields)
    assert KEY.encode() not in connection.head
    assert connection.request_line == "GET /?own=1 HTTP/1.1"
    in_query = bool(fields) and not name.startswith("X-API-Key")
    # A page that opened this address in somebody's browser would send them what that browser holds for the gateway's own name.
    assert connection.header("Cookie") == (None if in_query else "a=b")
    assert connection.header("Authorization") == ("Bearer wrong" if name == "X-API-Key before Bearer" else None)


WRONG = {
    "none": ({}, NONE),
    "unknown": ({}, {"X-API-Key": "wrong"}),
    "empty in the query": ({"key": ""}, NONE),
    "an empty header, and one in the query": ({"key": KEY}, {"X-API-Key": ""}),
    "an empty apiKey, and a key": ({"apiKey": "", "key": KEY}, NONE),
    "another scheme": ({}, {"X-API-Key": None, "Authorization": f"Basic {KEY}"}),
}


@pytest.mark.parametrize("name", WRONG)
async def test_the_key_is_wrong(world, name):
    """401 invalid or missing key"""
    gateway, target = await world.gateway(), world.target()
    fields, headers = WRONG[name]
    answer = await refused(world, gateway, address(target.url(), **fields), 401, "invalid_key", headers)
    assert answer.json()["message"] == "Invalid or missing API key"
    assert answer.fields["www-authenticate"] == "Bearer"
    await target.expect_no_dial()


async def test_no_key_reaches_a_log(world):
    """a key in a query never reaches a log"""
    gateway, target = await world.gateway(env={**JSON, "RINGWAY_LOG": "trace"}), world.target()
    client, connection = await session(world, gateway, target, "/secret-path?secret-query", NONE, key=KEY)
    await client.part(connection)
    await refused(world, gateway, address("ws://127.0.0.1:1/secret-path?secret-query", "secret-wrong-key"), 401, "invalid_key", NONE)
    await refused(world, gateway, address("ws://127.0.0.1:1/secret-path?secret-query", KEY), 502, "target_unreachable", NONE)
    await refused(world, gateway, address("nonsense-secret", KEY, idle_timeout="secret"), 400, "invalid_request", NONE)
    await gateway.wait_until(lambda: gateway.err.count('"target":"access"') >= 4, "access log of 4 lines")
    assert KEY + '"' not in gateway.err.replace(f"id-{KEY}", ""), "the key"
    assert "secret" not in gateway.err


# --- what is wrong ------------------------------------------------------------------------------------------------------
INVALID = {
    "empty": ("url=", "url: must start with ws:// or wss://"),
    "no value": ("url", "url: must start with ws:// or wss://"),
    "http": ("url=http://h/", "url: must start with ws:// or wss://, not http://"),
    "fragment": ("url=ws://h/%23x", "url: must not have a fragment (write # as %23)"),
    "not UTF-8": ("url=ws://h/%ff", "url: not UTF-8"),
    "line ends": ("url=ws://h/%0d%0aX:y", "url: must not contain control characters"),
    "idle_timeout": ("url=ws://127.0.0.1/&idle_timeout=-1", "idle_timeout: must be a finite number, 0 or more"),
    "idle_timeout is no number": ("url=ws://127.0.0.1/&idle_timeout=soon", "idle_timeout: must be a finite number, 0 or more"),
}


@pytest.mark.parametrize("name", INVALID)
async def test_an_invalid_request(world, name):
    """400 `invalid_request`"""
    gateway = await world.gateway()
    query, message = INVALID[name]
    answer = await refused(world, gateway, f"/ws?{query}", 400, "invalid_request")
    assert answer.json()["message"] == f"Invalid request: {message}"


async def test_a_key_is_asked_for_first(world):
    """Order of the checks: key, fields, `max_sessions`, bucket"""
    gateway = await world.gateway()
    await refused(world, gateway, "/ws?url=nonsense", 401, "invalid_key", NONE)


async def test_an_empty_bucket(world):
    """429 with `Retry-After`"""
    gateway, target = await world.gateway(keys=[key_entry(rate=0.1, burst=1)]), world.target()
    await refused(world, gateway, "/ws?url=nonsense", 400, "invalid_request")
    await session(world, gateway, target)
    answer = await refused(world, gateway, address(target.url()), 429, "rate_limited")
    got = answer.json()
    assert list(got) == ["type", "message", "code", "retry_after_ms"] and got["message"] == "Rate limit exceeded"
    assert int(answer.fields["retry-after"]) == -(-got["retry_after_ms"] // 1000) == 10


async def test_too_many_sessions(world):
    """429 with `Retry-After`; `max_sessions` counts until both connections are closed"""
    gateway, target = await world.gateway(keys=[key_entry(rate=100, burst=100, max_sessions=1)]), world.target()
    client, connection = await session(world, gateway, target)
    answer = await refused(world, gateway, address(target.url()), 429, "too_many_sessions")
    assert int(answer.fields["retry-after"]) >= 1
    await client.part(connection)
    await until_admitted(world, gateway, target)


async def until_admitted(world, gateway, target):
    for _ in range(200):
        client = await ask(world, gateway, address(target.url()))
        try:
            connection = await target.accept(0.2)
        except AssertionError:
            client.close()
            await asyncio.sleep(0.05)
            continue
        await connection.open()
        return
    raise AssertionError("the session's place was not given back")


async def test_the_gateways_limit(world):
    """`limits.max_sessions` reached: 503 `overloaded` with `Retry-After`"""
    gateway, target = await world.gateway(limits={"max_sessions": 1}), world.target()
    await session(world, gateway, target)
    client = await ask(world, gateway, address(target.url()))
    answer = (await read_answer(client)).expect_error(503, "overloaded")
    assert int(answer.fields["retry-after"]) >= 1
    await gateway.wait_until(lambda: 'outcome="overloaded"' in gateway.err, "its line in the access log")


async def test_a_forbidden_target(world):
    """403 egress refused"""
    gateway = await world.gateway(egress={"allow": []})
    answer = await refused(world, gateway, address("ws://127.0.0.1:1/"), 403, "target_not_allowed")
    assert answer.json()["message"] == "Target not allowed"


async def test_a_target_that_refuses(world):
    """502 target unreachable"""
    gateway, target = await world.gateway(), world.target()
    url = target.url()
    target.close()
    answer = await refused(world, gateway, address(url), 502, "target_unreachable")
    assert answer.json()["message"] == "Target connection failed: connection refused"


@pytest.mark.parametrize("how", ["closes", "speaks no HTTP"])
async def test_a_target_that_is_no_web_server(world, how):
    """502 target unreachable: closed or spoke no HTTP before its answer"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await dialling(world, gateway, target)
    await connection.send(b"" if how == "closes" else b"SSH-2.0-OpenSSH_9.2\r\n")
    connection.close()
    (await read_answer(client)).expect_error(502, "target_unreachable")


@pytest.mark.parametrize("status", [200, 302, 401, 403, 404, 426, 503])
async def test_a_target_that_rejects(world, status):
    """502 rejected (`target_status`)"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await dialling(world, gateway, target)
    await connection.send(f"HTTP/1.1 {status} X\r\nSet-Cookie: a=b\r\nContent-Length: 4\r\n\r\nbody".encode())
    answer = (await read_answer(client)).expect_error(502, "target_rejected")
    got = answer.json()
    assert (got["message"], got["target_status"]) == (f"Target answered HTTP {status}", status)
    assert "set-cookie" not in answer.fields and "body" not in answer.text
    await client.expect_fin()


async def test_a_target_that_is_late(world):
    """504 timed out"""
    gateway, target = await world.gateway(limits={"target_timeout": "300ms"}), world.target()
    client, _ = await dialling(world, gateway, target)
    answer = (await read_answer(client)).expect_error(504, "target_timeout")
    assert answer.json()["message"] == "Target timed out"


@pytest.mark.parametrize("fields", [{"geo": "XX"}, {"agent": "nobody"}, {"geo": "DE", "agent": "us1"}])
async def test_no_agent(world, fields):
    """503 no agent"""
    gateway, target = await world.gateway(), world.target()
    await refused(world, gateway, address(target.url(), **fields), 503, "no_agent")


@pytest.mark.parametrize("fields", [{"geo": "us, de"}, {"agent": "nobody,DE1"}, {"geo": ",", "agent": ""}, {"unknown": "ignored"}])
async def test_an_agent_that_fits(world, fields):
    """Query: optionally `geo`, `agent`; unknown parameters are ignored"""
    gateway, target = await world.gateway(), world.target()
    await session(world, gateway, target, **fields)


@pytest.mark.parametrize("missing", ["Upgrade", "Connection"])
async def test_without_an_upgrade(world, missing):
    """`GET /ws` without upgrade: 426"""
    gateway, target = await world.gateway(), world.target()
    client = await ask(world, gateway, address(target.url()), {missing: None})
    answer = (await read_answer(client)).expect_error(426, "upgrade_required")
    assert answer.fields["upgrade"] == "websocket"
    await target.expect_no_dial()


async def test_another_version(world):
    """`Sec-WebSocket-Version` not 13: 426 with `Sec-WebSocket-Version: 13`"""
    gateway, target = await world.gateway(), world.target()
    client = await ask(world, gateway, address(target.url()), {"Sec-WebSocket-Version": "8"})
    answer = (await read_answer(client)).expect_error(426, "unsupported_version")
    assert answer.fields["sec-websocket-version"] == "13"


# --- while it dials -----------------------------------------------------------------------------------------------------
async def test_frames_that_come_early_reach_the_target(world):
    """A client may send further frames without waiting: they reach the target, in order, none lost"""
    gateway, target = await world.gateway(), world.target()
    early = masked(PING, b"1") + b"".join(masked(TEXT, os.urandom(700)) for _ in range(200))
    client = await world.tcp(gateway)
    sending = asyncio.create_task(client.send(upgrade_request(address(target.url()), {"X-API-Key": KEY}) + early))
    connection = await target.accept()
    await connection.open()
    await connection.expect_raw(early)
    await sending


@pytest.mark.parametrize("how", ["FIN", "RST", "Close"])
async def test_a_client_that_gives_up(world, how):
    """If the first held frame other than ping or pong is a Close, or the client's TCP ends, the dial is given up. The same holds while the transparent form dials"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await dialling(world, gateway, target)
    if how == "FIN":
        client.half_close()
    elif how == "RST":
        client.reset()
    else:
        await client.send(masked(PING, b"") + masked(CLOSE, close_payload(1000)))
        (await read_answer(client)).expect_error(400, "invalid_request")
    await connection.expect_end()


async def test_a_drain_while_it_dials(world):
    """draining: 503"""
    gateway, target = await world.gateway(limits={"drain": "2s"}), world.target()
    client, _ = await dialling(world, gateway, target)
    gateway.signal(15)
    answer = (await read_answer(client, 20)).expect_error(503, "draining")
    assert answer.json()["message"] == "This gateway is shutting down"


# --- the session --------------------------------------------------------------------------------------------------------
async def test_compressed_frames_pass(world):
    """permessage-deflate works; a Close of ours fits at a frame boundary"""
    gateway, target = await world.gateway(), world.target()
    extension = "permessage-deflate; server_no_context_takeover"
    client, connection = await session(world, gateway, target, headers={"Sec-WebSocket-Extensions": extension}, extra=f"Sec-WebSocket-Extensions: {extension}\r\n", idle_timeout="1")
    packer = zlib.compressobj(wbits=-15)
    payload = packer.compress(b"x" * 100_000 + os.urandom(1000)) + packer.flush(zlib.Z_SYNC_FLUSH)
    sent = masked(TEXT, payload[:100], rsv=4, fin=False) + masked(0, payload[100:])
    await client.send(sent)
    await connection.expect_raw(sent)
    back = frame(TEXT, payload, rsv=4)
    await connection.send(back)
    await client.expect_raw(back)
    await client.expect_close(1000, "Idle timeout")
    await connection.expect_close(1000, "Idle timeout")


async def test_the_ends_of_a_session(world):
    """Frames pass as in 1.4, closes as in 3"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await session(world, gateway, target)
    connection.close()
    await client.expect_close(1011, "Target connection lost")
    client, connection = await session(world, gateway, target)
    client.close()
    await connection.expect_close(1001, "Client disconnected")
    client, connection = await session(world, gateway, target)
    await client.part(connection, 4321)


async def test_what_the_operator_sees(world):
    """`/sessions`: `form`; the access log: `form`, no Close where the answer was one of HTTP"""
    gateway, target = await world.gateway(admin=True, env=JSON), world.target()
    client, connection = await session(world, gateway, target)
    session_id = re.search(r"Ringway-Session-Id: (\S+)", client.head)[1]
    [row] = await sessions(gateway)
    assert (row["id"], row["form"], row["state"]) == (session_id, "query", "connected")
    await client.part(connection)
    answer = await refused(world, gateway, "/ws?url=ws://127.0.0.1:1/", 502, "target_unreachable")
    assert answer.status == 502
    await gateway.wait_until(lambda: gateway.err.count('"target":"access"') >= 2, "access log of 2 lines")
    good, bad = [json.loads(line) for line in gateway.lines if '"target":"access"' in line]
    assert (good["session"], good["form"], good["outcome"], good["close_code"]) == (session_id, "query", "connected", 1000)
    assert (bad["form"], bad["outcome"], bad["closed_by"], bad.get("close_code")) == ("query", "target_unreachable", "gateway", None)
    got = await samples(gateway)
    assert got['ringway_sessions_total{outcome="connected"}'] == 1
    assert got['ringway_sessions_total{outcome="target_unreachable"}'] == 1
    usage = await fetch(gateway.port, "/usage", headers={"X-API-Key": KEY})
    assert usage.json()["sessions_total"] == 2
