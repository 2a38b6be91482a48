"""The contract, section 1.4: every frame passes byte for byte in both directions, whatever it is, however it is cut."""
from __future__ import annotations

import asyncio
import hashlib
import os
import random

import pytest

from harness import frames
from harness.client import KEY, connect_frame
from harness.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame, header, masked

DIRECTIONS = pytest.mark.parametrize("direction", ["client_to_target", "target_to_client"])


def ends(client, connection, direction: str):
    """(who sends, who receives)"""
    return (client, connection) if direction == "client_to_target" else (connection, client)


def random_mix(seed: int, count: int, masks: bool) -> bytes:
    """Frames of any sizes, forms, bits and opcodes; no Close among them, and no top bit in a length."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        size = rng.choice([0, 1, 2, 125, 126, 127, 65535, 65536, rng.randrange(200), rng.randrange(5000), rng.randrange(70000)])
        opcode = rng.choice([0, 1, 2, 9, 10, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
        form = rng.choice([f for f in (7, 16, 64) if f != 7 or size < 126 if f != 16 or size < 65536])
        mask = rng.randbytes(4) if masks != (rng.random() < 0.1) else None
        made.append(frame(opcode, rng.randbytes(size), fin=rng.random() < 0.7, rsv=rng.choice([0, 0, 0, 4, 7, 1]), mask=mask, form=form))
    return b"".join(made)


async def passes(sender, receiver, data: bytes) -> None:
    """`data` arrives as it is, and nothing else does."""
    sending = asyncio.create_task(sender.send(data, 60))
    await receiver.expect_raw(data, 30)
    await sending


# --- single frames of every kind --------------------------------------------------------------------------------------
KINDS = {
    "text": (TEXT, b"hello", {}),
    "empty text": (TEXT, b"", {}),
    "binary": (BINARY, bytes(range(256)), {}),
    "text that is not UTF-8": (TEXT, b"\xff\xfe", {}),
    "reserved data opcode": (5, b"x", {}),
    "reserved control opcode": (0xC, b"x", {}),
    "RSV1": (TEXT, b"x", {"rsv": 4}),
    "RSV1 to 3": (BINARY, b"x", {"rsv": 7}),
    "16-bit form of a short length": (TEXT, b"x" * 5, {"form": 16}),
    "64-bit form of a short length": (TEXT, b"x" * 5, {"form": 64}),
    "64-bit form of zero": (TEXT, b"", {"form": 64}),
    "125": (BINARY, b"x" * 125, {}),
    "126": (BINARY, b"x" * 126, {}),
    "65535": (BINARY, b"x" * 65535, {}),
    "65536": (BINARY, b"x" * 65536, {}),
    "ping": (PING, b"p", {}),
    "pong": (PONG, b"q", {}),
    "long ping": (PING, b"p" * 1000, {}),
    "fragmented ping": (PING, b"p", {"fin": False}),
    "continuation of nothing": (CONTINUATION, b"x", {}),
    "first fragment": (TEXT, b"x", {"fin": False}),
}


@DIRECTIONS
@pytest.mark.parametrize("masking", ["masked", "unmasked"])
async def test_each_kind_of_frame_passes(world, direction, masking):
    """1.4: same boundaries, same fragmentation, same opcode, same masking key; an unmasked frame, a reserved opcode or bit, a wrong length form, bad UTF-8 pass too"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    for name, (opcode, payload, bits) in KINDS.items():
        made = frame(opcode, payload, mask=os.urandom(4) if masking == "masked" else None, **bits)
        await sender.send(made)
        got = await receiver.read_exactly(len(made))
        assert got == made, name


@DIRECTIONS
async def test_a_frame_passes_at_once(world, direction):
    """1.4: raw relay: a frame is not kept back until another comes"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    for size in (0, 1, 125, 126, 1000, 65536, 200_000):
        made = await sender.send_frame(BINARY, os.urandom(size))
        await receiver.expect_raw(made, 5)


@DIRECTIONS
async def test_the_beginning_of_a_frame_passes_before_its_end(world, direction):
    """1.4: bytes pass as they come, so that a frame of any size needs no memory"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    made = masked(BINARY, os.urandom(100_000))
    await sender.send(made[:50_000])
    await receiver.expect_raw(made[:50_000], 5)
    await receiver.expect_silence(0.2)
    await sender.send(made[50_000:])
    await receiver.expect_raw(made[50_000:], 5)


async def test_pings_reach_the_other_end_and_are_not_answered(world):
    """1.4: ping and pong included (the gateway answers none itself)"""
    _, _, client, connection = await world.pair()
    ping = await client.send_frame(PING, b"from the client")
    await connection.expect_raw(ping)
    ping = await connection.send_frame(PING, b"from the target")
    await client.expect_raw(ping)
    await client.expect_silence(0.3)
    await connection.expect_silence(0.3)


@DIRECTIONS
async def test_control_frames_between_fragments(world, direction):
    """1.4: same fragmentation"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    parts = [(TEXT, b"a", False), (PING, b"1", True), (CONTINUATION, b"", False), (PONG, b"2", True), (CONTINUATION, b"c" * 70000, False), (PING, b"3", True), (CONTINUATION, b"d", True)]
    made = b"".join(masked(opcode, payload, fin=fin) for opcode, payload, fin in parts)
    await passes(sender, receiver, made)


# --- random mixes -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(4))
async def test_random_mix_both_ways_at_once(world, seed):
    """1.4: byte for byte in both directions, at the same time, cut at random points"""
    _, _, client, connection = await world.pair()

    async def stream(sender, data: bytes, number: int) -> None:
        rng, at = random.Random(number), 0
        while at < len(data):
            size = rng.choice([1, 2, 3, 13, 14, 15, rng.randrange(1, 5000), rng.randrange(1, 200_000)])
            await sender.send(data[at : at + size], 60)
            at += size
            if rng.random() < 0.2:
                await asyncio.sleep(0)

    async def collect(receiver, count: int) -> str:
        return hashlib.sha256(await receiver.read_exactly(count)).hexdigest()

    there, back = random_mix(seed, 250, True), random_mix(seed + 100, 250, False)
    _, _, got_there, got_back = await asyncio.gather(
        stream(client, there, seed), stream(connection, back, seed + 1), collect(connection, len(there)), collect(client, len(back))
    )
    assert got_there == hashlib.sha256(there).hexdigest()
    assert got_back == hashlib.sha256(back).hexdigest()


@DIRECTIONS
async def test_slices_of_one_byte(world, direction):
    """1.4: byte for byte, also when every byte comes alone"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    rng = random.Random(7)
    data = b"".join(frame(rng.choice([1, 2, 9]), rng.randbytes(size), mask=rng.randbytes(4), form=form) for size in (0, 1, 3, 126, 200) for form in (16, 64)) + masked(TEXT, b"x" * 100)
    sending = asyncio.create_task(sender.send_slices(data))
    await receiver.expect_raw(data)
    await sending


@DIRECTIONS
async def test_every_split_of_a_header(world, direction):
    """1.4: boundaries are found wherever a read ends"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    for form, size in ((7, 3), (16, 300), (64, 300)):
        made = masked(BINARY, os.urandom(size), form=form)
        for cut in range(1, 16):
            await sender.send(made[:cut])
            await asyncio.sleep(0.01)
            await sender.send(made[cut:])
            await receiver.expect_raw(made)


# --- many and large ---------------------------------------------------------------------------------------------------
@DIRECTIONS
async def test_ten_thousand_tiny_frames(world, direction):
    """1.4: none lost, none joined: 10,000 tiny frames in one go, and one by one in small writes"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    made = b"".join(masked(TEXT, b"%d" % i) for i in range(10_000))
    await passes(sender, receiver, made)

    async def singly() -> None:
        for i in range(10_000):
            await sender.send(frame(BINARY, b"%05d" % i))

    sending = asyncio.create_task(singly())
    await receiver.expect_raw(b"".join(frame(BINARY, b"%05d" % i) for i in range(10_000)))
    await sending


@DIRECTIONS
@pytest.mark.limit(120)
async def test_frame_of_1_gib_to_a_slow_reader(world, direction):
    """Memory does not depend on frame size: RSS grows by less than 2 MiB while 1 GiB passes to a slow reader"""
    gateway, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    for _ in range(20):  # warm up: code pages, pools
        await passes(sender, receiver, masked(BINARY, os.urandom(300_000)))
    length = 1 << 30
    head = header(BINARY, length, mask=b"\x01\x02\x03\x04")
    block = os.urandom(1_048_573)  # a prime: what comes at a wrong place differs
    twice = memoryview(block + block)
    before = peak = gateway.rss()

    async def produce() -> None:
        await sender.pipe.send(head)
        left = length
        while left:
            size = min(left, len(block))
            await sender.pipe.send(memoryview(block)[:size])
            left -= size

    sending = asyncio.create_task(produce())
    assert await receiver.read_exactly(len(head)) == head
    at = 0
    while at < length:
        data = bytes(receiver.buffer) or await receiver.pipe.recv(131072)
        receiver.buffer.clear()
        assert data, f"ended at {at}"
        offset = at % len(block)
        assert data == twice[offset : offset + len(data)], f"differs within {len(data)} bytes behind {at}"
        at += len(data)
        if (at >> 20) % 8 == 0:
            peak = max(peak, gateway.rss())
            await asyncio.sleep(0.002)
    await sending
    assert at == length
    assert peak - before < 2 << 20, f"RSS grew by {(peak - before) >> 10} KiB"
    await passes(sender, receiver, masked(TEXT, b"and on it goes"))


@DIRECTIONS
async def test_a_frame_with_a_63_bit_length_begins(world, direction):
    """1.4: Only a 64-bit length with its top bit set ends the session"""
    _, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    made = header(BINARY, (1 << 63) - 1, mask=b"abcd") + os.urandom(10_000)
    await passes(sender, receiver, made)
    await receiver.expect_silence(0.2)


@DIRECTIONS
async def test_a_reader_that_pauses_stops_the_sender(world, direction):
    """Back-pressure is TCP's own; nothing is lost by it"""
    gateway, _, client, connection = await world.pair()
    sender, receiver = ends(client, connection, direction)
    data = b"".join(masked(BINARY, os.urandom(50_000)) for _ in range(1000))
    before = gateway.rss()
    sending = asyncio.create_task(sender.send(data, 60))
    await asyncio.sleep(1.5)
    assert not sending.done(), "50 MB were taken from the sender although nobody reads"
    assert gateway.rss() - before < 4 << 20
    await receiver.expect_raw(data)
    await sending


async def test_a_blocked_direction_does_not_stop_the_other(world):
    """1.4: both directions are independent"""
    _, _, client, connection = await world.pair()
    flood = asyncio.create_task(connection.send(b"".join(frame(BINARY, bytes(60_000)) for _ in range(1000)), 60))
    await asyncio.sleep(0.5)
    assert not flood.done()
    for number in range(50):
        made = await client.send_text(f"while blocked {number}")
        await connection.expect_raw(made, 5)
    flood.cancel()


# --- data at the seams ------------------------------------------------------------------------------------------------
async def test_data_right_behind_the_targets_101(world):
    """1.4: what the target sends with its 101 is not lost and comes behind "connected" """
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    behind = random_mix(11, 20, False)
    await connection.send(connection.switching() + behind)
    await client.expect_connected()
    await client.expect_raw(behind)


async def test_101_byte_by_byte_with_data_behind(world):
    """1.4, with an answer that comes in single bytes"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    behind = frame(TEXT, b"first") + frame(PING, b"second")
    await connection.send_slices(connection.switching() + behind)
    await client.expect_connected()
    await client.expect_raw(behind)


async def test_close_right_behind_the_targets_101(world):
    """1.4: … same Close"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    behind = frame(TEXT, b"only word") + frame(CLOSE, frames.close_payload(4321, "over"))
    await connection.send(connection.switching() + behind)
    await client.expect_connected()
    await client.expect_raw(behind)


async def test_data_behind_the_connect_message_and_behind_the_101_at_once(world):
    """1.2 and 1.4 together"""
    gateway, target = await world.gateway(), world.target()
    client = await world.tcp(gateway)
    there, back = random_mix(3, 10, True)[:60_000], random_mix(4, 10, False)
    await client.upgrade(behind=connect_frame({"apiKey": KEY, "url": target.url("/")}) + there)
    connection = await target.accept()
    await connection.read_request()
    await connection.send(connection.switching() + back)
    await client.expect_connected()
    await client.expect_raw(back)
    await client.send(b"\0" * 20)
    got = await connection.read_exactly(len(there))
    assert got == there


async def test_two_sessions_at_once_do_not_mix(world):
    """sessions are apart from each other"""
    gateway, target = await world.gateway(), world.target()
    sessions = [await world.session(gateway, target) for _ in range(20)]

    async def talk(client, connection, seed: int) -> None:
        there, back = random_mix(seed, 30, True), random_mix(seed + 50, 30, False)
        await asyncio.gather(passes(client, connection, there), passes(connection, client, back))

    await asyncio.gather(*(talk(client, connection, seed) for seed, (client, connection) in enumerate(sessions)))
