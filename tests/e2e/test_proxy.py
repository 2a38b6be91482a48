"""The contract, sections 1, 2 and 6: targets behind a proxy, SOCKS5 or HTTP CONNECT, in both forms."""
from __future__ import annotations

import asyncio
import os
import time

import pytest

from harness.client import KEY, accept_of
from harness.frames import BINARY, TEXT, frame, masked
from harness.http import read_answer, samples, sessions
from harness.netns import Dns, in_namespace, launcher
from harness.process import Process, token_entry
from harness.proxies import PASSWORD, SOCKS5_YES, USER, ScriptedProxy, basic, danted, microsocks, proxy_url, tinyproxy
from harness.streams import Stream, exchange
from harness.tls import Authority
from harness.transparent import address, ask
from harness.wire import Lost
from harness.world import REMOTE, World
from test_agent_links import accept, agents, gateway_of  # noqa: F401
from test_agent_links import ask as ask_agent
from test_connect_cli import Piped

KINDS = ["socks5", "http"]
FORMS = ["message", "query"]
MISSING = "target.example"
"""A name that no resolver here knows: it must be the proxy's."""
STATUS = {"proxy_failed": 502, "target_not_allowed": 403, "target_unreachable": 502, "target_rejected": 502, "target_timeout": 504}
CLOSE = {"target_not_allowed": 1008}


def scripted(world, host: str = "127.0.0.1") -> ScriptedProxy:
    proxy = ScriptedProxy(host)
    world.stack.callback(proxy.close)
    return proxy


async def begin(world, gateway, url: str, proxy: str | None, form: str = "message"):
    """A client that has asked for a target behind this proxy."""
    if form == "query":
        return await ask(world, gateway, address(url, **({"proxy": proxy} if proxy is not None else {})))
    client = await world.client(gateway)
    await client.connect({"apiKey": KEY, "url": url, **({"proxy": proxy} if proxy is not None else {})})
    return client


async def fails(client, code: str, message: str, form: str = "message", patience: float = 15.0) -> str:
    """The client is told this, and no more; the whole error."""
    if form == "query":
        answer = (await read_answer(client)).expect_error(STATUS[code], code)
        assert answer.json()["message"] == message, answer.json()
        client.close()
        return answer.head + answer.text
    return str(await client.expect_error(code, CLOSE.get(code, 1011), message, patience=patience))


async def opened(client, connection, form: str = "message") -> None:
    """Goes through with the opening handshake."""
    await connection.open()
    if form == "query":
        head = await client.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ") and accept_of(connection.header("Sec-WebSocket-Key")).encode() in head, head
    else:
        await client.expect_connected()


async def talk(client, connection) -> None:
    sent = masked(TEXT, b"there")
    await client.send(sent)
    await connection.expect_raw(sent)
    back = frame(BINARY, b"back")
    await connection.send(back)
    await client.expect_raw(back)


# --- real proxies -------------------------------------------------------------------------------------------------------
REAL = {
    "microsocks": (microsocks, False), "microsocks with password": (microsocks, True), "danted": (danted, False),
    "danted with password": (danted, True), "tinyproxy": (tinyproxy, False), "tinyproxy with password": (tinyproxy, True),
}


@pytest.mark.limit(120)
@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("name", REAL)
async def test_ten_thousand_frames(name, tls):
    """a session over each proxy kind relays 10,000 frames byte-exactly"""
    world = World(target_tls=tls)
    try:
        start, authentication = REAL[name]
        proxy = await start(world, authentication)
        gateway, target = await world.gateway(), world.target()
        client = await begin(world, gateway, target.url(), proxy.url)
        connection = await target.accept()
        await opened(client, connection)
        there, back = Stream(f"{name} there", masks=True), Stream(f"{name} back", masks=False)
        for stream in (there, back):
            for index in range(10_000):
                stream.any_frame(70_000 if index % 1000 == 999 else stream.random.choice([0, 1, 125, 126, 127, stream.random.randrange(700)]))
        await exchange(client, connection, there, back, patience=100.0)
        await client.part(connection)
    finally:
        await world.close()


@pytest.mark.parametrize("name", [name for name in REAL if "password" in name])
async def test_real_proxies_refuse_a_wrong_password(world, name):
    """`Proxy connection failed: …`, `proxy_failed`, 1011"""
    proxy = await REAL[name][0](world, True)
    gateway, target = await world.gateway(), world.target()
    refused = "it refused user and password" + (" (HTTP 407)" if "tinyproxy" in name else "")
    without = "it wants user and password" + (" (HTTP 407)" if "tinyproxy" in name else "")
    scheme, port = proxy.wrong.partition("://")[0], int(proxy.url.rpartition(":")[2])
    if "tinyproxy" in name:
        # It answers 401 to those that it does not know, and 407 to those that show nothing.
        refused = "it answered HTTP 401"
    for form in FORMS:
        await fails(await begin(world, gateway, target.url(), proxy.wrong, form), "proxy_failed", f"Proxy connection failed: {refused}", form)
        await fails(await begin(world, gateway, target.url(), proxy_url(scheme, port), form), "proxy_failed", f"Proxy connection failed: {without}", form)
    await target.expect_no_dial()


@pytest.mark.parametrize("name, why", [("microsocks", "it cannot reach the target: connection refused"), ("danted", "it cannot reach the target: connection refused"), ("tinyproxy", "it answered HTTP 500")])
async def test_real_proxies_that_do_not_reach_the_target(world, name, why):
    """SOCKS reply codes in words, HTTP statuses as they are"""
    proxy = await REAL[name][0](world, False)
    gateway, target = await world.gateway(), world.target()
    target.sock.close()
    await fails(await begin(world, gateway, target.url(), proxy.url), "proxy_failed", f"Proxy connection failed: {why}")


# --- what the proxy is asked --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "http"])
async def test_names_go_to_the_proxy_as_names(world, scheme, form):
    """Names are resolved by the proxy in all forms"""
    gateway, target = await world.gateway(), world.target()
    proxy = scripted(world).serve("http" if scheme == "http" else "socks5", target.port)
    client = await begin(world, gateway, target.url("/p?q", MISSING), proxy.address(scheme), form)
    connection = await target.accept()
    await opened(client, connection, form)
    place = f"{MISSING}:{target.port}"
    assert proxy.asked == [[f"CONNECT {place} HTTP/1.1", f"Host: {place}"] if scheme == "http" else (MISSING, target.port)]
    assert connection.header("Host") == place and connection.request_line == "GET /p?q HTTP/1.1"
    await talk(client, connection)
    await client.part(connection)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("kind", KINDS)
async def test_addresses_of_target_and_proxy(world, kind, host):
    """IPv4 and IPv6; an IPv6 proxy in brackets"""
    gateway, target = await world.gateway(), world.target(host)
    proxy = scripted(world, host)
    client = await begin(world, gateway, target.url(), proxy.address(kind))
    connection = await proxy.accept()
    if kind == "socks5":
        assert await connection.read_socks5() == (b"\0", (host, target.port))
        await connection.send(SOCKS5_YES)
    else:
        place = f"[{host}]:{target.port}" if ":" in host else f"{host}:{target.port}"
        assert await connection.read_head() == [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
        await connection.send(b"HTTP/1.0 200 Connection established\r\n\r\n")
    task = asyncio.create_task(connection.splice(target.port, host))
    end = await target.accept()
    await opened(client, end)
    await talk(client, end)
    await client.part(end)
    await task


@pytest.mark.parametrize("kind", KINDS)
async def test_credentials_are_decoded(world, kind):
    """SOCKS5: user and password (RFC 1929), HTTP: Basic"""
    gateway, target = await world.gateway(), world.target()
    proxy = scripted(world)
    client = await begin(world, gateway, target.url(host=MISSING), proxy.address(kind, USER, PASSWORD))
    connection = await proxy.accept()
    if kind == "socks5":
        assert await connection.read_greeting() == b"\0\x02"
        await connection.send(b"\x05\x02")
        assert await connection.read_credentials() == (USER.encode(), PASSWORD.encode())
        await connection.send(b"\x01\0")
        assert await connection.read_request() == (MISSING, target.port)
        await connection.send(b"\x05\0\0\x03\x04host\0\0")
    else:
        assert (await connection.read_head())[2:] == [f"Proxy-Authorization: {basic(USER, PASSWORD)}"]
        await connection.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 x\r\nContent-Length: 7\r\n\r\n")
    task = asyncio.create_task(connection.splice(target.port))
    end = await target.accept()
    await opened(client, end)
    assert b"Proxy" not in end.head and USER.encode() not in end.head
    await talk(client, end)
    await client.part(end)
    await task


async def test_a_password_that_is_not_asked_for_is_not_sent(world):
    """SOCKS5: the proxy chooses"""
    gateway, target = await world.gateway(), world.target()
    proxy = scripted(world)
    await begin(world, gateway, target.url(), proxy.address("socks5", USER, PASSWORD))
    connection = await proxy.accept()
    assert await connection.read_socks5(method=0) == (b"\0\x02", ("127.0.0.1", target.port))


# --- where the proxy ends and the target begins -------------------------------------------------------------------------
@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("kind", KINDS)
async def test_byte_by_byte(world, kind, tls):
    """a slow proxy is a proxy"""
    authority = Authority(world.folder())
    gateway, target = await world.gateway(egress={"ca_file": str(authority.file)}), world.target(tls=authority.server("127.0.0.1") if tls else None)
    proxy = scripted(world)
    client = await begin(world, gateway, target.url(), proxy.address(kind, USER, PASSWORD))
    connection = await proxy.accept()

    async def trickle(data: bytes) -> None:
        for byte in data:
            await connection.send(bytes([byte]))
            await asyncio.sleep(0.002)

    if kind == "socks5":
        await connection.read_greeting()
        await trickle(b"\x05\x02")
        await connection.read_credentials()
        await trickle(b"\x01\0")
        await connection.read_request()
        await trickle(b"\x05\0\0\x03\x09localhost\0\0")
    else:
        await connection.read_head()
        await trickle(b"HTTP/1.1 200 Connection established\r\nX: y\r\n\r\n")
    task = asyncio.create_task(connection.splice(target.port))
    end = await target.accept()
    await opened(client, end)
    await talk(client, end)
    await client.part(end)
    await task


async def test_all_answers_of_socks5_at_once(world):
    """odd, and no reason to wait for more"""
    gateway, target = await world.gateway(), world.target()
    proxy = scripted(world)
    client = await begin(world, gateway, target.url(), proxy.address("socks5"))
    connection = await proxy.accept()
    await connection.send(b"\x05\0" + SOCKS5_YES)
    await connection.read_greeting()
    await connection.read_request()
    task = asyncio.create_task(connection.splice(target.port))
    end = await target.accept()
    await opened(client, end)
    await client.part(end)
    await task


@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_right_behind_the_yes_are_the_targets(world, kind):
    """bytes behind the yes are the target's first bytes: here a whole answer to the client's own handshake, and a frame"""
    gateway = await world.gateway()
    proxy = scripted(world)
    client = await begin(world, gateway, f"ws://{MISSING}/", proxy.address(kind), "query")
    connection = await proxy.accept()
    await connection.say_yes(kind, b"HTTP/1.1 101 X\r\nX-First: yes\r\n\r\n" + frame(TEXT, b"at once"))
    head = await client.read_until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ") and b"X-First: yes\r\n" in head, head
    await client.expect_raw(frame(TEXT, b"at once"))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_beginning_of_an_answer_right_behind_the_yes(world, kind):
    """the rest of it comes later"""
    gateway = await world.gateway()
    proxy = scripted(world)
    client = await begin(world, gateway, f"ws://{MISSING}/", proxy.address(kind))
    connection = await proxy.accept()
    await connection.say_yes(kind, b"HTTP/1.1 101 X\r\nUpgrade: web")
    head = (await connection.read_until(b"\r\n\r\n")).decode()
    key = next(line.partition(": ")[2] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Key: "))
    await connection.send(f"socket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_of(key)}\r\n\r\n".encode() + frame(TEXT, b"hi"))
    await client.expect_connected()
    await client.expect_raw(frame(TEXT, b"hi"))


@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_right_behind_the_yes_of_a_tls_target(world, kind):
    """they go into its handshake"""
    gateway = await world.gateway()
    proxy = scripted(world)
    client = await begin(world, gateway, f"wss://{MISSING}/", proxy.address(kind))
    # An alert: handshake_failure.
    await (await proxy.accept()).say_yes(kind, b"\x15\x03\x03\0\x02\x02\x28")
    got = await client.expect_error("target_unreachable", 1011, contains="Target connection failed: TLS: ")
    assert "HandshakeFailure" in got["message"], got


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_behind_the_yes_the_targets_own_rows_hold(world, kind, form):
    """unreachable, rejected, late, TLS"""
    authority = Authority(world.folder())
    gateway, proxy = await world.gateway(limits={"target_timeout": "2s"}, egress={"ca_file": str(authority.file)}), scripted(world)

    async def through(url: str = f"ws://{MISSING}/"):
        client = await begin(world, gateway, url, proxy.address(kind), form)
        connection = await proxy.accept()
        await connection.say_yes(kind)
        return client, connection

    client, connection = await through()
    await connection.read_until(b"\r\n\r\n")
    await connection.send(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    await fails(client, "target_rejected", "Target answered HTTP 403", form)
    client, connection = await through()
    await connection.read_until(b"\r\n\r\n")
    connection.close()
    await fails(client, "target_unreachable", "Target connection failed: it closed the connection before its answer", form)
    client, connection = await through()
    await fails(client, "target_timeout", "Target timed out", form)
    # The name in the URL is what the certificate must be for.
    target = world.target(tls=authority.server("other.example"))
    client, connection = await through(target.url(host=MISSING))
    task = asyncio.create_task(connection.splice(target.port))
    with pytest.raises(Exception):
        await target.accept(2)
    await fails(client, "target_unreachable", "Target connection failed: TLS: its certificate is for another name", form)
    task.cancel()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_targets_certificate_is_for_its_name(world, kind):
    """TLS to the target inside the tunnel, its name verified as without a proxy"""
    authority = Authority(world.folder())
    gateway, target = await world.gateway(egress={"ca_file": str(authority.file)}), world.target(tls=authority.server(MISSING))
    proxy = scripted(world).serve(kind, target.port)
    client = await begin(world, gateway, target.url(host=MISSING), proxy.address(kind))
    connection = await target.accept()
    await opened(client, connection)
    await talk(client, connection)
    await client.part(connection)


# --- what goes wrong ----------------------------------------------------------------------------------------------------
WRONG = {
    "auth refused": ("socks5", [("greeting", b"\x05\xff")], "it wants another authentication than user and password"),
    "password refused": ("socks5", [("greeting", b"\x05\x02"), ("credentials", b"\x01\x01")], "it refused user and password"),
    "another method": ("socks5", [("greeting", b"\x05\x01")], "it chose an authentication that was not offered"),
    "general failure": ("socks5", [("socks5", b"\x05\x01\0\x01\0\0\0\0\0\0")], "it reports a general failure"),
    "rules": ("socks5", [("socks5", b"\x05\x02\0\x01\0\0\0\0\0\0")], "its rules do not allow the target"),
    "host unreachable": ("socks5", [("socks5", b"\x05\x04")], "it cannot reach the target: host unreachable"),
    "unknown code": ("socks5", [("socks5", b"\x05\x63\0\x01\0\0\0\0\0\0")], "it answered with the unknown code 99"),
    "kind of address": ("socks5", [("socks5", b"\x05\0\0\x07")], "its answer has an unknown kind of address"),
    "HTTP for SOCKS5": ("socks5", [("greeting", b"HTTP/1.1 400 Bad Request\r\n\r\n")], "it is no SOCKS5 proxy"),
    "garbage": ("socks5", [("greeting", os.urandom(1000).replace(b"\x05", b"x"))], "it is no SOCKS5 proxy"),
    "SOCKS5 for HTTP": ("http", [("head", b"\x05\xff")], "it does not answer in HTTP"),
    "garbage for HTTP": ("http", [("head", bytes(range(1, 200)) * 9)], "it does not answer in HTTP"),
    "403": ("http", [("head", b"HTTP/1.1 403 s3cr3t\r\nX: s3cr3t\r\n\r\ns3cr3t")], "it answered HTTP 403"),
    "407": ("http", [("head", b"HTTP/1.1 407 X\r\nProxy-Authenticate: Basic realm=s3cr3t\r\n\r\n")], "it refused user and password (HTTP 407)"),
    "a huge head": ("http", [("head", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 99 + b"X: " + b"x" * 65536)], "its answer's head is larger than 64 KiB"),
    "endless interim answers": ("http", [("head", b"HTTP/1.1 100 Continue\r\n\r\n" * 3000)], "it sent more than 64 KiB of interim answers"),
}


async def play(connection, steps: list[tuple[str, bytes]]) -> None:
    read = {"greeting": connection.read_greeting, "credentials": connection.read_credentials, "request": connection.read_request, "head": connection.read_head, "socks5": connection.read_socks5}
    for what, answer in steps:
        await read[what]()
        await connection.send(answer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WRONG)
async def test_what_goes_wrong_in_words(world, name, form):
    """What goes wrong up to the proxy's yes is `proxy_failed`, 1011 or 502, saying what went wrong in words"""
    kind, steps, why = WRONG[name]
    gateway, proxy = await world.gateway(), scripted(world)
    client = await begin(world, gateway, f"ws://{MISSING}/", proxy.address(kind, USER, "s3cr3t"), form)
    connection = await proxy.accept()
    await play(connection, steps)
    told = await fails(client, "proxy_failed", f"Proxy connection failed: {why}", form)
    assert "s3cr3t" not in told and USER not in told
    try:
        await connection.read_to_end()
    except ConnectionError:
        pass


STEPS = {
    "at once": ("socks5", []),
    "behind the greeting": ("socks5", [("greeting", b"")]),
    "in the method": ("socks5", [("greeting", b"\x05")]),
    "behind the method": ("socks5", [("greeting", b"\x05\0")]),
    "in the status": ("socks5", [("greeting", b"\x05\x02"), ("credentials", b"\x01")]),
    "behind the status": ("socks5", [("greeting", b"\x05\x02"), ("credentials", b"\x01\0")]),
    "in the answer": ("socks5", [("socks5", b"\x05\0\0")]),
    "in the answer's address": ("socks5", [("socks5", b"\x05\0\0\x03\x09local")]),
    "in the answer's port": ("socks5", [("socks5", SOCKS5_YES[:-1])]),
    "HTTP, at once": ("http", []),
    "HTTP, behind the request": ("http", [("head", b"")]),
    "HTTP, in the answer": ("http", [("head", b"HTTP/1.1 200 OK\r\n")]),
    "HTTP, behind an interim answer": ("http", [("head", b"HTTP/1.1 100 Continue\r\n\r\n")]),
}


@pytest.mark.parametrize("how", ["closes", "resets"])
@pytest.mark.parametrize("step", STEPS)
async def test_it_ends_half_way(world, step, how):
    """a proxy that closes half-way"""
    kind, steps = STEPS[step]
    gateway, proxy = await world.gateway(), scripted(world)
    client = await begin(world, gateway, f"ws://{MISSING}/", proxy.address(kind, USER, PASSWORD))
    connection = await proxy.accept()
    await play(connection, steps)
    if how == "closes":
        connection.pipe.half_close()
    else:
        connection.pipe.reset()
    got = await client.expect_error("proxy_failed", 1011)
    words = {"it closed the connection before its answer"} if how == "closes" else {"it reset the connection", "it closed the connection before its answer"}
    assert got["message"].removeprefix("Proxy connection failed: ") in words, got


@pytest.mark.parametrize("step", ["in the proxy's queue", *STEPS])
async def test_it_hangs(world, step):
    """its silence too (within target_timeout: then `proxy_failed`, not `target_timeout`)"""
    kind, steps = STEPS.get(step, ("socks5", []))
    gateway, proxy = await world.gateway(limits={"target_timeout": "1s"}), scripted(world)
    form = "query" if len(step) % 2 else "message"
    began = time.monotonic()
    client = await begin(world, gateway, f"ws://{MISSING}/", proxy.address(kind, USER, PASSWORD), form)
    if step != "in the proxy's queue":
        await play(await proxy.accept(), steps)
    await fails(client, "proxy_failed", "Proxy connection failed: no answer in time", form)
    assert 0.7 < time.monotonic() - began < 5


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_that_never_ends(world, kind):
    """the time is for all of it, however it is spent"""
    gateway, proxy = await world.gateway(limits={"target_timeout": "1s"}), scripted(world)
    client = await begin(world, gateway, f"ws://{MISSING}/", proxy.address(kind))
    connection = await proxy.accept()
    await play(connection, [("socks5", b"\x05\0\0\x03\xff")] if kind == "socks5" else [("head", b"HTTP/1.1 200 OK\r\nX: ")])

    async def trickle() -> None:
        while True:
            await connection.send(b"x")
            await asyncio.sleep(0.05)

    helper = asyncio.create_task(trickle())
    try:
        await fails(client, "proxy_failed", "Proxy connection failed: no answer in time")
    finally:
        helper.cancel()


@pytest.mark.parametrize("form", FORMS)
async def test_nobody_is_there(world, form):
    """refused"""
    gateway, proxy = await world.gateway(), scripted(world)
    proxy.sock.close()
    client = await begin(world, gateway, f"ws://{MISSING}/", proxy.address("socks5"), form)
    await fails(client, "proxy_failed", "Proxy connection failed: connection refused", form)


@in_namespace
async def test_the_proxys_own_name(world):
    """the proxy's address (resolved by the agent's resolver, happy eyeballs)"""
    dns, folder = Dns({"proxy.example.com": "127.0.0.1", "hole.example.com": "10.77.0.1"}), world.folder()
    world.stack.callback(dns.close)
    gateway = await world.gateway(
        folder=folder, launcher=launcher(folder, "fd77::1 both.example.com\n127.0.0.1 both.example.com\n"), limits={"target_timeout": "2s"},
        egress={"allow": ["127.0.0.0/8", "::1/128", "10.77.0.0/24", "fd77::/64"]},
    )
    target = world.target()
    proxy = scripted(world).serve("socks5", target.port)
    # The second one's IPv6 address is a hole.
    for name in ("proxy.example.com", "both.example.com"):
        client = await begin(world, gateway, target.url(host=MISSING), proxy_url("socks5", proxy.port, host=name))
        connection = await target.accept()
        await opened(client, connection)
        await client.part(connection)
    assert MISSING not in dns.asked and proxy.asked == [(MISSING, target.port)] * 2
    client = await begin(world, gateway, target.url(), "socks5://missing.example.com")
    got = await client.expect_error("proxy_failed", 1011, contains="Proxy connection failed: DNS: ")
    for name in ("hang.example.com", "hole.example.com"):
        client = await begin(world, gateway, target.url(), f"socks5://{name}")
        await fails(client, "proxy_failed", "Proxy connection failed: no answer in time")
    assert got["message"] != "Proxy connection failed: DNS: "


async def test_a_client_that_leaves_ends_the_dial(world):
    """If the client's TCP ends, the dial is given up"""
    gateway, proxy = await world.gateway(admin=True), scripted(world)
    client = await begin(world, gateway, f"ws://{MISSING}/", proxy.address("http"))
    connection = await proxy.accept()
    await connection.read_head()
    client.close()
    try:
        await connection.expect_end()
    except (Lost, ConnectionError):
        pass


# --- the egress policy --------------------------------------------------------------------------------------------------
TARGETS = {
    "ws://10.0.0.1/": False, "ws://[::ffff:10.0.0.1]/": False, "ws://169.254.169.254/": False, "ws://[fd00:ec2::254]/": False, "ws://0x7f000002/": False, "ws://127.0.0.2/": False,
    "ws://db/": False, "ws://db./": False, "ws://localhost/": False, "ws://x.localhost/": False, "ws://printer.local/": False, "ws://a.b.internal/": False, "ws://METADATA.google.INTERNAL/": False,
    "ws://denied.example/": False, "ws://sub.denied.example./": False, "ws://listed.denied.example/": False, "ws://8.8.4.4/": False,
    "ws://127.0.0.1/": True, "ws://8.8.8.8/": True, "ws://[2606:4700::1]/": True, "ws://target.example/": True, "ws://notdenied.example/": True, "ws://listed/": True, "ws://Listed.Internal/": True,
}


@in_namespace
async def test_which_targets_a_proxy_may_be_asked_for(world):
    """and the target where it is an address, a name that `deny` lists, or a name without a dot or under `localhost`, `local`, `internal` that `allow` does not list"""
    gateway = await world.gateway(egress={"allow": ["127.0.0.1/32", "listed", "listed.internal", "listed.denied.example"], "deny": ["denied.example", "8.8.4.0/24"]})
    wrong = {}
    for url, allowed in TARGETS.items():
        for kind in KINDS:
            proxy = scripted(world)
            if allowed:
                proxy.tasks.append(asyncio.create_task(refuse(proxy, kind)))
            client = await begin(world, gateway, url, proxy.address(kind))
            got = await client.read_json()
            if got["message"] != ("Target answered HTTP 403" if allowed else "Target not allowed"):
                wrong[kind, url] = got
            if not allowed:
                await proxy.expect_no_dial(0.02)
            client.close()
    assert not wrong, wrong


async def refuse(proxy: ScriptedProxy, kind: str) -> None:
    """Lets one through, to a target that refuses."""
    await (await proxy.accept()).say_yes(kind, b"HTTP/1.1 403 X\r\n\r\n")


@in_namespace
async def test_the_proxys_address_is_vetted(world):
    """The egress policy vets the proxy's address"""
    gateway, proxy = await world.gateway(egress={"allow": [], "deny": ["denied.example", "8.8.4.4"]}), scripted(world)
    wrong = {}
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]", "10.0.0.1", "[64:ff9b::a00:1]", "localhost", "LOCALHOST.", "denied.example", "a.denied.example", "8.8.4.4", "0x08080404"]:
        for kind in KINDS:
            client = await begin(world, gateway, f"ws://{MISSING}/", proxy_url(kind, proxy.port, USER, PASSWORD, host))
            got = await client.read_json()
            if got["code"] != "target_not_allowed":
                wrong[kind, host] = got
            client.close()
    assert not wrong, wrong
    await fails(await begin(world, gateway, f"ws://{MISSING}/", proxy.address("http"), "query"), "target_not_allowed", "Target not allowed", "query")
    await proxy.expect_no_dial(0.1)


async def test_a_proxys_name_that_is_allowed(world):
    """`allow`: CIDRs or host names allowed though private"""
    gateway, target = await world.gateway(egress={"allow": ["localhost"]}), world.target()
    proxy = scripted(world).serve("http", target.port)
    client = await begin(world, gateway, target.url(host=MISSING), proxy_url("http", proxy.port, host="localhost"))
    connection = await target.accept()
    await opened(client, connection)
    await client.part(connection)


# --- the operator's own -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_default_for_all_sessions(world, kind, host, form):
    """for sessions that name none; the operator's own, so not vetted"""
    target, proxy = world.target(), scripted(world)
    gateway = await world.gateway(egress={"allow": [], "proxy": proxy_url(kind, proxy.port, USER, PASSWORD, host)})
    client = await begin(world, gateway, target.url(host=MISSING), None, form)
    connection = await proxy.accept()
    if kind == "socks5":
        assert await connection.read_socks5(method=2) == (b"\0\x02", (MISSING, target.port))
        await connection.send(SOCKS5_YES)
    else:
        assert (await connection.read_head())[2:] == [f"Proxy-Authorization: {basic(USER, PASSWORD)}"]
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    task = asyncio.create_task(connection.splice(target.port))
    end = await target.accept()
    await opened(client, end, form)
    await talk(client, end)
    await client.part(end)
    await task


async def test_the_operators_proxy_is_not_the_clients(world):
    """and not reachable for clients because of it"""
    proxy = scripted(world)
    gateway = await world.gateway(egress={"allow": [], "proxy": proxy.address("socks5")})
    for url, named in ((f"ws://127.0.0.1:{proxy.port}/", None), (f"ws://{MISSING}/", proxy.address("socks5")), (f"ws://{MISSING}/", proxy_url("http", proxy.port, host="localhost")), ("ws://10.0.0.1/", None), ("ws://db/", None)):
        await fails(await begin(world, gateway, url, named), "target_not_allowed", "Target not allowed")
    await proxy.expect_no_dial(0.1)


async def test_a_session_that_names_another_one(world):
    """for sessions that name none"""
    target, default = world.target(), scripted(world)
    proxy = scripted(world).serve("socks5", target.port)
    gateway = await world.gateway(egress={"proxy": default.address("http")})
    client = await begin(world, gateway, target.url(), proxy.address("socks5"))
    connection = await target.accept()
    await opened(client, connection)
    await client.part(connection)
    await default.expect_no_dial(0.1)


@pytest.mark.parametrize("form", FORMS)
async def test_a_default_that_fails(world, form):
    """`proxy_failed` all the same; its credentials never reach an error"""
    proxy = scripted(world)
    gateway = await world.gateway(limits={"target_timeout": "1s"}, egress={"proxy": proxy.address("http", USER, PASSWORD)})
    client = await begin(world, gateway, f"ws://{MISSING}/", None, form)
    await fails(client, "proxy_failed", "Proxy connection failed: no answer in time", form)
    proxy.sock.close()
    client = await begin(world, gateway, f"ws://{MISSING}/", None, form)
    await fails(client, "proxy_failed", "Proxy connection failed: connection refused", form)


@pytest.mark.parametrize("proxy", ["socks5://user:s3cr3t@127.0.0.1:1080/x", "socks4://user:s3cr3t@127.0.0.1", "user:s3cr3t@127.0.0.1:1080", "http://user:s3cr3t@", "https://user:s3cr3t@h", "socks5://user:s3cr3t@h:0", "socks5://user:s3cr3t@h:s3cr3t"])
async def test_check_names_the_line_and_no_credentials(world, proxy):
    """its credentials never appear in errors of `ringway check`"""
    folder = world.folder()
    (folder / "keys.toml").write_text("")
    (folder / "gateway.toml").write_text(f'[egress]\nproxy = "{proxy}"\n')
    process = await world.process("check", "-c", str(folder / "gateway.toml"), ready=False)
    assert await process.exit_code() == 2
    assert 'gateway.toml:2: "proxy" in [egress]: ' in process.err and 'write "socks5://127.0.0.1:1080"' in process.err, process.err
    assert "s3cr3t" not in process.err + process.out


# --- secrets, metrics, the agent's own ----------------------------------------------------------------------------------
@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_credentials_in_any_line(world, log_format):
    """Its credentials never reach a log or an error, at RINGWAY_LOG=trace"""
    user, password = "us3rs3cr3t", "p4sss3cr3t"
    target, closed = world.target(), scripted(world)
    closed.sock.close()
    default = scripted(world)
    gateway = await world.gateway(
        admin=True, env={"RINGWAY_LOG": "trace", "RINGWAY_LOG_FORMAT": log_format}, limits={"target_timeout": "1s"}, egress={"proxy": default.address("http", user, password)},
    )
    told = []
    for kind in KINDS:
        proxy = scripted(world).serve(kind, target.port)
        for form in FORMS:
            client = await begin(world, gateway, target.url(host=MISSING), proxy.address(kind, user, password), form)
            connection = await target.accept()
            await opened(client, connection, form)
            rows = await sessions(gateway)
            told.append(str(rows))
            await client.part(connection)
            told.append(await fails(await begin(world, gateway, target.url(), closed.address(kind, user, password), form), "proxy_failed", "Proxy connection failed: connection refused", form))
            told.append(await fails(await begin(world, gateway, target.url(), None, form), "proxy_failed", "Proxy connection failed: no answer in time", form))
            told.append(await fails(await begin(world, gateway, "ws://10.0.0.1/", proxy.address(kind, user, password), form), "target_not_allowed", "Target not allowed", form))
    for wrong in (f"socks4://{user}:{password}@h", f"socks5://{user}:{password}@h/p", f"http://{user}:{password}@h:0"):
        got = await world.refused(gateway, {"apiKey": KEY, "url": target.url(), "proxy": wrong}, "invalid_connect_message", 1008)
        client = await ask(world, gateway, address(target.url(), proxy=wrong))
        answer = (await read_answer(client)).expect_error(400, "invalid_request")
        client.close()
        told += [str(got), answer.head + answer.text]
    metrics = await samples(gateway)
    told.append(str(metrics))
    processes: list[Process] = [gateway, gateway.agent] if REMOTE else [gateway]
    # The last lines of the log have been written when the process has ended.
    for process in processes:
        process.signal(15)
        assert await process.exit_code() == 0
        assert len(process.lines) > 10 and "proxy_failed" in process.err
    everything = "\n".join(told + [process.err for process in processes])
    for secret in ("s3cr3t", basic(user, password).removeprefix("Basic ")):
        assert secret not in everything, [line for line in everything.split("\n") if secret in line][:5]


async def test_stages_of_a_dial_through_a_proxy(world):
    """`connect_seconds{stage}`: `tcp` is the connection to the proxy, `proxy` the time up to its yes"""
    gateway, target = await world.gateway(admin=True), world.target()
    proxy = scripted(world)
    client = await begin(world, gateway, target.url(host=MISSING), proxy.address("http"))
    connection = await proxy.accept()
    await connection.read_head()
    await asyncio.sleep(0.3)
    await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    task = asyncio.create_task(connection.splice(target.port))
    end = await target.accept()
    await opened(client, end)
    for process in [gateway, gateway.agent] if REMOTE else [gateway]:
        found = await samples(process)
        counted = {stage: found[f'ringway_connect_seconds_count{{stage="{stage}"}}'] for stage in ("dns", "tcp", "proxy", "tls", "upgrade")}
        assert counted == {"dns": 0, "tcp": 1, "proxy": 1, "tls": 0, "upgrade": 1}
        assert 0.25 < found['ringway_connect_seconds_sum{stage="proxy"}'] < 5
    await client.part(end)
    await task
    await fails(await begin(world, gateway, "ws://127.0.0.1:1/", "http://127.0.0.1:1"), "proxy_failed", "Proxy connection failed: connection refused")
    found = await samples(gateway)
    assert found['ringway_sessions_total{outcome="proxy_failed"}'] == 1


async def test_an_agent_that_knows_nothing_of_proxies_is_left(world, agents):  # noqa: F811
    """An agent that fails is replaced by another; none may dial the target where a proxy was asked for"""
    gateway = await gateway_of(world)
    agent = agents(gateway)
    await agent.link()
    channels = await agent.channels(2)
    client = await ask_agent(world, gateway, proxy="socks5h://u:p%40@127.0.0.1")
    for _ in range(2):
        channel, request = await accept(channels)
        assert request["proxy"] == "socks5://u:p%40@127.0.0.1:1080"
        assert await channel.ended() == b""
        channels.remove(channel)
    await client.expect_error("agent_failure", 1011)


async def test_the_command_line_client(world):
    """`ringway connect --proxy URL` sends the field"""
    gateway, target = await world.gateway(), world.target().serve_echo()
    proxy = scripted(world).serve("socks5", target.port)
    piped = await Piped.start(world, "-g", f"ws://127.0.0.1:{gateway.port}/ws", "--proxy", proxy.address("socks5"), target.url(host=MISSING))
    done = await piped.ends(b"hello\n")
    assert (done.code, done.out) == (0, b"hello\n"), done
    assert proxy.asked == [(MISSING, target.port)]
    proxy.sock.close()
    piped = await Piped.start(world, "-g", f"ws://127.0.0.1:{gateway.port}/ws", "--proxy", "socks4://u:s3cr3t@h", target.url())
    done = await piped.ends(b"")
    assert done.code == 2 and "proxy: must start with socks5://" in done.err and "s3cr3t" not in done.err, done
