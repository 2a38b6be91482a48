"""Long runs of frames, made from a seed: sent in pieces that are cut anywhere, and compared byte for byte with what arrives.

Nothing large is held: payloads are places in one block of noise. What is called masked has a masking key and no other
payload for it, since only an endpoint could tell.
"""
from __future__ import annotations

import asyncio
import hashlib
import os
import random
from bisect import bisect_right
from collections import Counter
from functools import cache

from . import frames
from .wire import Lost, Wire

KIB, MIB = 1 << 10, 1 << 20
LARGEST = 16 * MIB
SEED = int(os.environ.get("RINGWAY_TEST_SEED", "0"))
"""The first seed of tests that take several: another one for other bytes, cuts and moments. A test's name has its seed."""

AWKWARD = [0, 1, 125, 126, 127, 65535, 65536, *(size * KIB + off for size in (64, 128, 1024) for off in (-15, -14, -1, 0, 1))]
"""Where the length form changes, where a frame with or without its header fills a buffer, where a frame counts as large."""
DATA = [frames.CONTINUATION, frames.TEXT, frames.BINARY]
OPCODES = {0: "continuation", 1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}
"""Their names in metrics; all others are `reserved`."""


def seeds(count: int) -> range:
    return range(SEED, SEED + count)


@cache
def noise() -> bytes:
    return random.Random(0).randbytes(LARGEST + 65_521)


class Stream:
    """What one side sends."""

    def __init__(self, seed: object, *, masks: bool):
        self.random = random.Random(f"{seed} {masks}")
        self.masks = masks
        self.parts: list[bytes | memoryview] = []
        self.places: list[int] = []
        """Where each part begins."""
        self.starts: list[int] = []
        """Where each frame begins."""
        self.length = 0
        self.counts: Counter[str] = Counter()
        self.sent = self.came = 0

    # --- making ------------------------------------------------------------------------------------------------
    def raw(self, part: bytes | memoryview) -> "Stream":
        """Bytes that are no frame, or the rest of one."""
        if part:
            self.places.append(self.length)
            self.parts.append(part)
            self.length += len(part)
        return self

    def head(self, opcode: int, size: int, **bits) -> "Stream":
        """A frame's header; whatever comes behind it is its payload."""
        self.starts.append(self.length)
        self.counts[OPCODES.get(opcode, "reserved")] += 1
        return self.raw(frames.header(opcode, size, mask=self.random.randbytes(4) if self.masks else None, **bits))

    def frame(self, size: int, opcode: int = frames.BINARY, **bits) -> "Stream":
        self.head(opcode, size, **bits)
        at = self.random.randrange(len(noise()) - size)
        return self.raw(memoryview(noise())[at : at + size])

    def close(self, code: int = 1000, reason: bytes | str = b"") -> "Stream":
        """A Close, the one frame whose payload must be what its masking key says: relays look at the code."""
        payload = frames.close_payload(code, reason)
        self.head(frames.CLOSE, len(payload))
        return self.raw(frames.apply_mask(payload, self.parts[-1][-4:]) if self.masks else payload)

    def any_frame(self, size: int) -> "Stream":
        """One of any opcode but Close, of any form, with any bits."""
        chance = self.random
        opcode = chance.choice(DATA) if chance.random() < 0.7 else chance.choice([3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15])
        form = chance.choice([64, *([16] if size < 65536 else []), *([7] if size < 126 else [])]) if chance.random() < 0.3 else None
        return self.frame(size, opcode, fin=chance.random() < 0.7, rsv=chance.choice([0, 0, 0, 4, 7, 1]), form=form)

    def mix(self, volume: int, *, largest: int = LARGEST) -> "Stream":
        """Runs of small frames, some large ones, small ones again: about so many bytes, and the largest frame among them."""
        chance, end, whole = self.random, self.length + volume, False
        while self.length < end:
            kind = chance.randrange(5)
            if kind < 2:
                for _ in range(chance.choice([1, 2, 3, 4, 5, 6, 40])):
                    self.any_frame(chance.choice([0, 1, 125, 126, 127, chance.randrange(200), chance.randrange(5000)]))
            elif kind == 2:
                for _ in range(chance.randrange(1, 8)):
                    self.any_frame(chance.randrange(70_000))
            elif kind == 3:
                for _ in range(chance.randrange(1, 6)):
                    self.any_frame(min(chance.choice(AWKWARD), largest))
            else:
                for _ in range(chance.randrange(1, 4)):
                    self.any_frame(min(chance.randrange(100_000, chance.choice([200_000, 2 * MIB])), largest))
            if not whole and self.length > chance.randrange(end):
                whole, end = True, end + largest
                self.any_frame(largest).any_frame(chance.randrange(10))
        return self if whole else self.any_frame(largest)

    # --- looking at it -----------------------------------------------------------------------------------------
    def slice(self, at: int, end: int) -> bytes:
        end = min(end, self.length)
        index = bisect_right(self.places, at) - 1
        got = []
        while at < end:
            part, place = self.parts[index], self.places[index]
            got.append(memoryview(part)[at - place : end - place])
            at = place + len(part)
            index += 1
        return b"".join(got)

    def begins(self, at: int) -> int:
        """Where the frame begins that has the byte at this place, or that begins there."""
        return self.starts[bisect_right(self.starts, at) - 1] if self.starts else 0

    def is_boundary(self, at: int) -> bool:
        return at == self.length or self.begins(at) == at

    def header_length(self, start: int) -> int:
        second = self.slice(start + 1, start + 2)[0]
        return 2 + {126: 2, 127: 8}.get(second & 0x7F, 0) + (4 if second & 0x80 else 0)

    def passed(self, cut: int) -> int:
        """How much of it goes on where it ends at `cut`: all but the beginning of a header."""
        start = self.begins(cut) if cut < self.length else cut
        return start if start < cut < start + self.header_length(start) else cut

    def where(self, at: int) -> str:
        if at >= self.length or not self.starts:
            return f"{at} of {self.length}"
        start = self.begins(at)
        return f"{at} of {self.length}, {at - start} behind the beginning of frame {self.starts.index(start)} of {len(self.starts)}, {self.slice(start, start + 14).hex(' ')}"

    # --- sending -----------------------------------------------------------------------------------------------
    def cuts(self, end: int):
        """Ends of pieces of all sizes, many of them inside a header."""
        chance, at = self.random, self.sent
        while at < end:
            at += chance.choice([chance.randrange(1, 16), chance.randrange(1, 5000), chance.randrange(1, 200_000), chance.randrange(1, 2 * MIB), chance.randrange(1, 2 * MIB)])
            index = bisect_right(self.starts, at)
            if chance.random() < 0.4 and index < len(self.starts):
                at = self.starts[index] + chance.randrange(14)
            yield min(at, end)

    async def send(self, wire: Wire, upto: int | None = None) -> None:
        """In pieces, some of them with a moment between them in which the relay has taken what was sent."""
        for end in self.cuts(self.length if upto is None else upto):
            await wire.pipe.send(self.slice(self.sent, end))
            self.sent = end
            await asyncio.sleep(self.random.random() * 0.002 if self.random.random() < 0.15 else 0)

    async def send_slices(self, wire: Wire, around: int = 20) -> None:
        """Byte by byte where frames begin and end, in one piece between that."""
        for start, end in zip([0, *self.starts], [*self.starts, self.length]):
            single = [*range(start, min(start + around, end)), *range(max(start + around, end - around), end)]
            at = start
            for place in single:
                for upto in (place, place + 1):
                    if at < upto:
                        await wire.pipe.send(self.slice(at, upto))
                        await asyncio.sleep(0)
                        at = upto
            self.sent = end

    # --- receiving ---------------------------------------------------------------------------------------------
    async def expect(self, wire: Wire, upto: int | None = None, patience: float = 40.0, each: int = 256 * KIB) -> None:
        """It arrives, up to there, and not a byte is another one; more of it may be expected later."""
        upto = self.length if upto is None else upto
        there, here = hashlib.sha256(), hashlib.sha256()
        try:
            async with asyncio.timeout(patience):
                while self.came < upto:
                    got = await self._read(wire, min(each, upto - self.came))
                    want = self.slice(self.came, self.came + len(got))
                    if got != want:
                        at = next(index for index, (one, other) in enumerate(zip(got, want)) if one != other)
                        raise AssertionError(f"differs at {self.where(self.came + at)}: {got[at : at + 20].hex(' ')} came for {want[at : at + 20].hex(' ')}")
                    there.update(want)
                    here.update(got)
                    self.came += len(got)
                    await asyncio.sleep(0)
        except TimeoutError:
            raise AssertionError(f"not all came within {patience} s: it stands at {self.where(self.came)}; sent: {self.sent}") from None
        assert here.digest() == there.digest()

    async def _read(self, wire: Wire, count: int) -> bytes:
        if wire.buffer:
            got = bytes(wire.buffer[:count])
            del wire.buffer[:count]
            return got
        try:
            got = await wire.pipe.recv(count)
        except ConnectionError as error:
            raise Lost(f"{error!r} at {self.where(self.came)}") from None
        if not got:
            raise Lost(f"ended at {self.where(self.came)}")
        return got

    async def expect_cut(self, wire: Wire, patience: float = 40.0) -> bool:
        """Some of it arrives, from its beginning on, and then the connection ends (False), or something else comes
        (True), which is left in the wire's buffer. `came` says how much of it came."""
        try:
            async with asyncio.timeout(patience):
                while True:
                    try:
                        got = await self._read(wire, 256 * KIB)
                    except Lost:
                        return False
                    want = self.slice(self.came, self.came + len(got))
                    if got != want:
                        same = len(os.path.commonprefix([got, want]))
                        self.came += same
                        wire.buffer[:0] = got[same:]
                        return True
                    self.came += len(got)
                    await asyncio.sleep(0)
        except TimeoutError:
            raise AssertionError(f"no end within {patience} s: it stands at {self.where(self.came)}; sent: {self.sent}") from None


async def exchange(client: Wire, connection: Wire, there: Stream, back: Stream, **options) -> None:
    """Both at the same time, all of them."""
    await together(there.send(client), back.send(connection), there.expect(connection, **options), back.expect(client, **options))


async def together(*jobs) -> None:
    """As `asyncio.gather`, but one that fails ends the others, so that none of them goes on with a connection."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
