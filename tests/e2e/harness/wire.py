"""A TCP or TLS connection of which a test controls every byte: nothing is read or answered unless asked."""
from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct

from . import frames

PATIENCE_S = 15.0
"""How long an awaited event may take before the test fails: generous, since the machine is shared."""


class Lost(Exception):
    """The connection ended (by FIN or reset) where more was awaited."""


class PlainPipe:
    """A non-blocking socket driven directly, so that what the kernel has not been asked for stays unread."""

    def __init__(self, sock: socket.socket):
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock

    async def recv(self, count: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, count)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


class TlsPipe:
    """The server side of a TLS connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer

    @classmethod
    async def accept(cls, sock: socket.socket, context: ssl.SSLContext) -> "TlsPipe":
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=context)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def recv(self, count: int) -> bytes:
        return await self.reader.read(count)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def half_close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.transport.abort()


class Wire:
    """Frames and heads on top of a pipe. `masks` says whether frames that we make are masked (a client's are)."""

    masks = False

    def __init__(self, pipe: PlainPipe | TlsPipe):
        self.pipe = pipe
        self.buffer = bytearray()

    # --- sending -----------------------------------------------------------------------------------------------
    async def send(self, data: bytes, patience: float = PATIENCE_S) -> None:
        await asyncio.wait_for(self.pipe.send(data), patience)

    async def send_frame(self, opcode: int, payload: bytes = b"", **bits) -> bytes:
        made = frames.masked(opcode, payload, **bits) if self.masks else frames.frame(opcode, payload, **bits)
        await self.send(made)
        return made

    async def send_text(self, text: str | bytes) -> bytes:
        return await self.send_frame(frames.TEXT, text.encode() if isinstance(text, str) else text)

    async def send_close(self, code: int | None = 1000, reason: str | bytes = b"") -> bytes:
        return await self.send_frame(frames.CLOSE, frames.close_payload(code, reason))

    async def send_slices(self, data: bytes, size: int = 1) -> None:
        """`data` in many small TCP segments."""
        for at in range(0, len(data), size):
            await self.send(data[at : at + size])
            await asyncio.sleep(0)

    async def pour(self, block: bytes) -> None:
        """Sends the same for ever."""
        while True:
            await self.send(block, 30)

    async def drop(self) -> None:
        """Reads all that comes, up to FIN, and keeps none of it."""
        while await self.pipe.recv(1 << 20):
            pass

    async def part(self, other: "Wire", code: int = 1000) -> tuple[bytes, bytes]:
        """The end of a session as it should be: this end closes, the other answers, both hang up. Gives their Closes as
        they were sent."""
        close = await self.send_close(code)
        await other.expect_close(code)
        answer = await other.send_close(code)
        await self.expect_close(code)
        self.close()
        other.close()
        return close, answer

    def half_close(self) -> None:
        """FIN, while we go on reading."""
        self.pipe.half_close()

    def reset(self) -> None:
        """RST."""
        self.pipe.reset()

    def close(self) -> None:
        self.pipe.close()

    # --- receiving ---------------------------------------------------------------------------------------------
    async def fill(self, patience: float = PATIENCE_S) -> bool:
        """Reads once into the buffer; False at FIN or reset."""
        try:
            data = await asyncio.wait_for(self.pipe.recv(262144), patience)
        except (ConnectionError, ssl.SSLError):
            return False
        except TimeoutError:
            raise AssertionError(f"nothing came for {patience} s; so far unread: {bytes(self.buffer[:200])!r}") from None
        self.buffer += data
        return bool(data)

    async def read_exactly(self, count: int, patience: float = PATIENCE_S) -> bytes:
        while len(self.buffer) < count:
            if not await self.fill(patience):
                raise Lost(f"ended after {len(self.buffer)} of {count} bytes: {bytes(self.buffer[:200])!r}")
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    async def read_until(self, mark: bytes, patience: float = PATIENCE_S) -> bytes:
        while mark not in self.buffer:
            if not await self.fill(patience):
                raise Lost(f"ended before {mark!r}: {bytes(self.buffer[:200])!r}")
        return await self.read_exactly(self.buffer.index(mark) + len(mark))

    async def read_frame(self, patience: float = PATIENCE_S) -> frames.Frame:
        while (found := frames.parse(self.buffer)) is None:
            if not await self.fill(patience):
                raise Lost(f"ended where a frame was awaited; unread: {bytes(self.buffer[:200])!r}")
        del self.buffer[: len(found.raw)]
        return found

    async def read_json(self, patience: float = PATIENCE_S) -> dict:
        got = await self.read_frame(patience)
        assert (got.opcode, got.fin, got.rsv) == (frames.TEXT, True, 0), got
        assert got.mask is None, "what a gateway sends to a client is not masked"
        return json.loads(got.payload)

    async def read_to_end(self, patience: float = PATIENCE_S) -> bytes:
        """All bytes up to FIN or reset."""
        while await self.fill(patience):
            pass
        taken = bytes(self.buffer)
        self.buffer.clear()
        return taken

    async def expect_frame(self, opcode: int, payload: bytes, patience: float = PATIENCE_S) -> frames.Frame:
        got = await self.read_frame(patience)
        assert (got.opcode, got.payload) == (opcode, payload), got
        return got

    async def expect_raw(self, data: bytes, patience: float = PATIENCE_S) -> None:
        """The next bytes are exactly these."""
        got = await self.read_exactly(len(data), patience)
        assert got == data, f"{got[:100]!r} is not {data[:100]!r}"

    async def expect_close(self, code: int | None, reason: str | None = None, patience: float = PATIENCE_S) -> frames.Frame:
        got = await self.read_frame(patience)
        assert got.opcode == frames.CLOSE, got
        assert (got.fin, got.rsv) == (True, 0), got
        assert got.close_code == code, got
        if reason is not None:
            assert got.close_reason == reason, got
        assert (got.mask is None) == self.masks, f"masking of {got} towards a {type(self).__name__}"
        return got

    async def expect_end(self, patience: float = PATIENCE_S) -> None:
        """The connection ends and nothing comes before that."""
        rest = await self.read_to_end(patience)
        assert rest == b"", f"unexpected: {rest[:200]!r}"

    async def expect_fin(self, patience: float = PATIENCE_S) -> None:
        """As `expect_end`, and a reset is a failure."""
        assert not self.buffer, f"unexpected: {bytes(self.buffer[:200])!r}"
        data = await asyncio.wait_for(self.pipe.recv(65536), patience)
        assert data == b"", f"unexpected: {data[:200]!r}"

    async def expect_silence(self, seconds: float) -> None:
        """Nothing comes, and the connection stays, for so long."""
        assert not self.buffer, f"unexpected: {bytes(self.buffer[:200])!r}"
        try:
            data = await asyncio.wait_for(self.pipe.recv(65536), seconds)
        except TimeoutError:
            return
        raise AssertionError(f"silence was awaited, not {data[:200]!r}")
