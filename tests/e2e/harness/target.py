"""A WebSocket server of raw bytes that does nothing by itself: a test accepts, reads, answers and breaks it by hand."""
from __future__ import annotations

import asyncio
import socket
import ssl

from . import frames
from .client import accept_of
from .wire import PATIENCE_S, PlainPipe, TlsPipe, Wire


class TargetConnection(Wire):
    """One connection that the gateway's agent made."""

    head: bytes = b""

    async def read_request(self, patience: float = PATIENCE_S) -> bytes:
        """The request head, byte for byte."""
        self.head = await self.read_until(b"\r\n\r\n", patience)
        return self.head

    @property
    def request_line(self) -> str:
        return self.head.split(b"\r\n")[0].decode("latin-1")

    @property
    def header_lines(self) -> list[str]:
        return self.head.decode("latin-1").split("\r\n")[1:-2]

    def header(self, name: str) -> str | None:
        """The one value of this name; two lines of it are a failure."""
        found = [line.partition(":")[2].strip() for line in self.header_lines if line.partition(":")[0].lower() == name.lower()]
        assert len(found) <= 1, f"{name} stands {len(found)} times: {self.header_lines}"
        return found[0] if found else None

    def switching(self, extra: str = "", accept: str | None = None) -> bytes:
        """A right 101 for the request that was read."""
        accept = accept_of(self.header("Sec-WebSocket-Key")) if accept is None else accept
        return f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n{extra}\r\n".encode("latin-1")

    async def open(self, extra: str = "", behind: bytes = b"") -> "TargetConnection":
        """Reads the request and answers 101; `behind` goes out in the same write."""
        await self.read_request()
        await self.send(self.switching(extra) + behind)
        return self


class Target:
    """A listening socket; connections wait in its queue until `accept`."""

    pipe = TlsPipe
    """How `wss://` connections are taken."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, *, port: int = 0, rcvbuf: int | None = None, sndbuf: int | None = None):
        self.tls = tls
        self.host = host
        self.sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if rcvbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        if sndbuf:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        self.sock.bind((host, port))
        self.sock.listen(1024)
        self.sock.setblocking(False)
        self.port = self.sock.getsockname()[1]
        self.connections: list[TargetConnection] = []
        self.tasks: list[asyncio.Task] = []

    def url(self, rest: str = "/", host: str | None = None) -> str:
        host = host or (f"[{self.host}]" if ":" in self.host else self.host)
        return f"{'wss' if self.tls else 'ws'}://{host}:{self.port}{rest}"

    async def accept_tcp(self, patience: float = PATIENCE_S) -> socket.socket:
        """The next connection, TLS not begun."""
        try:
            sock, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(self.sock), patience)
        except TimeoutError:
            raise AssertionError(f"the target was not dialled for {patience} s") from None
        return sock

    async def accept(self, patience: float = PATIENCE_S) -> TargetConnection:
        sock = await self.accept_tcp(patience)
        pipe = await asyncio.wait_for(self.pipe.accept(sock, self.tls), patience) if self.tls else PlainPipe(sock)
        connection = TargetConnection(pipe)
        self.connections.append(connection)
        return connection

    async def expect_no_dial(self, seconds: float = 0.5) -> None:
        try:
            sock = await self.accept_tcp(seconds)
        except AssertionError:
            return
        sock.close()
        raise AssertionError("the target was dialled")

    # --- an echo in the background --------------------------------------------------------------------------------
    def serve_echo(self) -> "Target":
        """From now on every connection is opened and its messages come back, until the target is closed."""
        self.tasks.append(asyncio.create_task(self._serve_echo()))
        return self

    async def _serve_echo(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self.sock)
            self.tasks.append(asyncio.create_task(self._echo(sock)))

    async def _echo(self, sock: socket.socket) -> None:
        patience = 3600.0
        connection = TargetConnection(PlainPipe(sock) if not self.tls else await self.pipe.accept(sock, self.tls))
        self.connections.append(connection)
        try:
            await connection.open()
            while True:
                got = await connection.read_frame(patience)
                if got.opcode == frames.PING:
                    await connection.send(frames.frame(frames.PONG, got.payload))
                elif got.opcode != frames.PONG:
                    await connection.send(frames.frame(got.opcode, got.payload, fin=got.fin))
                if got.opcode == frames.CLOSE:
                    break
        except Exception:
            pass
        finally:
            connection.close()

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        for connection in self.connections:
            connection.close()
        self.sock.close()
