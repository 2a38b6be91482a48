"""The contract, section 5: the HTTP surface of the public listener, and the deadlines of its connections."""
from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time

import pytest

from harness.client import KEY, upgrade_request
from harness.frames import PING, PONG, masked


class Answer:
    def __init__(self, head: bytes, body: bytes):
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.head = head.decode("latin-1")
        self.fields = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:] if line)}
        self.body = body

    def json(self) -> dict:
        assert self.fields["content-type"].split(";")[0] == "application/json", self.head
        return json.loads(self.body)


async def read_answer(wire, patience: float = 15) -> Answer:
    head = await wire.read_until(b"\r\n\r\n", patience)
    assert head.startswith(b"HTTP/1.1 "), head
    answer = Answer(head, b"")
    if "content-length" in answer.fields:
        answer.body = await wire.read_exactly(int(answer.fields["content-length"]))
    else:
        assert answer.fields.get("connection", "").lower() == "close", head
        answer.body = await wire.read_to_end()
    return answer


async def request(world, gateway, data: bytes) -> Answer:
    wire = await world.tcp(gateway)
    await wire.send(data)
    return await read_answer(wire)


def get(path: str, *lines: str, method: str = "GET", host: str | None = "relay.example.com") -> bytes:
    return "".join(f"{line}\r\n" for line in (f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), *lines, "")).encode("latin-1")


# --- the rows -------------------------------------------------------------------------------------------------------------
async def test_docs(world):
    """`GET /ws/docs`: these four keys and no other; the address is made from the Host header, `ws://` on a plain listener"""
    gateway = await world.gateway()
    for host in ("relay.example.com", f"127.0.0.1:{gateway.port}", "[::1]:8080"):
        answer = await request(world, gateway, get("/ws/docs", host=host))
        assert answer.status == 200
        assert answer.json() == {"type": "connected", "status": 101, "node_id": "scraping-de1", "message": f"This is a documentation endpoint. Connect via WebSocket at ws://{host}/ws"}
        assert list(answer.json()) == ["type", "status", "node_id", "message"]


async def test_docs_with_public_url(world):
    """the address is `public_url`, or else made from the Host header"""
    gateway = await world.gateway(top={"public_url": "wss://relay.example.com"})
    answer = await request(world, gateway, get("/ws/docs", host="other.example.com"))
    assert answer.json()["message"] == "This is a documentation endpoint. Connect via WebSocket at wss://relay.example.com/ws"


async def test_docs_with_a_hostile_host(world):
    """the body stays JSON whatever the Host header is"""
    gateway = await world.gateway()
    answer = await request(world, gateway, get("/ws/docs", host='x","a":"b'))
    assert answer.status in (200, 400)
    assert set(answer.json()) in ({"type", "status", "node_id", "message"}, {"type", "message", "code"})


async def test_healthz(world):
    """`GET /healthz`: 200 `{"ok":true}`"""
    gateway = await world.gateway()
    answer = await request(world, gateway, get("/healthz"))
    assert (answer.status, answer.json()) == (200, {"ok": True})


@pytest.mark.parametrize("path", ["/ws", "/ws/", "/ws?x=1"])
async def test_ws_without_upgrade(world, path):
    """`GET /ws` without upgrade: 426, `Upgrade: websocket`, JSON error naming `/ws/docs`"""
    gateway = await world.gateway()
    answer = await request(world, gateway, get(path))
    assert answer.status == 426 and answer.fields["upgrade"].lower() == "websocket"
    assert answer.json()["type"] == "error" and "/ws/docs" in answer.json()["message"]


@pytest.mark.parametrize("version", ["8", "7", "0", "14", "x", "", None])
async def test_ws_with_another_version(world, version):
    """`Sec-WebSocket-Version` not 13: 426 with `Sec-WebSocket-Version: 13`"""
    gateway = await world.gateway()
    answer = await request(world, gateway, upgrade_request(headers={"Sec-WebSocket-Version": version}))
    assert answer.status == 426 and answer.fields["sec-websocket-version"] == "13", answer.head
    assert answer.json()["type"] == "error"


@pytest.mark.parametrize("key", ["", "short", "AAAA", "not base64 at all!!!!!!!", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"])
async def test_ws_with_a_broken_key(world, key):
    """400 for broken requests: `Sec-WebSocket-Key` is 16 bytes in base64 (RFC 6455 4.2.1)"""
    gateway = await world.gateway()
    answer = await request(world, gateway, upgrade_request(headers={"Sec-WebSocket-Key": key}))
    assert answer.status == 400, answer.head


async def test_ws_without_a_key(world):
    """400 for broken requests"""
    gateway = await world.gateway()
    assert (await request(world, gateway, upgrade_request(headers={"Sec-WebSocket-Key": None}))).status == 400


@pytest.mark.parametrize("path", ["/", "/wss", "/ws/doc", "/ws/docs/x", "/WS", "/metrics", "/%2e%2e/etc/passwd", "//ws"])
async def test_anything_else_is_404(world, path):
    """anything else: 404 JSON"""
    gateway = await world.gateway()
    answer = await request(world, gateway, get(path))
    assert answer.status == 404 and answer.json()["type"] == "error", answer.head


@pytest.mark.parametrize("path", ["/agent/control", "/agent/data"])
async def test_what_is_not_built_is_refused(world, path):
    """A part of this contract that is not built yet is refused by name, never ignored"""
    gateway = await world.gateway()
    assert (await request(world, gateway, get(path))).status in (404, 501)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/ws", "/ws/docs", "/ws/schema", "/healthz", "/usage", "/network/agents"])
async def test_other_methods(world, method, path):
    """405 for other methods"""
    gateway = await world.gateway()
    answer = await request(world, gateway, get(path, "Content-Length: 0", method=method))
    assert answer.status == 405 and "GET" in answer.fields["allow"], answer.head
    assert answer.json()["type"] == "error"


BROKEN = {
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200, 256)) + b"\r\n\r\n",
    "one word": b"hello\r\n\r\n",
    "HTTP/0.9": b"GET /ws/docs\r\n\r\n",
    "HTTP/9.9": b"GET /ws/docs HTTP/9.9\r\nHost: x\r\n\r\n",
    "no Host": b"GET /ws/docs HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /ws/docs HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a line without colon": b"GET /ws/docs HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n",
    "space before colon": b"GET /ws/docs HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n",
    "empty name": b"GET /ws/docs HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
    "NUL in a value": b"GET /ws/docs HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
    "bare CR": b"GET /ws/docs HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
    "a method that is none": b"G@T /ws/docs HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_requests(world, name):
    """400 for broken requests"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    await wire.send(BROKEN[name])
    answer = await read_answer(wire)
    assert answer.status in ((400, 505) if name == "HTTP/9.9" else (400,)), answer.head
    assert answer.json()["type"] == "error"
    await wire.expect_end()


async def test_request_line_over_16_kib(world):
    """414 for a request line over 16 KiB"""
    gateway = await world.gateway()
    assert (await request(world, gateway, get("/ws/docs?" + "x" * 17000))).status == 414
    assert (await request(world, gateway, b"GET /ws/docs?" + b"x" * 17000)).status == 414, "said before the line ends"
    assert (await request(world, gateway, get("/ws/docs?" + "x" * 16000))).status == 200


async def test_head_over_64_kib(world):
    """431 for a head over 64 KiB"""
    gateway = await world.gateway()
    assert (await request(world, gateway, get("/ws/docs", *(f"X-{i}: {'y' * 1000}" for i in range(70))))).status == 431
    assert (await request(world, gateway, b"GET /ws/docs HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 66_000)).status == 431, "said before the head ends"
    assert (await request(world, gateway, get("/ws/docs", *(f"X-{i}: {'y' * 1000}" for i in range(60))))).status == 200


async def test_more_than_100_headers(world):
    """431 for … 100 headers"""
    gateway = await world.gateway()
    assert (await request(world, gateway, get("/ws/docs", *(f"X-{i}: y" for i in range(120))))).status == 431
    assert (await request(world, gateway, get("/ws/docs", *(f"X-{i}: y" for i in range(98))))).status == 200
    assert (await request(world, gateway, upgrade_request(headers={f"X-{i}": "y" for i in range(120)}))).status == 431


# --- HTTP/1.1 as such -------------------------------------------------------------------------------------------------------
async def test_keep_alive(world):
    """HTTP/1.1: a connection serves several requests, an upgrade among the last"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    for path, status in (("/ws/docs", 200), ("/nowhere", 404), ("/ws", 426), ("/healthz", 200)):
        await wire.send(get(path))
        assert (await read_answer(wire)).status == status
    await wire.upgrade()
    await wire.send(masked(PING, b"x"))
    await wire.expect_frame(PONG, b"x")


async def test_connection_close(world):
    """HTTP/1.1: `Connection: close` is obeyed"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    await wire.send(get("/ws/docs", "Connection: close"))
    assert (await read_answer(wire)).status == 200
    await wire.expect_end(3)  # it waits for nothing first


async def test_http_1_0(world):
    """HTTP/1.0: answered, then closed"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    await wire.send(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert (await read_answer(wire)).status == 200
    await wire.expect_end(5)


async def test_pipelined_requests(world):
    """HTTP/1.1: requests right behind each other are answered in order"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    await wire.send(get("/healthz") + get("/nowhere") + get("/ws/docs") + upgrade_request() + masked(PING, b"x"))
    assert [(await read_answer(wire)).status for _ in range(3)] == [200, 404, 200]
    assert (await wire.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    await wire.expect_frame(PONG, b"x")


async def test_head_byte_by_byte(world):
    """a head may arrive in any pieces"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    await wire.send_slices(get("/ws/docs") + upgrade_request())
    assert (await read_answer(wire)).status == 200
    assert (await wire.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize("fields", [["Content-Length: {n}"], ["Transfer-Encoding: chunked"], ["Content-Length: {n}", "Transfer-Encoding: chunked"], ["Content-Length: 0", "Content-Length: {n}"]], ids=["length", "chunked", "both", "two lengths"])
async def test_a_body_is_no_request(world, fields):
    """a body is never taken for the next request"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    inner = get("/healthz")
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner) if "chunked" in fields[-1] else inner
    await wire.send(get("/nowhere", *(f.format(n=len(body)) for f in fields)) + body)
    await asyncio.sleep(0.5)
    wire.half_close()
    got = await wire.read_to_end()
    assert got.count(b"HTTP/1.1 ") == 1 and b'"ok"' not in got, got


async def test_answers_do_not_name_the_key(world):
    """a key in a header never comes back"""
    gateway = await world.gateway()
    answer = await request(world, gateway, get("/nowhere", f"X-API-Key: {KEY}"))
    assert KEY not in answer.head + answer.body.decode()
    assert KEY not in gateway.err


# --- deadlines ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sent", [b"", b"G", b"GET /ws HT", b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgr", b"\r\n", upgrade_request()[:-2]], ids=["nothing", "a letter", "half a line", "half a head", "an empty line", "all but the end"])
async def test_request_head_must_be_complete_in_time(world, sent):
    """the request head must be complete within `limits.header_timeout` after accept, else the connection is closed"""
    gateway = await world.gateway(limits={"header_timeout": "1s"})
    wire = await world.tcp(gateway)
    began = time.monotonic()
    if sent:
        await wire.send(sent)
    rest = await wire.read_to_end(6)
    assert 0.7 < time.monotonic() - began < 4
    assert rest == b"" or rest.startswith(b"HTTP/1.1 408 "), rest


async def test_a_head_that_trickles_is_late(world):
    """within `limits.header_timeout` after accept: bytes do not start the clock anew"""
    gateway = await world.gateway(limits={"header_timeout": "1s"})
    wire = await world.tcp(gateway)

    async def trickle() -> None:
        await wire.send(b"GET /ws/docs HTTP/1.1\r\nHost: x\r\nX: ")
        while True:
            await asyncio.sleep(0.1)
            await wire.send(b"y")

    began = time.monotonic()
    sending = asyncio.create_task(trickle())
    await wire.read_to_end(5)
    assert 0.7 < time.monotonic() - began < 4
    sending.cancel()


async def test_header_timeout_does_not_end_an_upgraded_connection(world):
    """`header_timeout`: TLS handshake and request head, nothing more"""
    gateway, target = await world.gateway(limits={"header_timeout": "1s", "connect_timeout": "20s"}), world.target()
    client = await world.client(gateway)
    await client.expect_silence(1.8)
    await client.connect({"apiKey": KEY, "url": target.url()})
    await (await target.accept()).open()
    await client.expect_connected()


@pytest.mark.limit(150)
async def test_those_who_are_late_leave_nothing_behind(world):
    """a client that sends garbage, half a request line, half a connect message, or nothing, is gone at its deadline and its memory with it"""
    gateway = await world.gateway(limits={"header_timeout": "1s", "connect_timeout": "1s"})

    async def wave(count: int) -> None:
        wires = [await world.tcp(gateway) for _ in range(count)]
        for number, wire in enumerate(wires):
            data = [b"", b"GET /w", b"\xff" * 3000, upgrade_request() + masked(1, b"{" * 5000)[:4000]][number % 4]
            with contextlib.suppress(ConnectionError):  # on a slow machine its time may be over
                await wire.send(data)
        await asyncio.gather(*(wire.read_to_end(30) for wire in wires))
        for wire in wires:
            wire.close()

    for _ in range(2):  # the allocator keeps some of what so many needed at once
        await wave(400)
    await asyncio.sleep(0.5)
    fds, rss = gateway.fds(), gateway.rss()
    for _ in range(4):
        await wave(400)
    for _ in range(600):  # memory is given back every few seconds
        await asyncio.sleep(0.1)
        if gateway.fds() <= fds and gateway.rss() - rss < 4 << 20:
            break
    assert gateway.fds() <= fds
    assert gateway.rss() - rss < 4 << 20, f"{(gateway.rss() - rss) >> 10} KiB"


# --- limits -------------------------------------------------------------------------------------------------------------------
def is_overloaded(got: bytes) -> bool:
    return got == b"" or (got.startswith(b"HTTP/1.1 503 ") and b"overloaded" in got and re.search(rb"(?i)\r\nretry-after: ?\d+", got) is not None)


@pytest.mark.parametrize("workers", [1, 2])
async def test_max_pending(world, workers):
    """`max_pending`: connections not so far yet (TLS, request head, connect message); beyond it 503 `overloaded`, or closed"""
    gateway, target = await world.gateway(workers=workers, limits={"max_pending": 6}), world.target()
    waiting = [await world.client(gateway) if i % 2 else await world.tcp(gateway) for i in range(6)]
    await asyncio.sleep(0.3)
    for _ in range(4):
        more = await world.tcp(gateway)
        try:
            await more.send(upgrade_request())
        except OSError:
            pass
        assert is_overloaded(await more.read_to_end(5))
    # A session is not pending, and makes room.
    await waiting[1].connect({"apiKey": KEY, "url": target.url()})
    await (await target.accept()).open()
    await waiting[1].expect_connected()
    await world.client(gateway)


async def test_max_sessions(world):
    """`limits.max_sessions` reached: 503 `overloaded` with `Retry-After`; sessions, counted from a validated connect message on"""
    gateway, target = await world.gateway(limits={"max_sessions": 2}), world.target()
    idle = await world.client(gateway)
    first, second = await world.session(gateway, target), await world.session(gateway, target)
    answer = await request(world, gateway, upgrade_request())
    assert answer.status == 503 and int(answer.fields["retry-after"]) >= 1, answer.head
    assert answer.json()["type"] == "error" and answer.json()["code"] == "overloaded"
    assert (await request(world, gateway, get("/healthz"))).status == 200
    await first[0].part(first[1])
    await world.until_upgraded(gateway)
    del idle, second


async def test_head_has_no_body(world):
    """5: 405 for other methods; RFC 9110 9.3.2: the answer to HEAD ends with its head, and the connection goes on"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    for path, status in (("/ws/docs", b"405"), ("/nowhere", b"404")):
        await wire.send(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = await wire.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status), head
        following = await wire.read_until(b'{"ok":true}')
        assert following.startswith(b"HTTP/1.1 200 "), following


async def test_426_names_upgrade_in_connection(world):
    """5: 426, `Upgrade: websocket`; RFC 9110 7.8: a sender of Upgrade names it in Connection"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    await wire.send(b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await wire.read_until(b"\r\n\r\n")
    assert b"\r\nUpgrade: websocket\r\n" in head and b"\r\nConnection: Upgrade\r\n" in head, head


@pytest.mark.parametrize("host", ["a@b/c", 'a"b<c>', "a b"])
async def test_host_that_is_none(world, host):
    """400 for broken requests; RFC 9112 3.2: a Host that is no host"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    await wire.send(f"GET /ws/docs HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert (await read_answer(wire)).status == 400


async def test_version_given_twice(world):
    """`Sec-WebSocket-Version` not 13: 426"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    await wire.send(upgrade_request().replace(b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 8\r\n"))
    assert (await read_answer(wire)).status == 426


async def test_upgrade_with_a_body(world):
    """400 for broken requests: a body is no frames"""
    gateway = await world.gateway()
    wire = await world.tcp(gateway)
    await wire.send(upgrade_request().replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\nhello"))
    assert (await read_answer(wire)).status == 400
