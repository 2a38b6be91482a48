"""Peers that mean harm, or behave as if: the gateway bounds what they cost, ends them in time, and serves the others meanwhile.

Times in assertions are orders of magnitude only: the machine is shared.
"""
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import resource
import socket
import struct
import threading
import time

import pytest

from harness import frames
from harness.client import KEY, Client, accept_of, connect_frame, upgrade_request
from harness.frames import BINARY, CONTINUATION, PING, PONG, TEXT, masked
from harness.process import Gateway, key_entry
from harness.wire import Lost

MIB = 1 << 20
UNNOTICED_S = 5.0
"""The longest that a session beside may have to wait: far more than it does, since five test runs may share two cores."""


# --- who must not notice anything ------------------------------------------------------------------------------------------
class Bystander:
    """A session that sends a message and awaits its echo, again and again, and knows how long the slowest took.

    Both its ends are threads with sockets of their own, so that it measures the gateway and not the test's event loop.
    """

    def __init__(self, gateway: Gateway):
        self.port = gateway.port
        self.worst = 0.0
        self.count = 0
        self.failure: BaseException | None = None
        self.stopped = threading.Event()
        self.connected = threading.Event()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.threads = [threading.Thread(target=self.guard, args=(run,), daemon=True) for run in (self.echo, self.ask)]

    def guard(self, run) -> None:
        try:
            run()
        except BaseException as error:
            if not self.stopped.is_set():
                self.failure = self.failure or error
        self.connected.set()

    def echo(self) -> None:
        sock, _ = self.server.accept()
        with sock:
            answer_upgrade(sock)
            buffer = bytearray()
            while True:
                got = next_frame(sock, buffer)
                sock.sendall(frames.frame(got.opcode, got.payload))

    def ask(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as sock:
            sock.settimeout(30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            message = {"apiKey": KEY, "url": f"ws://127.0.0.1:{self.server.getsockname()[1]}/"}
            sock.sendall(upgrade_request() + connect_frame(message))
            buffer = bytearray()
            while b"\r\n\r\n" not in buffer:
                buffer += sock.recv(4096)
            del buffer[: buffer.index(b"\r\n\r\n") + 4]
            assert b'"connected"' in next_frame(sock, buffer).payload
            self.connected.set()
            while not self.stopped.wait(0.01):
                payload = os.urandom(50)
                began = time.monotonic()
                sock.sendall(masked(BINARY, payload))
                assert next_frame(sock, buffer).payload == payload
                self.worst = max(self.worst, time.monotonic() - began)
                self.count += 1

    async def __aenter__(self) -> "Bystander":
        for thread in self.threads:
            thread.start()
        await asyncio.to_thread(self.connected.wait, 30)
        return self

    async def __aexit__(self, *error) -> None:
        try:
            if error[0] is None:
                # Some more, so that a session that stands still is noticed.
                count = self.count
                await until(lambda: self.failure or self.count > count + 2, "an echo in the session beside", 30)
                assert self.failure is None, f"the session beside ended: {self.failure!r}"
        finally:
            self.stopped.set()
            self.server.close()


def next_frame(sock: socket.socket, buffer: bytearray) -> frames.Frame:
    while (found := frames.parse(buffer)) is None:
        data = sock.recv(65536)
        if not data:
            raise Lost("the connection ended")
        buffer += data
    del buffer[: len(found.raw)]
    return found


def answer_upgrade(sock: socket.socket) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096)
    key = re.search(rb"Sec-WebSocket-Key: (\S+)", head)[1].decode()
    sock.sendall(f"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept_of(key)}\r\n\r\n".encode())


@contextlib.contextmanager
def flooding(port: int, *, first: bytes, block: bytes, reads: bool = True, count: int = 2, seconds: float = 12.0):
    """Connections that send `first`, then `block` again and again as fast as the kernel takes it: threads, since no event loop is that fast.

    Gives a list in which each puts how long it lived.
    """
    lived: list[float] = []
    stop = threading.Event()

    def flood() -> None:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.settimeout(seconds)
            sock.sendall(first)
            if reads:
                threading.Thread(target=drain, args=(sock,), daemon=True).start()
            began = time.monotonic()
            try:
                while time.monotonic() - began < seconds and not stop.is_set():
                    sock.sendall(block)
            except OSError:
                pass
            lived.append(time.monotonic() - began)

    def drain(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sock.recv(MIB):
                pass

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield lived
    finally:
        stop.set()


async def until(condition, what: str, patience: float = 15.0) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"not within {patience} s: {what}"
        await asyncio.sleep(0.05)


async def still_serves(world, gateway: Gateway) -> None:
    """A new client gets a session, on every worker."""
    for _ in range(8):
        target = world.target()
        client, connection = await world.session(gateway, target)
        await connection.expect_raw(await client.send_frame(BINARY, os.urandom(1000)))
        await client.expect_raw(await connection.send_frame(TEXT, b"x"))
        client.close()
        await connection.expect_close(1001)
        connection.close()
    assert "panicked" not in gateway.err, gateway.err


# --- slow ones ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("phase", ["head", "connect message"])
async def test_slowloris(world, phase):
    """The request head must be complete within `header_timeout`, the connect message within `connect_timeout`: a crowd that sends
    byte by byte is gone then, and leaves nothing behind"""
    gateway = await world.gateway(limits={"header_timeout": "2s", "connect_timeout": "2s"})
    async with Bystander(gateway) as bystander:
        before = gateway.fds()
        wires = [await (world.tcp(gateway) if phase == "head" else world.client(gateway)) for _ in range(200)]
        began = time.monotonic()
        text = upgrade_request() if phase == "head" else connect_frame({"apiKey": KEY, "url": "ws://127.0.0.1:1/"})

        async def trickle(wire: Client) -> float:
            try:
                for byte in text:
                    await wire.send(bytes([byte]))
                    await asyncio.sleep(0.15)
            except OSError:
                return time.monotonic() - began
            raise AssertionError(f"it was let finish its {phase}")

        ends = await asyncio.gather(*map(trickle, wires))
        # The close behind a missed connect message may take another 5 s, for a client that does not answer it.
        assert max(ends) < (6 if phase == "head" else 12), max(ends)
        assert min(ends) > 1, min(ends)
        if phase == "connect message":
            await wires[0].expect_close(1008, "Connect timeout")
        await until(lambda: gateway.fds() <= before + 10, "all sockets closed")
    assert bystander.worst < UNNOTICED_S, bystander.worst


@pytest.mark.limit(60)
async def test_ten_thousand_that_say_nothing(world):
    """`max_pending` is honoured: 503 `overloaded` beyond it; what one of them costs is bounded; all are gone at the deadline; a session
    beside them is relayed on"""
    allowed, crowd = 9000, 10_000
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < crowd + 1000:
        pytest.skip(f"{soft} open files are not enough")
    gateway = await world.gateway(limits={"max_pending": allowed, "header_timeout": "8s"})
    async with Bystander(gateway) as bystander:
        before, fds = gateway.rss(), gateway.fds()
        wires = []
        began = time.monotonic()
        for _ in range(crowd):
            sock = socket.socket()
            world.stack.callback(sock.close)
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", gateway.port))
            wires.append(sock)
            if len(wires) % 100 == 0:
                await asyncio.sleep(0)
        await until(lambda: gateway.fds() >= fds + allowed, "all that may wait were accepted")
        took = time.monotonic() - began
        assert took < 7, f"too slow a machine for this test: {took} s"
        # Everything beyond is answered and closed at once.
        refused = []

        async def answer(sock) -> None:
            with contextlib.suppress(TimeoutError):
                data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 4096), 0.5)
                refused.append(data)

        await asyncio.gather(*map(answer, wires))
        assert len(refused) == crowd - allowed
        assert all(data.startswith(b"HTTP/1.1 503 ") and b'"overloaded"' in data and b"\r\nRetry-After: " in data for data in refused)
        each = (gateway.rss() - before) / allowed
        assert each < 8 << 10, f"{each / 1024:.1f} KiB each"
        assert gateway.fds() <= fds + allowed + 10
        await until(lambda: gateway.fds() <= fds + 10, "all are gone at the deadline", 20)
        assert time.monotonic() - began < took + 14
    assert bystander.worst < UNNOTICED_S, bystander.worst
    assert len(gateway.lines) < 100, "it floods its log"
    await still_serves(world, gateway)


# --- large ones ------------------------------------------------------------------------------------------------------------------
async def test_heads_without_an_end(world):
    """431 for a head over 64 KiB, 414 for a request line over 16 KiB: nobody gets more memory than that, however many they are"""
    gateway = await world.gateway(limits={"header_timeout": "6s"})
    async with Bystander(gateway) as bystander:
        before = gateway.rss()
        wires = [await world.tcp(gateway) for _ in range(300)]
        for wire in wires:
            # As much as is allowed, and no end.
            await wire.send(b"GET / HTTP/1.1\r\nHost: h\r\nX-Long: " + b"x" * (63 << 10))
        await asyncio.sleep(0.5)
        each = (gateway.rss() - before) / len(wires)
        assert each < 160 << 10, f"{each / 1024:.0f} KiB each"
        for wire in wires[:20]:
            with contextlib.suppress(OSError):
                await wire.send(b"x" * (2 << 10))
            assert (await wire.read_to_end()).startswith(b"HTTP/1.1 431 ")
        for unit, status in ((b"GET /" + b"x" * 100_000, b"414"), (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 101, b"431"), (b"\r\n" * 50_000, b""), (b"\0" * 100_000, b"4")):
            wire = await world.tcp(gateway)
            with contextlib.suppress(OSError):
                await wire.send(unit)
            if status:
                assert (await wire.read_until(b"\r\n")).startswith(b"HTTP/1.1 " + status)
    assert bystander.worst < UNNOTICED_S, bystander.worst
    await still_serves(world, gateway)


async def test_a_thousand_requests_in_one_write(world):
    """Pipelined requests are answered in their order, each once"""
    gateway = await world.gateway()
    paths = [random.choice(["/healthz", "/ws/docs", "/nothing", "/ws"]) for _ in range(1000)]
    status = {"/healthz": 200, "/ws/docs": 200, "/nothing": 404, "/ws": 426}
    async with Bystander(gateway) as bystander:
        wire = await world.tcp(gateway)
        sending = asyncio.create_task(wire.send(b"".join(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode() for path in paths)))
        for number, path in enumerate(paths):
            head = (await wire.read_until(b"\r\n\r\n")).decode()
            assert head.startswith(f"HTTP/1.1 {status[path]} "), (number, path, head)
            json.loads(await wire.read_exactly(int(re.search(r"(?i)content-length: (\d+)", head)[1])))
        await sending
        # And the last of them may open a WebSocket.
        await wire.upgrade()
    assert bystander.worst < UNNOTICED_S, bystander.worst


async def test_requests_whose_answers_nobody_reads(world):
    """Bounded memory when the client never reads: its requests are not read either, and it is gone"""
    gateway = await world.gateway()
    async with Bystander(gateway) as bystander:
        fds, before = gateway.fds(), gateway.rss()
        block = b"GET /ws/docs HTTP/1.1\r\nHost: h\r\n\r\n" * 30_000
        with flooding(gateway.port, first=b"", block=block, reads=False, count=5, seconds=20) as lived:
            await until(lambda: len(lived) == 5, "those who do not read are gone", 25)
            assert gateway.rss() - before < 16 * MIB, f"{(gateway.rss() - before) >> 20} MiB"
        await until(lambda: gateway.fds() <= fds + 2, "their sockets are closed")
    assert bystander.worst < UNNOTICED_S, bystander.worst


async def test_sessions_whose_client_never_reads(world):
    """A peer that does not read is no dead peer: it costs no memory, holds its target back, and disturbs nobody"""
    gateway = await world.gateway()
    target = world.target(sndbuf=1 << 16)
    async with Bystander(gateway) as bystander:
        pairs = [await world.session(gateway, target, sizes={"rcvbuf": 1 << 16}) for _ in range(20)]
        before = gateway.rss()
        message = frames.frame(BINARY, bytes(4 * MIB))

        async def pour(connection) -> None:
            while True:
                await connection.send(message, 60)

        load = [asyncio.create_task(pour(connection)) for _, connection in pairs]
        await asyncio.sleep(2)
        assert not any(job.done() for job in load), "a slow client's session ended"
        assert gateway.rss() - before < 8 * MIB, f"{(gateway.rss() - before) >> 20} MiB"
        for job in load:
            job.cancel()
        # What waits comes when it is read.
        got = await pairs[0][0].read_exactly(MIB)
        assert got[:10] == message[:10]
    assert bystander.worst < UNNOTICED_S, bystander.worst


async def test_a_client_that_never_reads_its_answer(world):
    """5 s for what we owe: a client that takes neither "connected" nor an error does not stay"""
    gateway = await world.gateway(keys=[key_entry(), key_entry("other")])
    fds = gateway.fds()
    for message in ({"apiKey": "unknown", "url": "ws://127.0.0.1:1/"}, {"apiKey": KEY, "url": "ws://127.0.0.1:1/"}):
        wires = [await world.client(gateway) for _ in range(20)]
        for wire in wires:
            await wire.connect(message)
    await until(lambda: gateway.fds() <= fds + 5, "all are gone")


# --- fast ones --------------------------------------------------------------------------------------------------------------------
ZERO_KEY = b"\1\2\3\4"
FLOODS = {
    "pongs": (b"", frames.frame(PONG, mask=ZERO_KEY)),
    "pings": (b"", frames.frame(PING, mask=ZERO_KEY)),
    "pings with a payload": (b"", frames.frame(PING, b"x" * 125, mask=ZERO_KEY)),
    "empty fragments": (frames.frame(TEXT, fin=False, mask=ZERO_KEY), frames.frame(CONTINUATION, fin=False, mask=ZERO_KEY)),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_flood_before_the_connect_message(world, name):
    """No connect message within its time: 1008, whatever else comes without a pause; nobody else has to wait for that"""
    first, unit = FLOODS[name]
    gateway = await world.gateway(workers=1, limits={"connect_timeout": "1s"})
    async with Bystander(gateway) as bystander:
        before = gateway.rss()
        with flooding(gateway.port, first=upgrade_request() + first, block=unit * (MIB // len(unit))) as lived:
            await until(lambda: len(lived) == 2, "those who flood are gone", 20)
        # 1 s, and 5 s in which it could have answered the Close.
        assert max(lived) < 10, lived
        assert gateway.rss() - before < 16 * MIB
    assert bystander.worst < UNNOTICED_S, bystander.worst
    assert bystander.count > 10, bystander.count


async def test_flood_of_pings_whose_pongs_nobody_reads(world):
    """What we owe a client is bounded too"""
    gateway = await world.gateway(workers=1, limits={"connect_timeout": "20s"})
    async with Bystander(gateway) as bystander:
        before = gateway.rss()
        unit = frames.frame(PING, b"x" * 125, mask=ZERO_KEY)
        with flooding(gateway.port, first=upgrade_request(), block=unit * (MIB // len(unit)), reads=False, seconds=20) as lived:
            await until(lambda: len(lived) == 2, "those who do not read are gone", 20)
        assert gateway.rss() - before < 16 * MIB
    assert bystander.worst < UNNOTICED_S, bystander.worst


async def test_every_ping_of_a_flood_has_its_pong(world):
    """Answers pings: in order and each of them, however many come in one segment, in front of the answer to what follows"""
    gateway = await world.gateway()
    client = await world.client(gateway)
    payloads = [b"%d" % number for number in range(5000)]
    await client.send(b"".join(masked(PING, payload) for payload in payloads) + connect_frame({"apiKey": "unknown", "url": "ws://t"}))
    for payload in payloads:
        await client.expect_frame(PONG, payload)
    await client.expect_error("invalid_key", 1008)


async def test_flood_after_an_error(world):
    """After an error the gateway reads and drops what the client still sends, at most 5 s, however fast that comes"""
    gateway = await world.gateway(workers=1)
    bad = connect_frame({"apiKey": "unknown", "url": "ws://127.0.0.1:1/"})
    async with Bystander(gateway) as bystander:
        with flooding(gateway.port, first=upgrade_request() + bad, block=masked(BINARY, b"x" * 1000) * 1000) as lived:
            await until(lambda: len(lived) == 2, "those who flood are gone", 20)
        assert max(lived) < 9, lived
    assert bystander.worst < UNNOTICED_S, bystander.worst


async def test_flood_through_the_relay(world):
    """accept, connect timeout and idle timeout hold while a worker relays as fast as the kernel can"""
    gateway = await world.gateway(workers=1, limits={"connect_timeout": "1s"})
    sink = socket.create_server(("127.0.0.1", 0))
    world.stack.callback(sink.close)

    def swallow() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = sink.accept()
                threading.Thread(target=drain, args=(sock,), daemon=True).start()

    def drain(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            answer_upgrade(sock)
            while sock.recv(MIB):
                pass

    threading.Thread(target=swallow, daemon=True).start()
    message = connect_frame({"apiKey": KEY, "url": f"ws://127.0.0.1:{sink.getsockname()[1]}/"})
    async with Bystander(gateway) as bystander:
        with flooding(gateway.port, first=upgrade_request() + message, block=masked(BINARY, bytes(1000)) * 4000, seconds=30):
            await asyncio.sleep(0.5)
            for _ in range(3):
                began = time.monotonic()
                waiting = await world.client(gateway)
                idle, _ = await world.session(gateway, world.target(), idle_timeout=1)
                await asyncio.gather(waiting.expect_close(1008, "Connect timeout"), idle.expect_close(1000, "Idle timeout"))
                assert time.monotonic() - began < 5
    assert bystander.worst < UNNOTICED_S, bystander.worst


# --- at the limits ---------------------------------------------------------------------------------------------------------------
async def test_no_file_is_left(world):
    """EMFILE on accept: it does not spin, goes on accepting when there are files again, and harms no session"""
    gateway = await world.gateway(nofile=120, limits={"header_timeout": "30s"})
    async with Bystander(gateway) as bystander:
        wires = [await world.tcp(gateway) for _ in range(250)]
        await until(lambda: gateway.fds() >= 119, "the limit is reached")
        cpu, lines, count = gateway.cpu_s(), len(gateway.lines), bystander.count
        await asyncio.sleep(3)
        assert gateway.cpu_s() - cpu < 1.5, "it spins"
        assert len(gateway.lines) - lines < 20, "it floods its log"
        assert bystander.count > count + 30, "the session beside has no turn"
        # Again and again a few files come free, and those who wait get them.
        for _ in range(10):
            for wire in wires[:20]:
                wire.close()
            del wires[:20]
            await asyncio.sleep(0.05)
        for wire in wires:
            wire.close()
        await until(lambda: gateway.fds() < 60, "the files are free again")
    assert bystander.worst < UNNOTICED_S, bystander.worst
    await still_serves(world, gateway)


async def test_max_sessions_between_upgrade_and_connect_message(world):
    """`limits.max_sessions` reached: 503 at the upgrade; those who were upgraded before get an `overloaded` error; with room again all goes on"""
    gateway, target = await world.gateway(limits={"max_sessions": 3}), world.target()
    early = [await world.client(gateway) for _ in range(10)]
    sessions = [await world.session(gateway, target) for _ in range(3)]
    late = await world.tcp(gateway)
    await late.send(upgrade_request())
    head = await late.read_until(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ") and b"Retry-After" in head, head
    for wire in early[:5]:
        await wire.connect({"apiKey": KEY, "url": target.url()})
        await wire.expect_error("overloaded", 1013)
    await target.expect_no_dial(0.2)
    sessions[0][0].reset()
    sessions[0][1].reset()
    await world.until_upgraded(gateway)
    client = early[5]
    await client.connect({"apiKey": KEY, "url": target.url()})
    await (await target.accept()).open()
    await client.expect_connected()


async def test_all_at_once_for_the_last_place(world):
    """The limit is exact across workers, also for those who come at the same time"""
    gateway, target = await world.gateway(workers=2, limits={"max_sessions": 5}), world.target().serve_echo()
    clients = [await world.client(gateway) for _ in range(60)]
    await asyncio.gather(*(client.connect({"apiKey": KEY, "url": target.url()}) for client in clients))
    answers = [await client.read_json() for client in clients]
    assert sum(answer["type"] == "connected" for answer in answers) == 5, answers
    assert sum(answer.get("code") == "overloaded" for answer in answers) == 55


# --- nonsense --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
async def test_garbage(world, seed):
    """Random bytes in every phase: an answer or an end, no panic, nothing left behind"""
    chance = random.Random(seed)
    gateway, target = await world.gateway(limits={"header_timeout": "2s", "connect_timeout": "2s", "target_timeout": "2s"}), world.target()

    def junk() -> bytes:
        made = bytearray(chance.randbytes(chance.choice([1, 2, 14, 100, 5000, 70_000])))
        for _ in range(chance.randrange(4)):
            piece = chance.choice([b"\r\n", b"\r\n\r\n", b"GET /ws HTTP/1.1\r\n", b"Host: h\r\n", b"\x81\x80", b"\x88\x82\0\0\0\0\x03", b'{"apiKey":', b"\x81\xff" + b"\xff" * 8, upgrade_request()])
            at = chance.randrange(len(made))
            made[at:at] = piece
        return bytes(made)

    async def attack() -> None:
        wire = await world.tcp(gateway)
        with contextlib.suppress(OSError, Lost):
            phase = chance.randrange(4)
            if phase == 1:
                await wire.send(upgrade_request() + junk())
            elif phase == 2:
                text = bytearray(connect_frame({"apiKey": KEY, "url": target.url(), "headers": {"a": "b"}}))
                for _ in range(chance.randrange(1, 5)):
                    text[chance.randrange(len(text))] = chance.randrange(256)
                await wire.send(upgrade_request() + text)
            elif phase == 3:
                await wire.send(upgrade_request() + connect_frame(junk()) + junk())
            await wire.send(junk(), 5)
            chance.choice([wire.half_close, wire.reset, wire.close, lambda: None])()
        if wire.pipe.sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                await asyncio.wait_for(wire.read_to_end(), 12)
        wire.close()

    async with Bystander(gateway) as bystander:
        fds = gateway.fds()
        for _ in range(2):
            await asyncio.gather(*(attack() for _ in range(60)))
        for connection in target.connections:
            connection.close()
        await until(lambda: gateway.fds() <= fds + 10, "all sockets closed")
    assert bystander.worst < UNNOTICED_S, bystander.worst
    target.close()
    await still_serves(world, gateway)


@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_those_who_vanish(world, how):
    """A client may end or reset its connection in any phase: its socket, its target's and its place are free again"""
    gateway = await world.gateway(keys=[key_entry(rate=10_000.0, burst=10_000, max_sessions=10)], limits={"max_pending": 40})
    target = world.target()
    fds = gateway.fds()

    def vanish(wire) -> None:
        if how == "reset":
            wire.reset()
        else:
            wire.close()

    for _ in range(3):
        for sent in (b"", b"GET /ws", upgrade_request(), upgrade_request() + b"\x81", upgrade_request() + masked(TEXT, b"{", fin=False)):
            for _ in range(10):
                wire = await world.tcp(gateway)
                await wire.send(sent)
                vanish(wire)
        # Dialling, and relaying. Each session that is left over would keep a place, of which there are ten.
        for _ in range(5):
            client, connection = await world.dialling(gateway, target)
            vanish(client)
            await connection.expect_end()
            connection.close()
            client, connection = await world.session(gateway, target)
            await client.send(masked(TEXT, b"cut in the middle")[:9])
            await connection.read_exactly(9)
            vanish(client)
            # Cut inside a frame: no Close can go in.
            await connection.expect_end()
            connection.close()
    await until(lambda: gateway.fds() <= fds + 5, "all sockets closed")
    await still_serves(world, gateway)


async def test_half_open_clients(world):
    """FIN of a client that still reads: before its connect message there is nothing to wait for; an answered request still gets its answer"""
    gateway, target = await world.gateway(), world.target()
    wire = await world.tcp(gateway)
    await wire.send(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    wire.half_close()
    assert b'{"ok":true}' in await wire.read_to_end()
    client = await world.client(gateway)
    await client.send(connect_frame({"apiKey": KEY, "url": target.url()})[:10])
    client.half_close()
    await client.expect_end(5)
    await target.expect_no_dial(0.1)


async def test_a_listener_that_is_stormed(world):
    """Thousands of connections that are gone before they are served cost no memory and stop nobody"""
    gateway = await world.gateway()
    linger = struct.pack("ii", 1, 0)
    async with Bystander(gateway) as bystander:
        fds = gateway.fds()

        def storm() -> None:
            for _ in range(5000):
                with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        await asyncio.gather(*(asyncio.to_thread(storm) for _ in range(2)))
        await until(lambda: gateway.fds() <= fds + 5, "all sockets closed")
        assert gateway.rss() < 120 * MIB, f"{gateway.rss() >> 20} MiB"
    assert bystander.worst < UNNOTICED_S, bystander.worst
    assert len(gateway.lines) < 50, "it floods its log"
    await still_serves(world, gateway)
