"""The contract, section 3: who gets which Close, when it goes in, and how the connections end."""
from __future__ import annotations

import asyncio
import os
import time

import pytest

from harness import frames
from harness.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_payload, frame, header, masked


def both_ends(client, connection, direction: str):
    return (client, connection) if direction == "client_to_target" else (connection, client)


DIRECTIONS = pytest.mark.parametrize("direction", ["client_to_target", "target_to_client"])


# --- Close of a peer ----------------------------------------------------------------------------------------------------
CLOSES = {
    "normal": close_payload(1000, "bye"),
    "no code": b"",
    "one byte": b"\x03",
    "code 0": close_payload(0),
    "1005": close_payload(1005),
    "1006": close_payload(1006, "abnormal"),
    "1015": close_payload(1015),
    "4999": close_payload(4999, "ü" * 61),
    "65535": close_payload(65535),
    "bad UTF-8": close_payload(1000, b"\xff\xfe"),
    "too long": close_payload(1000, b"x" * 1000),
}


@DIRECTIONS
@pytest.mark.parametrize("name", CLOSES)
async def test_close_is_forwarded_as_it_is(world, direction, name):
    """target or client sends Close: forwarded as it is, whatever its code, reason or lack of both"""
    _, _, client, connection = await world.pair()
    sender, receiver = both_ends(client, connection, direction)
    made = await sender.send_frame(CLOSE, CLOSES[name])
    await receiver.expect_raw(made)
    answer = await receiver.send_frame(CLOSE, CLOSES[name])
    await sender.expect_raw(answer)
    await client.expect_fin()


@DIRECTIONS
async def test_close_behind_data(world, direction):
    """Everything received before goes out before a Close"""
    _, _, client, connection = await world.pair()
    sender, receiver = both_ends(client, connection, direction)
    made = b"".join(masked(BINARY, os.urandom(3000)) for _ in range(500)) + masked(TEXT, b"open", fin=False) + masked(CLOSE, close_payload(1000))
    sending = asyncio.create_task(sender.send(made))
    await receiver.expect_raw(made)
    await sending


@DIRECTIONS
async def test_nothing_behind_a_peers_close_is_forwarded(world, direction):
    """A peer's Close is forwarded; nothing that this peer sends behind it is."""
    _, _, client, connection = await world.pair()
    sender, receiver = both_ends(client, connection, direction)
    made = masked(CLOSE, close_payload(1000))
    await sender.send(made + masked(TEXT, b"too late") + masked(CLOSE, close_payload(1001)))
    await receiver.expect_raw(made)
    await sender.send(masked(TEXT, b"far too late"))
    await receiver.expect_silence(0.5)


@DIRECTIONS
async def test_the_other_side_may_finish_what_it_is_sending(world, direction):
    """The other side may still finish what it is sending, and has 30 s for its own Close"""
    _, _, client, connection = await world.pair()
    closing, other = both_ends(client, connection, direction)
    cut = masked(BINARY, os.urandom(50_000))
    await other.send(cut[:20_000])
    await closing.expect_raw(cut[:20_000])
    await closing.send_close(1000)
    await other.expect_frame(CLOSE, close_payload(1000))
    await asyncio.sleep(1)
    rest = cut[20_000:] + masked(TEXT, b"more") + masked(CLOSE, close_payload(1000))
    await other.send(rest)
    await closing.expect_raw(rest)
    await client.expect_fin()


@pytest.mark.slow
@pytest.mark.limit(90)
@DIRECTIONS
async def test_close_that_is_not_answered_ends_after_30_s(world, direction):
    """has 30 s for its own Close, from when it has taken the forwarded one; then both connections are closed"""
    _, _, client, connection = await world.pair()
    closing, other = both_ends(client, connection, direction)
    await closing.send_close(1000)
    began = time.monotonic()
    await other.expect_frame(CLOSE, close_payload(1000))
    await asyncio.gather(closing.expect_end(45), other.expect_end(45))
    assert 25 < time.monotonic() - began < 42


@DIRECTIONS
async def test_fin_behind_a_close_is_no_event(world, direction):
    """A FIN after a Close is no event."""
    _, _, client, connection = await world.pair()
    closing, other = both_ends(client, connection, direction)
    made = await closing.send_close(1000, "bye")
    closing.half_close()
    await other.expect_raw(made)
    await other.expect_silence(0.7)
    rest = masked(TEXT, b"still for you") + masked(CLOSE, close_payload(1000))
    await other.send(rest)
    await closing.expect_raw(rest)
    other.half_close()
    await other.expect_end()


@DIRECTIONS
async def test_reset_right_behind_a_close(world, direction):
    """Everything received before goes out: a Close with a reset behind it is a Close"""
    gateway, target = await world.gateway(), world.target()
    for _ in range(10):
        client, connection = await world.session(gateway, target)
        closing, other = both_ends(client, connection, direction)
        made = masked(TEXT, b"data") + masked(CLOSE, close_payload(4000, "x"))
        await closing.send(made)
        closing.reset()
        await other.expect_raw(made)


@DIRECTIONS
async def test_the_server_side_of_each_hop_closes_tcp_first(world, direction):
    """After Close both ways the server side of each hop closes TCP first."""
    _, _, client, connection = await world.pair()
    closing, other = both_ends(client, connection, direction)
    await closing.send_close(1000)
    await other.expect_frame(CLOSE, close_payload(1000))
    await other.send_close(1000)
    await closing.expect_frame(CLOSE, close_payload(1000))
    await client.expect_fin(3)
    await connection.expect_silence(1)
    connection.half_close()
    await connection.expect_end(3)


async def test_a_target_that_never_closes_tcp_is_left_after_a_while(world):
    """Then: shut down the write side, read to the end, close. The 5 s that we wait for … end of TCP"""
    gateway, _, client, connection = await world.pair()
    await client.send_close(1000)
    await connection.expect_frame(CLOSE, close_payload(1000))
    await connection.send_close(1000)
    await client.expect_frame(CLOSE, close_payload(1000))
    await client.expect_fin()
    client.close()
    await connection.expect_end(13)


# --- a peer's TCP ends without a Close -----------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["half_close", "reset", "close"])
async def test_targets_tcp_ends_without_a_close(world, how):
    """target's TCP ends without a Close: client 1011 `Target connection lost`, no error JSON"""
    _, _, client, connection = await world.pair()
    getattr(connection, how)()
    await client.expect_close(1011, "Target connection lost")
    await client.finish(1011)


@pytest.mark.parametrize("how", ["half_close", "reset"])
async def test_clients_tcp_ends_without_a_close(world, how):
    """client's TCP ends without a Close: target 1001 `Client disconnected`"""
    _, _, client, connection = await world.pair()
    getattr(client, how)()
    await connection.expect_close(1001, "Client disconnected")
    await connection.send_close(1001)
    connection.half_close()
    await connection.expect_end()


@DIRECTIONS
@pytest.mark.parametrize("how", ["half_close", "reset"])
async def test_all_that_was_received_goes_out_before_our_close(world, direction, how):
    """Everything received before goes out before a Close; a reset right behind data: what is queued counts as received"""
    gateway, target = await world.gateway(), world.target()
    for size in (10, 3000, 30_000):
        for _ in range(8):
            client, connection = await world.session(gateway, target)
            ending, other = both_ends(client, connection, direction)
            data = masked(BINARY, os.urandom(size)) + masked(TEXT, b"last")
            await ending.send(data)
            getattr(ending, how)()
            await other.expect_raw(data)
            await other.expect_close(1001 if other is connection else 1011)
            other.close()


@DIRECTIONS
async def test_our_close_waits_for_a_slow_reader(world, direction):
    """Everything received before goes out before a Close, also to a slow reader: the 5 s count from its last progress"""
    _, _, client, connection = await world.pair(sizes={"rcvbuf": 16384}, target={"rcvbuf": 16384})
    ending, slow = both_ends(client, connection, direction)
    data = b"".join(masked(BINARY, os.urandom(50_000)) for _ in range(60))

    async def send_and_end() -> None:
        await ending.send(data, 60)
        ending.half_close()

    sending = asyncio.create_task(send_and_end())
    got = bytearray()
    for _ in range(5):
        await asyncio.sleep(2)
        got += await slow.read_exactly(100_000)
    got += await slow.read_exactly(len(data) - len(got))
    assert got == data
    await slow.expect_close(1001 if slow is connection else 1011)
    await sending


@DIRECTIONS
@pytest.mark.parametrize("how", ["half_close", "reset"])
async def test_a_frame_cut_in_its_payload(world, direction, how):
    """If the last frame was cut in the middle, the TCP connection is closed without one (the peer sees 1006), never with made-up bytes"""
    _, _, client, connection = await world.pair()
    ending, other = both_ends(client, connection, direction)
    data = masked(TEXT, b"whole") + masked(BINARY, os.urandom(5000))[:3000]
    await ending.send(data)
    await other.expect_raw(data)
    getattr(ending, how)()
    await other.expect_end(8)


@DIRECTIONS
async def test_a_frame_cut_right_behind_its_header(world, direction):
    """a complete header has begun: closed without a Close"""
    _, _, client, connection = await world.pair()
    ending, other = both_ends(client, connection, direction)
    data = header(BINARY, 5, mask=b"abcd")
    await ending.send(data)
    await other.expect_raw(data)
    ending.half_close()
    await other.expect_end(8)


@DIRECTIONS
@pytest.mark.parametrize("form, cut", [(7, 1), (7, 2), (7, 5), (16, 2), (16, 3), (16, 7), (64, 1), (64, 9), (64, 10), (64, 13)])
async def test_a_frame_cut_in_its_header(world, direction, form, cut):
    """A frame whose header is not complete has not begun: those bytes are dropped, and the Close goes in."""
    _, _, client, connection = await world.pair()
    ending, other = both_ends(client, connection, direction)
    whole = masked(TEXT, b"whole")
    await ending.send(whole + masked(BINARY, b"x" * 100, form=form)[:cut])
    await other.expect_raw(whole)
    await asyncio.sleep(0.1)
    ending.half_close()
    await other.expect_close(1001 if other is connection else 1011)


@DIRECTIONS
async def test_our_close_between_two_fragments(world, direction):
    """A Close of ours goes in only at a frame boundary: between two fragments is one"""
    _, _, client, connection = await world.pair()
    ending, other = both_ends(client, connection, direction)
    first = masked(TEXT, b"part", fin=False)
    await ending.send(first)
    ending.half_close()
    await other.expect_raw(first)
    await other.expect_close(1001 if other is connection else 1011)


async def test_half_closed_client_gets_the_rest(world):
    """The client's FIN without a Close: the target gets 1001 after all that was received, and what the target still sends goes to the client, the target's Close with it"""
    _, _, client, connection = await world.pair()
    asked = await client.send_text("one question")
    client.half_close()
    await connection.expect_raw(asked)
    await connection.expect_close(1001, "Client disconnected")
    rest = b"".join(frame(BINARY, os.urandom(20_000)) for _ in range(20)) + frame(PING, b"") + frame(CLOSE, close_payload(1001, "as you say"))
    await connection.send(rest)
    connection.half_close()
    await client.expect_raw(rest)
    await client.expect_end()


async def test_half_closed_client_gets_the_rest_for_5_s(world):
    """… at most 5 s"""
    _, _, client, connection = await world.pair()
    client.half_close()
    await connection.expect_close(1001, "Client disconnected")
    began = time.monotonic()

    async def chatter() -> None:
        while True:
            await connection.send(frame(TEXT, b"tick"))
            await asyncio.sleep(0.2)

    sending = asyncio.create_task(chatter())
    got = await client.read_to_end(12)
    assert 3.5 < time.monotonic() - began < 9
    assert got.count(b"tick") >= 15, len(got)
    await asyncio.wait([sending], timeout=10)
    assert sending.done(), "the target's connection ends as well"
    sending.exception()


async def test_half_closed_client_in_a_frame(world):
    """FIN in the middle of a frame: no made-up bytes towards the target"""
    _, _, client, connection = await world.pair()
    cut = masked(BINARY, bytes(1000))[:500]
    await client.send(cut)
    client.half_close()
    await connection.expect_raw(cut)
    await connection.expect_end(8)


# --- the form of our Close ---------------------------------------------------------------------------------------------
async def test_our_close_towards_a_target_is_masked_with_a_fresh_key(world):
    """A Close of ours towards a target is masked with a fresh random key, towards a client unmasked"""
    gateway, target = await world.gateway(), world.target()
    masks = set()
    for _ in range(5):
        client, connection = await world.session(gateway, target)
        client.half_close()
        masks.add((await connection.expect_close(1001, "Client disconnected")).mask)
    assert len(masks) == 5 and b"\0\0\0\0" not in masks, masks


@pytest.mark.parametrize("answers", [True, False])
async def test_client_that_got_our_close(world, answers):
    """the 5 s that we wait for a peer's Close; then: shut down the write side, read to the end, close"""
    _, _, client, connection = await world.pair()
    connection.reset()
    await client.expect_close(1011, "Target connection lost")
    began = time.monotonic()
    if answers:
        await client.send_close(1011)
    await client.expect_fin(9)
    took = time.monotonic() - began
    assert took < 2 if answers else 3.5 < took < 8, took


async def test_what_a_side_sends_behind_our_close_is_dropped(world):
    """Once ours is sent to a side … the rest is read and dropped until its Close, which is not forwarded"""
    _, _, client, connection = await world.pair()
    await connection.send(header(TEXT, 1 << 63))
    await connection.expect_close(1002, "Protocol error")
    await client.expect_close(1011, "Target protocol error")
    await client.send(masked(TEXT, b"dropped") * 1000 + masked(CLOSE, close_payload(1011)))
    await client.expect_fin()
    await connection.expect_silence(0.5)


# --- a length with its top bit set ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, (1 << 63) + 5])
@pytest.mark.parametrize("opcode", [TEXT, PING, 7])
async def test_top_bit_from_the_client(world, length, opcode):
    """a frame length with its top bit set: none; sender 1002 `Protocol error`; other side: target 1001 `Client protocol error`"""
    _, _, client, connection = await world.pair()
    before = masked(TEXT, b"fine")
    await client.send(before + header(opcode, length, mask=b"abcd") + b"x" * 100)
    await connection.expect_raw(before)
    await connection.expect_close(1001, "Client protocol error")
    await client.expect_close(1002, "Protocol error")
    await client.finish(1002)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1])
async def test_top_bit_from_the_target(world, length):
    """sender 1002 `Protocol error`; other side: client 1011 `Target protocol error`"""
    _, _, client, connection = await world.pair()
    before = frame(TEXT, b"fine")
    await connection.send(before + header(BINARY, length) + b"x" * 100)
    await client.expect_raw(before)
    await client.expect_close(1011, "Target protocol error")
    await connection.expect_close(1002, "Protocol error")
    await client.finish(1011)


async def test_top_bit_byte_by_byte(world):
    """… wherever a read ends"""
    _, _, client, connection = await world.pair()
    await client.send_slices(header(BINARY, 1 << 63, mask=b"abcd"))
    await connection.expect_close(1001, "Client protocol error")
    await client.expect_close(1002, "Protocol error")


async def test_our_close_waits_for_the_end_of_the_frame_in_progress(world):
    """What that side sends is passed on only to the end of the frame in progress (so that the other side comes to a boundary for its own Close)"""
    _, _, client, connection = await world.pair()
    long = frame(BINARY, os.urandom(50_000))
    await connection.send(long[:20_000])
    await client.expect_raw(long[:20_000])
    await client.send(header(TEXT, 1 << 63, mask=b"abcd"))
    await connection.expect_close(1001, "Client protocol error")
    await client.expect_silence(0.7)
    await connection.send(long[20_000:] + frame(TEXT, b"behind") + frame(CLOSE, close_payload(1001)))
    await client.expect_raw(long[20_000:])
    await client.expect_close(1002, "Protocol error")
    await client.finish(1002)


async def test_our_close_does_not_wait_longer_than_5_s(world):
    """… at most 5 s: then the TCP connection is closed without a Close"""
    _, _, client, connection = await world.pair()
    cut = frame(BINARY, os.urandom(50_000))[:20_000]
    await connection.send(cut)
    await client.expect_raw(cut)
    await client.send(header(TEXT, 1 << 63, mask=b"abcd"))
    began = time.monotonic()
    await connection.expect_close(1001, "Client protocol error")
    await client.expect_end(12)
    assert 3.5 < time.monotonic() - began < 11


# --- idle_timeout ----------------------------------------------------------------------------------------------------------
async def idle(world, seconds: float, **options):
    gateway, target = await world.gateway(), world.target(**options.pop("target", {}))
    return await world.session(gateway, target, idle_timeout=seconds, **options)


async def test_idle_timeout(world):
    """idle_timeout passed without a data message from the target: none; 1000 `Idle timeout` to both sides"""
    client, connection = await idle(world, 1)
    began = time.monotonic()
    await asyncio.gather(client.expect_close(1000, "Idle timeout"), connection.expect_close(1000, "Idle timeout"))
    assert 0.7 < time.monotonic() - began < 3
    await connection.send_close(1000)
    await client.finish(1000)
    connection.half_close()
    await connection.expect_end()


async def test_idle_timeout_of_a_fraction(world):
    """`idle_timeout`: number ≥ 0, seconds"""
    client, _ = await idle(world, 0.4)
    began = time.monotonic()
    await client.expect_close(1000, "Idle timeout")
    assert 0.2 < time.monotonic() - began < 2


async def test_no_idle_timeout_by_default(world):
    """0: none"""
    client, connection = await idle(world, 0)
    await client.expect_silence(3)
    made = await connection.send_frame(TEXT, b"still here")
    await client.expect_raw(made)


async def every(seconds: float, act, count: int = 1000) -> None:
    for _ in range(count):
        await asyncio.sleep(seconds)
        await act()


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_control_frames_do_not_count(world, opcode):
    """control frames do not count"""
    client, connection = await idle(world, 1.5)
    began = time.monotonic()
    sending = asyncio.create_task(every(0.3, lambda: connection.send_frame(opcode, b"alive")))
    while (got := await client.read_frame()).opcode == opcode:
        assert time.monotonic() - began < 4, "kept alive by control frames"
    assert (got.close_code, got.close_reason) == (1000, "Idle timeout"), got
    sending.cancel()


async def test_client_traffic_does_not_count(world):
    """client traffic does not count"""
    client, connection = await idle(world, 1.5)
    sending = asyncio.create_task(every(0.3, lambda: client.send_text("busy")))
    began = time.monotonic()
    await client.expect_close(1000, "Idle timeout")
    assert time.monotonic() - began < 4
    sending.cancel()


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_data_messages_count(world, opcode):
    """idle_timeout passed without a data message from the target"""
    client, connection = await idle(world, 1.5)
    await every(0.6, lambda: connection.send_frame(opcode, b""), 6)
    last = time.monotonic()
    for _ in range(6):
        await client.expect_frame(opcode, b"")
    await client.expect_close(1000, "Idle timeout")
    assert 1 < time.monotonic() - last < 4


async def test_a_long_message_counts_while_it_arrives(world):
    """a long message counts while it arrives"""
    client, connection = await idle(world, 1.5)
    made = frame(BINARY, os.urandom(10_000))
    for at in range(0, len(made), 2000):
        await asyncio.sleep(0.7)
        await connection.send(made[at : at + 2000])
    last = time.monotonic()
    await client.expect_raw(made)
    await client.expect_close(1000, "Idle timeout")
    assert 1 < time.monotonic() - last < 4


async def test_a_message_in_fragments_counts_while_it_arrives(world):
    """a long message counts while it arrives, in fragments too"""
    client, connection = await idle(world, 1.5)
    parts = [frame(TEXT, b"a", fin=False), frame(CONTINUATION, b"b", fin=False), frame(CONTINUATION, b"c", fin=False), frame(CONTINUATION, b"d", fin=False), frame(CONTINUATION, b"e")]
    for part in parts:
        await asyncio.sleep(0.7)
        await connection.send(part)
    await client.expect_raw(b"".join(parts))
    await client.expect_close(1000, "Idle timeout")


async def test_idle_in_the_middle_of_a_frame(world):
    """A Close of ours goes in only at a frame boundary: a target that stalls inside a frame gets it, the client when the frame has ended"""
    client, connection = await idle(world, 1)
    made = frame(BINARY, os.urandom(3000))
    await connection.send(made[:1000])
    await connection.expect_close(1000, "Idle timeout")
    await client.expect_raw(made[:1000])
    await client.expect_silence(0.5)
    await connection.send(made[1000:] + frame(TEXT, b"behind"))
    await client.expect_raw(made[1000:])
    await client.expect_close(1000, "Idle timeout")


async def test_idle_while_the_client_is_in_a_frame(world):
    """What that side sends is passed on only to the end of the frame in progress (so that the other side comes to a boundary for its own Close)"""
    client, connection = await idle(world, 1)
    made = masked(BINARY, os.urandom(3000))
    await client.send(made[:1000])
    await client.expect_close(1000, "Idle timeout")
    await connection.expect_raw(made[:1000])
    await connection.expect_silence(0.5)
    await client.send(made[1000:] + masked(TEXT, b"behind") + masked(CLOSE, close_payload(1000)))
    await connection.expect_raw(made[1000:])
    await connection.expect_close(1000, "Idle timeout")
    await client.expect_end()


async def test_idle_clock_stands_still_for_a_slow_client(world):
    """The idle clock stands still while data from the target waits for a slow client, and starts anew when it has been taken."""
    client, connection = await idle(world, 1.5, sizes={"rcvbuf": 16384}, target={"sndbuf": 65536})
    data = b"".join(frame(BINARY, os.urandom(60_000)) for _ in range(300))
    sending = asyncio.create_task(connection.send(data, 60))
    await asyncio.sleep(4)
    assert not sending.done(), "the data does not wait: the test shows nothing"
    # The last of it is more than the client's window, so that some still waits at this moment.
    await client.expect_raw(data[:-200_000])
    waits = time.monotonic()
    await client.expect_raw(data[-200_000:])
    await sending
    await connection.expect_close(1000, "Idle timeout")
    assert time.monotonic() - waits > 1.5, "the clock did not start anew"
    await client.expect_close(1000, "Idle timeout")


async def test_a_client_that_is_gone_when_its_target_answers(world):
    """client's TCP ends without a Close: target 1001 `Client disconnected`, also where "connected" cannot be sent any more"""
    gateway, target = await world.gateway(), world.target()
    ahead = b"".join(masked(BINARY, os.urandom(1000)) for _ in range(120))
    for _ in range(10):
        client, connection = await world.dialling(gateway, target)
        await client.send(ahead)
        # More than 64 KiB wait, so that the gateway looks for a reset four times a second only. Where it looks in just
        # that moment, the dial is given up, and nothing is shown.
        await asyncio.sleep(0.3)
        client.pipe.reset()
        await connection.send(connection.switching())
        got = await connection.read_to_end()
        if got:
            break
    assert ahead.startswith(got[:60_000]), "what came before goes first"
    assert connection_close(got) == (1001, "Client disconnected")


def connection_close(got: bytes) -> tuple[int, str]:
    """What the last frame, a masked Close, says."""
    mask, payload = got[-25:-21], got[-21:]
    assert got[-27:-25] == bytes([0x88, 0x80 | 21]), got[-40:]
    payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return int.from_bytes(payload[:2]), payload[2:].decode()


# --- slow peers ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.limit(150)
@DIRECTIONS
async def test_a_peer_that_does_not_read_for_a_while_is_no_dead_peer(world, direction):
    """A peer that reads slowly, or not at all for a while, is no dead peer."""
    _, _, client, connection = await world.pair(sizes={"rcvbuf": 16384}, target={"rcvbuf": 16384})
    sender, receiver = both_ends(client, connection, direction)
    data = b"".join(masked(BINARY, os.urandom(60_000)) for _ in range(400))
    sending = asyncio.create_task(sender.send(data, 120))
    await asyncio.sleep(70)
    assert not sending.done()
    await receiver.expect_raw(data)
    await sending


@pytest.mark.slow
@pytest.mark.limit(150)
async def test_our_close_waits_60_s_in_all(world):
    """the 5 s … count from its last progress (bytes that its TCP acknowledged), 60 s in all"""
    _, _, client, connection = await world.pair(sizes={"rcvbuf": 4096})
    data = b"".join(frame(BINARY, os.urandom(496)) for _ in range(300))
    await connection.send(data)
    await asyncio.sleep(0.5)
    await client.send(header(TEXT, 1 << 63, mask=b"abcd"))
    await connection.expect_close(1001, "Client protocol error")
    began, got = time.monotonic(), 0
    try:
        while time.monotonic() - began < 90:
            # Fast enough that the window, which opens 6 KiB at a time, opens within every 5 s.
            piece = await asyncio.wait_for(client.pipe.recv(1400), 10)
            got += len(piece)
            if not piece:
                break
            await asyncio.sleep(0.7)
    except OSError:
        pass
    took = time.monotonic() - began
    assert 50 < took < 85, f"ended after {took:.0f} s with {got} of {len(data)} bytes"
    assert got < len(data)


async def test_flood_behind_an_error_is_dropped(world):
    """After an error the held frames are read and dropped until the client closes, at most 5 s: also behind a length that nobody can follow"""
    gateway = await world.gateway(workers=1)
    for first in (b"", header(TEXT, 1 << 63, mask=b"abcd")):
        client = await world.client(gateway)
        await client.connect({"apiKey": "wrong", "url": "ws://127.0.0.1:1/"})
        assert (await client.read_json())["code"] == "invalid_key"
        await client.expect_close(1008)
        rss, sent, highest = gateway.rss(), 0, 0
        block = masked(BINARY, bytes(1 << 20))
        try:
            await client.send(first)
            while sent < 256 << 20:
                await client.send(block, 5)
                sent += len(block)
                highest = max(highest, gateway.rss())
        except (OSError, TimeoutError):
            pass
        assert sent > 16 << 20, "less was taken than would show anything"
        assert highest - rss < 8 << 20, f"{(highest - rss) >> 20} MiB behind {first!r}"
