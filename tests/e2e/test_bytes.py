"""The data path, whichever way it moves bytes: everything arrives as it was sent, however sizes, cuts, readers and ends fall
together, and nothing is left behind.

Sizes, cuts and moments come from seeds. A test's name has its seed; RINGWAY_TEST_SEED=n begins with another one.
"""
from __future__ import annotations

import asyncio
import fcntl
import random
import signal
import struct
import termios
import time

import pytest

from harness import frames
from harness.client import KEY, connect_frame
from harness.frames import BINARY, CLOSE, CONTINUATION, PING, TEXT, close_payload, frame, header
from harness.http import samples, until
from harness.ledger import Ledger
from harness.streams import KIB, MIB, Stream, exchange, noise, seeds, together
from harness.wire import PATIENCE_S, Lost
from harness.world import REMOTE, World

PATHS = {
    "plain": {},
    "TLS in front": {"front_tls": True},
    "TLS target": {"target_tls": True},
    "TLS on both sides": {"front_tls": True, "target_tls": True},
}
DIRECTIONS = pytest.mark.parametrize("direction", ["client_to_target", "target_to_client"])


# For what takes seconds, most of them in waiting.
TWO_PATHS = pytest.mark.parametrize("world", ["plain", "TLS on both sides"], indirect=True)


@pytest.fixture(params=PATHS)
def world(request) -> World:
    noise()  # Before any clock runs.
    return World(**PATHS[request.param])


def ends(client, connection, direction: str):
    """(who sends, who receives)"""
    return (client, connection) if direction == "client_to_target" else (connection, client)


def stream(seed: object, wire) -> Stream:
    """What this end is going to send."""
    return Stream(seed, masks=wire.masks)


async def passes(sender, receiver, made: Stream) -> None:
    await together(made.send(sender), made.expect(receiver))


async def has_had_its_turn(sender, receiver) -> None:
    """Until the relay has taken what the sender has sent, although nothing of it arrives: what is sent later the other
    way, twice, has arrived."""
    for _ in range(2):
        await sender.expect_raw(await receiver.send_frame(PING, b"turn"))


async def all_acknowledged(wire) -> None:
    """Until the kernel at the other end has all that was sent."""
    end = time.monotonic() + PATIENCE_S
    while struct.unpack("i", fcntl.ioctl(wire.pipe.sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0]:
        assert time.monotonic() < end, "what was sent is not acknowledged"
        await asyncio.sleep(0.001)


def our_code(receiver) -> int:
    """Of the Close to this end when the other one's TCP is gone."""
    return 1011 if receiver.masks else 1001


# --- everything, both ways ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", seeds(3))
async def test_random_mix(world, seed):
    """1.4: byte for byte in both directions at the same time, from 0 B to 16 MiB, whatever opcode and form, wherever it is cut; then both Closes, and every frame was counted as what it is"""
    chance = random.Random(seed)
    gateway = await world.gateway(admin=True)
    target = world.target(rcvbuf=chance.choice([None, 1 << 17]), sndbuf=chance.choice([None, 1 << 16]))
    client, connection = await world.session(gateway, target, sizes={"rcvbuf": chance.choice([None, 1 << 17])})
    codes = chance.sample([1000, 1001, 3000, 4321, 4999], 2)
    there = stream(seed, client).mix(8 * MIB).close(codes[0], "there")
    back = stream(seed, connection).mix(8 * MIB).close(codes[1], "back")
    await exchange(client, connection, there, back, each=chance.choice([30_000, 65536, MIB]))
    await client.expect_fin()
    client.close()
    connection.half_close()
    await connection.expect_end()
    ended = lambda found: found["ringway_sessions_active"] == 0  # noqa: E731
    for process in Ledger(gateway).processes:
        found = await until(lambda: samples(process), ended, "end of the session")
        for direction, sent in (("client_to_target", there), ("target_to_client", back)):
            assert found[f'ringway_bytes_total{{direction="{direction}"}}'] == sent.length
            for opcode in ("continuation", "text", "binary", "close", "ping", "pong", "reserved"):
                assert found[f'ringway_frames_total{{direction="{direction}",opcode="{opcode}"}}'] == sent.counts[opcode], (direction, opcode)
        for side, code in (("target", codes[0]), ("client", codes[1])):
            assert found[f'ringway_closes_total{{code="{code if code < 1015 else "other"}",side="{side}"}}'] == 1


@pytest.mark.parametrize("seed", seeds(2))
async def test_slices_of_one_byte(world, seed):
    """1.4: … also when every byte around the beginning and the end of each frame comes alone"""
    _, _, client, connection = await world.pair()
    made = []
    for wire in (client, connection):
        mixed = stream(seed, wire)
        sizes = [0, 1, 126, 200 * KIB, 3, 300 * KIB, 64 * KIB, 0, 0, 0, 0, 0, 128 * KIB, MIB, 5, MIB + 1]
        mixed.random.shuffle(sizes)
        for size in sizes:
            mixed.any_frame(size)
        made.append(mixed)
    there, back = made
    await together(there.send_slices(client), back.send_slices(connection), there.expect(connection), back.expect(client))
    await client.part(connection)


async def test_large_frames_right_behind_the_set_up(world):
    """1.2 and 1.4: large frames whose beginning comes with the connect message and with the target's 101"""
    gateway, target = await world.gateway(), world.target()
    client = await world.tcp(gateway)
    there = stream("set-up", client).frame(MIB).frame(3).frame(2 * MIB).close(1000)
    await client.upgrade(behind=connect_frame({"apiKey": KEY, "url": target.url("/")}) + there.slice(0, 10_000))
    there.sent = 10_000
    sending = asyncio.create_task(there.send(client))
    connection = await target.accept()
    await connection.read_request()
    back = stream("set-up", connection).frame(MIB).frame(0).frame(MIB).close(1000)
    await connection.send(connection.switching() + back.slice(0, 150_000))
    back.sent = 150_000
    await client.expect_connected()
    await together(back.send(connection), there.expect(connection), back.expect(client))
    await sending
    await client.expect_fin()


# --- from large to small and back ---------------------------------------------------------------------------------------
@DIRECTIONS
@pytest.mark.parametrize("large", [128 * KIB, MIB])
async def test_large_and_small_in_turn(world, direction, large):
    """1.4: however many small frames stand between large ones, and all that is there in one piece or frame by frame"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    whole = stream(large, sender)
    for count in [*range(7), 0, 3, 4, 5]:
        whole.frame(large, fin=False)
        for _ in range(count):
            whole.frame(whole.random.choice([0, 1, 125, 126, 1000]), CONTINUATION, fin=False)
        whole.frame(large, CONTINUATION)
    await together(sender.pipe.send(whole.slice(0, whole.length)), whole.expect(receiver))
    # Once more, and each frame has arrived before the next one is sent.
    whole.came = 0
    for start, end in zip(whole.starts, [*whole.starts[1:], whole.length]):
        await together(sender.pipe.send(whole.slice(start, end)), whole.expect(receiver, end))
    await client.part(connection)


@DIRECTIONS
async def test_a_header_that_comes_in_two_parts_behind_a_large_frame(world, direction):
    """1.4: what of a header has come is kept until the rest of it has, also between large frames; the last byte of a large frame may come alone"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    for cut in range(1, 14):
        for size, form in ((300 * KIB, None), (40, 64), (200, None), (0, 7)):
            made = stream((cut, size), sender).frame(200 * KIB).frame(size, form=form).frame(150 * KIB)
            first = made.starts[1] + cut
            last = made.length - 1
            await together(sender.pipe.send(made.slice(0, first)), made.expect(receiver, made.passed(first)))
            if cut % 3 == 0:
                await has_had_its_turn(sender, receiver)
            await together(sender.pipe.send(made.slice(first, last)), made.expect(receiver, last))
            await sender.pipe.send(made.slice(last, made.length))
            await made.expect(receiver)
    await client.part(connection)


@DIRECTIONS
async def test_the_beginning_of_a_large_frame_passes_before_its_end(world, direction):
    """1.4: bytes pass as they come, not when a pipe or a buffer is full"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    made = stream("parts", sender).frame(MIB).frame(4 * MIB).frame(3).frame(MIB)
    for end in (100, 65_536, 65_537, 200_000, MIB + 14, MIB + 15, MIB + 200, MIB + 200 * KIB, 3 * MIB, 3 * MIB + 1, 5 * MIB + 27, 5 * MIB + 28):
        end += 0 if made.passed(end) == end else 14
        await sender.pipe.send(made.slice(made.sent, end))
        made.sent = end
        await made.expect(receiver, end, 10)
    await passes(sender, receiver, made)


@DIRECTIONS
async def test_a_large_close(world, direction):
    """3: a Close is forwarded as it is, and is one, however long; nothing behind it is forwarded"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    made = stream("close", sender).frame(MIB)
    made.head(CLOSE, MIB).raw(memoryview(noise())[:MIB])
    await together(sender.pipe.send(made.slice(0, made.length) + frame(TEXT, b"behind") * 1000), made.expect(receiver))
    await receiver.expect_silence(0.3)
    answer = await receiver.send_close(4000)
    await sender.expect_raw(answer)
    await client.expect_fin()


@DIRECTIONS
async def test_a_length_with_its_top_bit_set_behind_large_frames(world, direction):
    """3: a frame length with its top bit set ends the session, wherever it is cut; all before it arrives"""
    gateway, target = await world.gateway(), world.target()
    for cut in (1, 2, 9, 14):
        client, connection = await world.session(gateway, target)
        sender, receiver = ends(client, connection, direction)
        made = stream(cut, sender).frame(MIB).frame(2).frame(300 * KIB)
        bad = header(BINARY, (1 << 63) + 5, mask=b"abcd") + bytes(100)
        await together(sender.pipe.send(made.slice(0, made.length) + bad[:cut]), made.expect(receiver))
        await sender.pipe.send(bad[cut:])
        await sender.expect_close(1002, "Protocol error")
        await receiver.expect_close(our_code(receiver), "Client protocol error" if receiver is connection else "Target protocol error")
        sender.close()
        receiver.close()


@DIRECTIONS
async def test_a_frame_without_an_end_that_anybody_sees(world, direction):
    """1.4 and 3: what has come of the longest frame there may be arrives; it is cut without a Close"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    made = stream("endless", sender).frame(200 * KIB)
    made.head(BINARY, (1 << 63) - 1).raw(memoryview(noise())[: 5 * MIB])
    await passes(sender, receiver, made)
    await has_had_its_turn(sender, receiver)
    sender.half_close()
    await receiver.expect_end()


# --- beside slow readers ------------------------------------------------------------------------------------------------
@DIRECTIONS
async def test_beside_readers_that_stand_still(world, direction):
    """Whoever does not read holds up nobody else, and gets every byte later; what was lent for it comes back"""
    gateway = await world.gateway(admin=True)
    target, small = world.target(), world.target(rcvbuf=1 << 16, sndbuf=1 << 16)
    await (await world.session(gateway, target))[0].part(target.connections[-1])
    ledger = await Ledger.open(gateway)
    stopped = []
    for number in range(3):
        client, connection = await world.session(gateway, small, sizes={"rcvbuf": 1 << 16, "sndbuf": 1 << 16})
        sender, receiver = ends(client, connection, direction)
        made = stream(("stopped", number), sender).frame(number)
        # More than the kernel buffers of all hops take.
        for _ in range(3 if REMOTE else 2):
            made.frame(16 * MIB).frame(number)
        stopped.append((sender, receiver, made, asyncio.create_task(made.send(sender))))
    for number in range(2):
        busy = [await world.session(gateway, target) for _ in range(4)]
        streams = [tuple(stream((direction, number, index), wire).mix(2 * MIB, largest=2 * MIB).close() for wire in pair) for index, pair in enumerate(busy)]
        await together(*(exchange(*pair, *made) for pair, made in zip(busy, streams)))
        for wire in (wire for pair in busy for wire in pair):
            wire.close()
    assert not any(sending.done() for *_, sending in stopped), "what should stand still was taken: the test shows nothing"
    assert await ledger.lent() > 0, "nothing is lent although much is on its way"
    await together(*(made.expect(receiver) for _, receiver, made, _ in stopped))
    for sender, receiver, _, sending in stopped:
        await sending
        await sender.part(receiver)
    await ledger.balanced()


@TWO_PATHS
@DIRECTIONS
async def test_our_close_waits_for_a_slow_reader_of_large_frames(world, direction):
    """3: Everything received before goes out before a Close, also to a slow reader"""
    _, _, client, connection = await world.pair(sizes={"rcvbuf": 1 << 15}, target={"rcvbuf": 1 << 15})
    sender, receiver = ends(client, connection, direction)
    made = stream("slow", sender).frame(2 * MIB).frame(5).frame(2 * MIB).frame(1)

    async def send_and_end() -> None:
        await made.send(sender)
        sender.half_close()

    async def read() -> None:
        for part in range(1, 12):
            await asyncio.sleep(0.2)
            await made.expect(receiver, part * 100_000)
        await made.expect(receiver)

    await together(send_and_end(), read())
    await receiver.expect_close(our_code(receiver))


# --- a Close of ours while a large frame is on its way --------------------------------------------------------------------
async def stalled(world, direction: str, limits: dict | None = None, **fields):
    """A session with half of a large frame on its way, and the other half not sent."""
    gateway, target = await world.gateway(**({"limits": limits} if limits else {})), world.target()
    client, connection = await world.session(gateway, target, **fields)
    sender, receiver = ends(client, connection, direction)
    made = stream("stalled", sender).frame(MIB).frame(2 * MIB)
    half = 2 * MIB + 12_345
    await together(made.send(sender, half), made.expect(receiver, half))
    return gateway, sender, receiver, made


@TWO_PATHS
@DIRECTIONS
async def test_idle_timeout_inside_a_large_frame(world, direction):
    """3: a Close of ours goes in only at a frame boundary, right behind the end of the large frame"""
    _, sender, receiver, made = await stalled(world, direction, idle_timeout=2)
    await sender.expect_close(1000, "Idle timeout")
    await receiver.expect_silence(0.3)
    await sender.pipe.send(made.slice(made.sent, made.length) + frame(TEXT, b"behind") * 3)
    await made.expect(receiver)
    await receiver.expect_close(1000, "Idle timeout")


@TWO_PATHS
@DIRECTIONS
async def test_idle_timeout_inside_a_large_frame_that_does_not_end(world, direction):
    """3: … at most 5 s; then the TCP connection is closed without one, never with made-up bytes"""
    _, sender, receiver, _ = await stalled(world, direction, idle_timeout=2)
    await sender.expect_close(1000, "Idle timeout")
    began = time.monotonic()
    await receiver.expect_end(12)
    assert 3.5 < time.monotonic() - began < 11


@TWO_PATHS
async def test_a_large_frame_counts_while_it_arrives(world):
    """3: idle_timeout … a long message counts while it arrives"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.session(gateway, target, idle_timeout=1)
    made = stream("arrives", connection).frame(4 * MIB)
    for part in range(1, 9):
        await together(connection.pipe.send(made.slice(made.sent, part * MIB // 2)), made.expect(client, part * MIB // 2))
        made.sent = part * MIB // 2
        await asyncio.sleep(0.3)
    await passes(connection, client, made)
    last = time.monotonic()
    await client.expect_close(1000, "Idle timeout")
    assert 0.6 < time.monotonic() - last < 4


@TWO_PATHS
async def test_idle_clock_stands_still_while_a_large_frame_waits_for_the_client(world):
    """3: The idle clock stands still while data from the target waits for a slow client, and starts anew when it has been taken"""
    gateway, target = await world.gateway(), world.target(sndbuf=1 << 16)
    client, connection = await world.session(gateway, target, sizes={"rcvbuf": 1 << 15}, idle_timeout=0.7)
    # More than the kernel buffers of two hops take.
    made = stream("waits", connection)
    made.head(BINARY, 48 * MIB)
    for _ in range(3):
        made.raw(memoryview(noise())[: 16 * MIB])
    sending = asyncio.create_task(made.send(connection))
    await asyncio.sleep(2.5)
    assert not sending.done(), "the frame does not wait: the test shows nothing"
    await made.expect(client)
    taken = time.monotonic()
    await sending
    await client.expect_close(1000, "Idle timeout")
    assert time.monotonic() - taken > 0.4, "the clock did not start anew"


@TWO_PATHS
@DIRECTIONS
async def test_drain_inside_a_large_frame(world, direction):
    """6: A session inside a frame waits for its end"""
    gateway, sender, receiver, made = await stalled(world, direction, {"drain": "12s"})
    gateway.signal(signal.SIGTERM)
    await sender.expect_close(1012 if sender.masks else 1001, "Service restart")
    await receiver.expect_silence(0.3)
    await sender.pipe.send(made.slice(made.sent, made.length) + frame(TEXT, b"behind") * 3)
    await made.expect(receiver)
    await receiver.expect_close(1012 if receiver.masks else 1001, "Service restart")
    await receiver.send_close(1001)
    await sender.send_close(1001)
    sender.close()
    receiver.close()
    assert await gateway.exit_code() == 0


@TWO_PATHS
@DIRECTIONS
async def test_drain_inside_a_large_frame_that_does_not_end(world, direction):
    """6: … until the window is over, then its TCP is closed"""
    gateway, sender, receiver, _ = await stalled(world, direction, {"drain": "6s"})
    gateway.signal(signal.SIGTERM)
    await sender.expect_close(1012 if sender.masks else 1001, "Service restart")
    await receiver.expect_end()
    assert await gateway.exit_code() == 0


# --- ends at any moment ------------------------------------------------------------------------------------------------
@DIRECTIONS
async def test_a_reset_right_behind_a_large_frame(world, direction):
    """3: Everything received before goes out before a Close; a reset right behind data: what is queued counts as received"""
    gateway, target = await world.gateway(), world.target()
    for turn in range(8):
        client, connection = await world.session(gateway, target)
        sender, receiver = ends(client, connection, direction)
        relay = gateway if sender is client or not REMOTE else gateway.agent
        made = stream(turn, sender).frame(turn).frame(150 * KIB + turn).frame(200 * KIB)
        # Every other time the last frame is cut.
        end = made.length - (turn % 2) * 70_000
        # What the other side sends at the same time is lost with the reset, and must not take this with it.
        against = asyncio.create_task(flood(receiver, frame(BINARY, bytes(300 * KIB)))) if turn % 4 < 2 else None
        await together(made.send(sender, end - 50_000), made.expect(receiver, end - 50_000))
        # So that it finds both, data and reset.
        relay.signal(signal.SIGSTOP)
        await made.send(sender, end)
        await all_acknowledged(sender)
        sender.reset()
        relay.signal(signal.SIGCONT)
        await made.expect(receiver, end)
        if end == made.length:
            await receiver.expect_close(our_code(receiver))
        else:
            assert await receiver.read_to_end() == b""
        if against:
            await stop(against)
        receiver.close()


async def flood(wire, block: bytes) -> None:
    """The same for ever."""
    while True:
        await wire.pipe.send(block)
        await asyncio.sleep(0)


async def stop(*tasks: asyncio.Task) -> None:
    """Cancels them, and waits until they are: only then may their connection be closed."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Ending:
    """A session with large frames both ways that one side ends at a random moment; the other one answers or hangs up."""

    def __init__(self, seed: object, client, connection):
        self.random = chance = random.Random(str(seed))
        self.first, self.other = chance.choice([(client, connection), (connection, client)])
        self.how = chance.choice(["fin", "reset", "close", "Close"])
        self.answer = chance.choice(["Close", "fin", "reset", "close"])
        self.sent, self.back = (self.stream(seed, wire) for wire in (self.first, self.other))
        self.cut = self.moment()
        self.what = f"{self.how} of the {type(self.first).__name__} at {self.sent.where(self.cut)}, {self.answer} behind it"

    def stream(self, seed: object, wire) -> Stream:
        made = stream(seed, wire)
        for _ in range(self.random.randrange(1, 4)):
            made.any_frame(self.random.choice([0, 5, 200, 40_000]))
            made.any_frame(self.random.choice([128 * KIB, 300_000, MIB, self.random.randrange(MIB)]))
        return made

    def moment(self) -> int:
        """Mostly inside a large frame; a Close of the peer's own needs a boundary."""
        start = self.random.choice(self.sent.starts)
        if self.how == "Close" or self.random.random() < 0.1:
            return start
        if self.random.random() < 0.1:
            return min(start + self.random.randrange(1, 14), self.sent.length)
        return self.random.randrange(self.sent.length)

    async def run(self) -> None:
        try:
            async with asyncio.timeout(40):
                await self.play()
        except (AssertionError, OSError, Lost, TimeoutError) as error:
            raise AssertionError(f"{self.what}: {error!r}") from error

    async def play(self) -> None:
        against = asyncio.create_task(self.back.send(self.other))
        coming = asyncio.create_task(self.back.expect_cut(self.first))
        try:
            await self.sent.send(self.first, self.cut)
            if self.how == "Close":
                await self.first.send_close(4001)
            elif self.how == "fin":
                self.first.half_close()
            else:
                await stop(coming)
                self.first.reset() if self.how == "reset" else self.first.close()
            await self.check(await self.sent.expect_cut(self.other))
            if self.answer == "Close":
                await self.finish(against, coming)
            await stop(against)
            if self.answer == "reset":
                self.other.reset()
            elif self.answer == "fin":
                self.other.half_close()
                await self.other.read_to_end()
        finally:
            await stop(against, coming)
            self.other.close()
            self.first.close()

    async def check(self, more: bool) -> None:
        """What came is what was sent, from its beginning on; a Close stands at a boundary; a cut frame has none behind it."""
        came = self.sent.came
        assert came <= self.cut
        if self.how in ("fin", "Close"):
            assert came == self.sent.passed(self.cut), f"{came} came"
        if self.how == "Close":
            await self.other.expect_close(4001)
        elif self.sent.is_boundary(came):
            assert more, f"no Close at the boundary {came}"
            await self.other.expect_close(our_code(self.other))
        else:
            assert not more, f"{bytes(self.other.buffer[:40])!r} came behind a frame that is cut at {came}"

    async def finish(self, against: asyncio.Task, coming: asyncio.Task) -> None:
        """The other side sends the rest, and its Close; where the first one has still to get that, it does."""
        owed = self.how == "Close" or (self.how == "fin" and self.first.masks and self.sent.passed(self.cut) in (*self.sent.starts, self.sent.length))
        try:
            await against
            await self.other.send_close(4002)
        except OSError:
            assert not owed
        if owed:
            assert await coming and self.back.came == self.back.length, f"only {self.back.came} of {self.back.length} came back"
            await self.first.expect_close(4002)
            # The server side of each hop closes first.
            await (self.first if self.first.masks else self.other).expect_end()


@pytest.mark.parametrize("seed", seeds(2))
async def test_ends_at_random_moments(world, seed):
    """FIN, RST and Close in the middle of large frames, from either side, leave no session, buffer, pipe or file behind"""
    gateway, target = await world.gateway(admin=True), world.target()
    await (await world.session(gateway, target))[0].part(target.connections[-1])
    ledger = await Ledger.open(gateway)
    for batch in range(6):
        target.connections.clear()
        endings = [Ending((seed, batch, index), *(await world.session(gateway, target))) for index in range(8)]
        await together(*(ending.run() for ending in endings))
    await ledger.balanced()
    assert "panicked" not in gateway.err, gateway.err


# --- which way they went ------------------------------------------------------------------------------------------------
async def test_large_frames_between_plain_sockets_are_spliced(world):
    """8: `spliced_bytes_total{direction}`: most of large frames, nothing of small ones, and nothing where there is TLS on one side"""
    gateway, target = await world.gateway(admin=True), world.target()
    client, connection = await world.session(gateway, target)
    wires = (client, connection)
    small, large = [stream("small", wire) for wire in wires], [stream("large", wire) for wire in wires]
    for one in small:
        for _ in range(200):
            one.frame(3000)
    for one in large:
        for _ in range(16):
            one.frame(MIB)
    # An agent's channel is TLS where the gateway's listener is.
    plain = [not world.front_tls and (REMOTE or not world.target_tls), not (world.front_tls or world.target_tls)]
    processes = Ledger(gateway).processes
    await exchange(*wires, *small)
    for process in processes:
        assert await spliced(process) == [0, 0]
    await exchange(*wires, *large)
    for process, on_plain in zip(processes, plain):
        found = await spliced(process)
        if on_plain:
            assert all(one.length // 2 < count <= one.length for one, count in zip(large, found)), found
        else:
            assert found == [0, 0]


@DIRECTIONS
async def test_small_frames_that_come_in_parts_are_not_spliced_for_ever(world, direction):
    """8: `spliced_bytes_total` is of large frames: behind them, small ones are copied again, however TCP cuts them"""
    gateway, target = await world.gateway(admin=True), world.target()
    client, connection = await world.session(gateway, target)
    sender, receiver = ends(client, connection, direction)
    made = stream("parts", sender).frame(MIB).frame(MIB)
    for _ in range(40):
        made.frame(5000)
    both = made.starts[2]
    await together(sender.pipe.send(made.slice(0, both)), made.expect(receiver, both))
    # Each half has arrived before the next one is sent.
    for start, end in zip(made.starts[2:], [*made.starts[3:], made.length]):
        half = (start + end) // 2
        for at, to in ((start, half), (half, end)):
            await together(sender.pipe.send(made.slice(at, to)), made.expect(receiver, to))
    for process in Ledger(gateway).processes:
        assert sum(await spliced(process)) <= both


async def spliced(process) -> list[float]:
    found = await samples(process)
    return [found[f'ringway_spliced_bytes_total{{direction="{direction}"}}'] for direction in ("client_to_target", "target_to_client")]
