"""CONTRACT 6, Drain: who is told what and when, and when the process ends."""
from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import ssl
import time

import pytest

from harness import frames
from harness.client import KEY, Client, connect_frame, open_tcp, upgrade_request
from harness.frames import BINARY, CLOSE, TEXT, masked
from harness.process import key_entry, toml
from harness.secure import SecurePipe
from harness.world import World

DRAINING = b"HTTP/1.1 503 "


async def http(world, gateway, request: bytes) -> tuple[bytes, bytes]:
    wire = await world.tcp(gateway)
    await wire.send(request)
    head = await wire.read_until(b"\r\n\r\n")
    return head, await wire.read_to_end()


async def is_turned_away(world, gateway) -> None:
    head, body = await http(world, gateway, upgrade_request())
    assert head.startswith(DRAINING) and b"\r\nretry-after: 1\r\n" in head.lower(), head
    assert json.loads(body)["code"] == "draining", body


async def held(world, gateway, target):
    """A session inside a frame, which keeps the process from ending. Also gives the frame's rest."""
    client, connection = await world.session(gateway, target)
    made = masked(BINARY, os.urandom(10_000))
    await connection.send(made[:4000])
    await client.expect_raw(made[:4000])
    return client, connection, made[4000:]


async def begins(gateway, number: int = signal.SIGTERM) -> float:
    """Signals, and waits until the gateway says that it drains."""
    began = time.monotonic()
    gateway.signal(number)
    await gateway.line("draining:")
    return began


async def ends(client, connection) -> None:
    """The Closes of a drain, answered."""
    await asyncio.gather(client.expect_close(1012, "Service restart", 40), connection.expect_close(1001, "Service restart", 40))
    await connection.send_close(1001)
    await client.finish(1012)
    connection.close()


# --- new sessions ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_new_sessions_are_turned_away_at_once(world, number):
    """at once … `/ws` answers 503 with `Retry-After: 1`"""
    gateway, target = await world.gateway(limits={"drain": "8s"}), world.target()
    waiting = await held(world, gateway, target)
    await begins(gateway, number)
    for _ in range(8):  # both workers
        await is_turned_away(world, gateway)
    head, _ = await http(world, gateway, b"GET /healthz HTTP/1.1\r\nHost: relay.example.com\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and b"\r\nconnection: close\r\n" in head.lower(), head
    await waiting[1].send(waiting[2])
    await waiting[0].expect_raw(waiting[2])
    await ends(*waiting[:2])
    assert await gateway.exit_code() == 0


async def test_nobody_in_the_accept_queue_is_reset(world):
    """a listener that closes resets what waits in its accept queue: all of it is answered"""
    gateway, target = await world.gateway(limits={"drain": "20s"}), world.target()
    waiting = await held(world, gateway, target)
    gateway.signal(signal.SIGSTOP)
    queued = [await world.tcp(gateway) for _ in range(60)]
    for client in queued:
        await client.send(upgrade_request())
    gateway.signal(signal.SIGTERM)
    gateway.signal(signal.SIGCONT)
    answers = []
    for client in queued:
        head = await client.read_until(b"\r\n\r\n")
        answers.append(head[:13])
        if head.startswith(b"HTTP/1.1 101"):  # taken before the signal was: told so as one without a connect message
            await client.expect_close(1012, "Service restart")
        client.close()
    assert set(answers) <= {DRAINING, b"HTTP/1.1 101 "}, answers
    await is_turned_away(world, gateway)
    await waiting[1].send(waiting[2])
    await waiting[0].expect_raw(waiting[2])
    await ends(*waiting[:2])
    assert await gateway.exit_code() == 0


async def test_all_listeners_stay_open_while_one_worker_has_sessions(world):
    """keep accepting and answering 503 until exit, on every worker"""
    gateway, target = await world.gateway(workers=4, limits={"drain": "20s"}), world.target()
    waiting = await held(world, gateway, target)
    await begins(gateway)
    await asyncio.sleep(1)
    for _ in range(40):
        await is_turned_away(world, gateway)
    await waiting[1].send(waiting[2])
    await waiting[0].expect_raw(waiting[2])
    await ends(*waiting[:2])
    assert await gateway.exit_code() == 0


async def test_a_tls_handshake_in_progress_is_answered(world):
    """keep accepting and answering 503 until exit: one that is in its TLS handshake just then is told too"""
    outer, world = world, World(front_tls=True)
    outer.stack.push_async_callback(world.close)
    gateway, target = await world.gateway(limits={"drain": "20s"}), world.target()
    waiting = await held(world, gateway, target)
    begun = [Client(await open_tcp(gateway.port)) for _ in range(4)]
    for client in begun:
        world.stack.callback(client.close)
    half = SecurePipe(begun[0].pipe.sock, world.authority.client(), server=False)
    with pytest.raises(ssl.SSLWantReadError):
        half.tls.do_handshake()
    hello = half.outgoing.read()
    await begun[0].send(hello[:50])
    await begins(gateway)
    await asyncio.sleep(0.5)
    await begun[0].send(hello[50:])
    await half.handshake()
    begun[0].pipe = half
    for client in begun[1:]:
        client.pipe = await SecurePipe.connect(client.pipe.sock, world.authority.client())
    for client in begun:
        await client.send(upgrade_request())
        assert (await client.read_until(b"\r\n\r\n")).startswith(DRAINING)
    await waiting[1].send(waiting[2])
    await waiting[0].expect_raw(waiting[2])
    await ends(*waiting[:2])
    assert await gateway.exit_code() == 0


# --- what is being set up ----------------------------------------------------------------------------------------------
async def test_connections_without_a_connect_message(world):
    """connections without a connect message get 1012"""
    gateway, target = await world.gateway(limits={"drain": "20s"}), world.target()
    waiting = await held(world, gateway, target)
    silent = [await world.client(gateway) for _ in range(6)]
    half = await world.client(gateway)
    await half.send(connect_frame({"apiKey": KEY, "url": target.url()})[:-5])
    began = await begins(gateway)
    for client in [*silent, half]:
        await client.expect_close(1012, "Service restart")
    assert time.monotonic() - began < 3
    for client in [*silent, half]:
        client.close()
    await waiting[1].send(waiting[2])
    await waiting[0].expect_raw(waiting[2])
    await ends(*waiting[:2])
    assert await gateway.exit_code() == 0


async def test_requests_keep_nobody_waiting(world):
    """The process exits 0 as soon as none is left: connections without a session are no sessions"""
    gateway = await world.gateway()
    silent, half = await world.tcp(gateway), await world.tcp(gateway)
    await half.send(upgrade_request()[:40])
    kept = await world.tcp(gateway)
    await kept.send(b"GET /healthz HTTP/1.1\r\nHost: relay.example.com\r\n\r\n")
    await kept.read_until(b'{"ok":true}')
    await begins(gateway)
    assert await gateway.exit_code(5) == 0
    del silent


async def test_a_dial_in_progress_finishes(world):
    """Dials in progress finish, and their sessions then are closed within the spread"""
    gateway, target = await world.gateway(limits={"drain": "10s"}), world.target()
    client, connection = await world.dialling(gateway, target)
    ahead = await client.send_frame(TEXT, b"sent ahead")
    began = await begins(gateway)
    await asyncio.sleep(2)
    await connection.send(connection.switching())
    await client.expect_connected()
    await connection.expect_raw(ahead)
    await ends(client, connection)
    assert 2 < time.monotonic() - began < 6
    assert await gateway.exit_code() == 0


async def test_a_dial_in_progress_fails_in_its_own_words(world):
    """Dials in progress finish"""
    gateway, target = await world.gateway(limits={"drain": "10s"}), world.target()
    client, connection = await world.dialling(gateway, target)
    await begins(gateway)
    await connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    await client.expect_error("target_rejected", 1011)
    assert await gateway.exit_code() == 0


async def test_a_dial_is_given_up_when_the_window_ends(world):
    """at most until the window ends, then 1012"""
    gateway, target = await world.gateway(limits={"drain": "7s"}), world.target()
    client, connection = await world.dialling(gateway, target)
    began = await begins(gateway)
    await client.expect_close(1012, "Service restart")
    assert 1.5 < time.monotonic() - began < 5
    await connection.read_to_end()
    await client.finish(1012)
    assert await gateway.exit_code() == 0


async def test_a_client_that_leaves_its_dial(world):
    """exits 0 as soon as none is left: a dial that is given up is not waited for"""
    gateway, target = await world.gateway(), world.target()
    client, _ = await world.dialling(gateway, target)
    began = await begins(gateway)
    await client.send_close(1000)
    await client.expect_close(1000)
    client.close()
    assert await gateway.exit_code() == 0
    assert time.monotonic() - began < 8


# --- sessions --------------------------------------------------------------------------------------------------------------
async def times_of_closes(sessions, began: float) -> list[float]:
    """When each session was told, in seconds; both sides of it, and both answer."""
    async def one(client, connection) -> float:
        await client.expect_close(1012, "Service restart", 40)
        told = time.monotonic() - began
        await connection.expect_close(1001, "Service restart", 40)
        await connection.send_close(1001)
        await client.finish(1012)
        connection.close()
        return told

    return await asyncio.gather(*(one(*session) for session in sessions))


async def test_sessions_are_spread_over_the_window(world):
    """Sessions are closed in random order, spread evenly over the window, `drain` less 5 s, the first at once"""
    gateway, target = await world.gateway(limits={"drain": "11s"}), world.target()
    sessions = [await world.session(gateway, target) for _ in range(40)]
    began = await begins(gateway)
    times = await times_of_closes(sessions, began)
    assert await gateway.exit_code() == 0
    assert time.monotonic() - began < 9, "as soon as none is left"
    in_order = sorted(times)
    assert times != in_order
    # 40 sessions in 6 s are one each 150 ms, the last 150 ms before its end.
    for place, told in enumerate(in_order):
        assert abs(told - place * 0.15) < 1, in_order
    assert in_order[0] < 1 and 5 < in_order[-1] < 7
    gaps = sorted(later - earlier for earlier, later in zip(in_order, in_order[1:]))
    assert gaps[len(gaps) // 2] > 0.05, f"not in clusters: {gaps}"


async def test_few_sessions_end_within_a_second(world):
    """with fewer than 10 sessions all within 1 s"""
    gateway, target = await world.gateway(limits={"drain": "60s"}), world.target()
    sessions = [await world.session(gateway, target) for _ in range(9)]
    began = await begins(gateway)
    times = await times_of_closes(sessions, began)
    assert max(times) < 3, times
    assert await gateway.exit_code() == 0
    assert time.monotonic() - began < 5


async def test_ten_sessions_are_not_few(world):
    """with fewer than 10 sessions all within 1 s"""
    gateway, target = await world.gateway(limits={"drain": "9s"}), world.target()
    sessions = [await world.session(gateway, target) for _ in range(10)]
    times = await times_of_closes(sessions, await begins(gateway))
    assert 3 < max(times) < 6, times
    assert await gateway.exit_code() == 0


@pytest.mark.parametrize("drain", ["2s", "5s"])
async def test_without_a_window_all_are_closed_at_once(world, drain):
    """`drain` less 5 s but not below 0"""
    gateway, target = await world.gateway(limits={"drain": drain}), world.target()
    sessions = [await world.session(gateway, target) for _ in range(20)]
    times = await times_of_closes(sessions, await begins(gateway))
    assert max(times) < 1.5, times
    assert await gateway.exit_code() == 0


async def test_drain_of_no_time(world):
    """at the latest after `drain`"""
    gateway, target = await world.gateway(limits={"drain": "0s"}), world.target()
    await world.session(gateway, target)
    gateway.signal(signal.SIGTERM)
    assert await gateway.exit_code(5) == 0


@pytest.mark.parametrize("direction", ["client_to_target", "target_to_client"])
async def test_a_session_inside_a_frame_is_cut_when_the_window_is_over(world, direction):
    """A session inside a frame waits for its end until the window is over, then its TCP is closed."""
    gateway, target = await world.gateway(limits={"drain": "8s"}), world.target()
    client, connection = await world.session(gateway, target)
    sender, receiver = (client, connection) if direction == "client_to_target" else (connection, client)
    made = masked(BINARY, os.urandom(10_000))
    await sender.send(made[:4000])
    await receiver.expect_raw(made[:4000])
    began = await begins(gateway)
    # The side that sends is at a boundary as a receiver.
    await sender.expect_close(1012 if sender is client else 1001, "Service restart")
    assert time.monotonic() - began < 2
    await receiver.expect_end()
    assert 2.5 < time.monotonic() - began < 6.5
    assert await gateway.exit_code() == 0
    assert time.monotonic() - began < 9.5


async def test_a_frame_ends_within_the_window(world):
    """A session inside a frame waits for its end"""
    gateway, target = await world.gateway(limits={"drain": "15s"}), world.target()
    client, connection, rest = await held(world, gateway, target)
    await begins(gateway)
    await asyncio.sleep(3)
    await connection.send(rest + masked(TEXT, b"too late"))
    await client.expect_raw(rest)
    await ends(client, connection)
    assert await gateway.exit_code() == 0


async def test_nobody_answers(world):
    """exits 0 … at the latest after `drain`"""
    gateway, target = await world.gateway(limits={"drain": "3s"}), world.target()
    sessions = [await world.session(gateway, target) for _ in range(12)]
    began = await begins(gateway)
    assert await gateway.exit_code() == 0
    assert 2.5 < time.monotonic() - began < 6
    assert any("12 sessions left" in line for line in gateway.lines), gateway.err
    del sessions


# --- the process ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("first,second", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGINT)])
async def test_a_second_signal(world, first, second):
    """A second signal exits 1 at once."""
    gateway, target = await world.gateway(), world.target()
    await held(world, gateway, target)
    await begins(gateway, first)
    began = time.monotonic()
    gateway.signal(second)
    assert await gateway.exit_code() == 1
    assert time.monotonic() - began < 3


async def test_reload_in_a_drain_is_left_out(world):
    """a drain ends as it does, whatever SIGHUP finds"""
    folder = world.folder()
    gateway, target = await world.gateway(folder=folder, limits={"drain": "20s"}), world.target()
    waiting = await held(world, gateway, target)
    await begins(gateway)
    (folder / "keys.toml").write_text("broken")
    gateway.signal(signal.SIGHUP)
    await gateway.line("nothing is reloaded")
    await waiting[1].send(waiting[2])
    await waiting[0].expect_raw(waiting[2])
    await ends(*waiting[:2])
    assert await gateway.exit_code() == 0


async def with_admin(world, **limits):
    """A gateway with an admin listener, and that one's port."""
    gateway = await world.gateway(admin=True, limits=limits)
    return gateway, gateway.admin_port


async def post_drain(world, port: int) -> None:
    wire = Client(await open_tcp(port))
    world.stack.callback(wire.close)
    await wire.send(b"POST /drain HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    assert (await wire.read_until(b"\r\n")).startswith(b"HTTP/1.1 202 ")


async def test_post_drain(world):
    """exits 0 as soon as none is left … (after `POST /drain` too; a signal behind that one only goes on with it)"""
    (gateway, admin), target = await with_admin(world, drain="20s"), world.target()
    waiting = await held(world, gateway, target)
    await post_drain(world, admin)
    await gateway.line("draining:")
    await is_turned_away(world, gateway)
    gateway.signal(signal.SIGTERM)
    await gateway.line("going on with it")
    await waiting[1].send(waiting[2])
    await waiting[0].expect_raw(waiting[2])
    await ends(*waiting[:2])
    assert await gateway.exit_code() == 0


async def test_two_signals_behind_post_drain(world):
    """A second signal exits 1 at once."""
    (gateway, admin), target = await with_admin(world, drain="20s"), world.target()
    await held(world, gateway, target)
    await post_drain(world, admin)
    # Its answer may be there before the drain is.
    await gateway.line("draining:")
    gateway.signal(signal.SIGTERM)
    await gateway.line("going on with it")
    gateway.signal(signal.SIGTERM)
    assert await gateway.exit_code() == 1


# --- all of it, busy ----------------------------------------------------------------------------------------------------------
class Busy:
    """A session that exchanges data all the time, with every byte of both directions kept in its order."""

    def __init__(self, client, connection, seed: int):
        self.ends, self.random = (client, connection), random.Random(seed)
        self.sent = ([], [])
        self.told: float | None = None
        self.paused = asyncio.Event()

    async def send(self, side: int) -> None:
        """Frames of all sizes, as fast as the other side takes them, until the connection ends."""
        pool = os.urandom(70_000)
        while not self.paused.is_set():
            size = self.random.choice([0, 10, 200, 3000, 20_000, 66_000])
            at = self.random.randrange(1, 70_000 - size)
            made = masked(BINARY, pool[at : at + size]) if side == 0 else frames.frame(BINARY, pool[at : at + size])
            self.sent[side].append(made)
            try:
                await self.ends[side].send(made, 40)
            except (OSError, TimeoutError):
                return
            await asyncio.sleep(self.random.random() * 0.2)

    async def receive(self, side: int) -> None:
        """Whole frames only, each as it was sent, up to a Close of the drain; then the end."""
        wire, sent = self.ends[side], self.sent[1 - side]
        for count in range(1 << 30):
            got = await wire.read_frame(60)
            if got.opcode == CLOSE:
                break
            assert got.raw == sent[count], "a frame that is not the next one"
        assert (got.close_code, got.close_reason) == ((1012, 1001)[side], "Service restart")
        if side == 0:
            self.told = time.monotonic()
        self.paused.set()

    async def run(self) -> None:
        senders = [asyncio.create_task(self.send(side)) for side in (0, 1)]
        await asyncio.gather(self.receive(0), self.receive(1))
        await asyncio.gather(*senders)
        for side, code in ((1, 1001), (0, 1012)):
            try:
                await self.ends[side].send_close(code)
            except OSError:
                pass
        await self.ends[1].read_to_end(20)
        self.ends[1].close()
        await self.ends[0].read_to_end(20)


@pytest.mark.limit(120)
async def test_200_busy_sessions(world):
    """With 200 live sessions exchanging data: SIGHUP with changed keys and a broken file loses not one byte; SIGTERM
    closes each at a frame boundary with 1012, spread as promised, and exits 0"""
    folder = world.folder()
    gateway, target = await world.gateway(folder=folder, limits={"drain": "15s"}), world.target()
    busy = [Busy(*(await world.session(gateway, target)), seed) for seed in range(200)]
    running = [asyncio.create_task(session.run()) for session in busy]
    for turn, text in enumerate([toml({"key": [key_entry("another")]}), "broken", toml({"key": [key_entry(burst=3, rate=1.0)]})]):
        await asyncio.sleep(1)
        (folder / "keys.toml").write_text(text)
        gateway.signal(signal.SIGHUP)
        await gateway.wait_until(lambda: sum("reload done" in line or "reload failed" in line for line in gateway.lines) > turn, "the reload")
    assert "keys.toml:1:" in gateway.err
    before = [[len(lane) for lane in session.sent] for session in busy]
    await asyncio.sleep(1)
    assert not any(task.done() for task in running), "a session ended"
    assert all(len(lane) > count for session, counts in zip(busy, before) for lane, count in zip(session.sent, counts)), "a session stands still"
    began = await begins(gateway)
    await asyncio.gather(*running)
    assert await gateway.exit_code(20) == 0
    took = time.monotonic() - began
    told = sorted(session.told - began for session in busy)
    assert [session.told for session in busy] != sorted(session.told for session in busy)
    assert told[0] < 1.5 and 8.5 < told[-1] < 14, told
    # One each 50 ms over 10 s: whatever the machine does, each quarter of the window has about a quarter of them.
    for quarter in range(4):
        share = sum(quarter * 2.5 <= moment < (quarter + 1) * 2.5 for moment in told)
        assert 30 <= share <= 70, told
    assert took < 15.5
