"""A TLS connection, either side of it, over a socket that is driven directly: what is not asked for stays in the kernel."""
from __future__ import annotations

import asyncio
import socket
import ssl

from .wire import PlainPipe


class SecurePipe(PlainPipe):
    """Ends of its TCP and of its TLS are apart: `half_close` and `close` send no close_notify, `say_goodbye` does."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server: bool, name: str | None = "localhost", session: ssl.SSLSession | None = None):
        super().__init__(sock)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=server, server_hostname=None if server else name, session=session)
        self.close_notified = False
        """The peer has sent its close_notify."""
        self._sending = asyncio.Lock()

    @classmethod
    async def connect(cls, sock: socket.socket, context: ssl.SSLContext, **options) -> "SecurePipe":
        pipe = cls(sock, context, server=False, **options)
        await pipe.handshake()
        return pipe

    @classmethod
    async def accept(cls, sock: socket.socket, context: ssl.SSLContext) -> "SecurePipe":
        pipe = cls(sock, context, server=True)
        await pipe.handshake()
        return pipe

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                return await self.flush()
            except ssl.SSLWantReadError:
                await self.flush()
                if not await self.pull():
                    raise ConnectionResetError("the connection ended in the handshake") from None
            except ssl.SSLError:
                await self.flush()  # an alert
                raise

    async def pull(self) -> bool:
        """Takes ciphertext once; False at FIN. Cancelling it loses nothing."""
        data = await super().recv(65536)
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()
        return bool(data)

    async def flush(self) -> None:
        async with self._sending:
            if self.outgoing.pending:
                await super().send(self.outgoing.read())

    async def recv(self, count: int) -> bytes:
        while True:
            try:
                data = self.tls.read(count)
                if not data:
                    self.close_notified = True
                return data
            except ssl.SSLWantReadError:
                # Not behind a send that waits: both directions are independent.
                if self.outgoing.pending and not self._sending.locked():
                    await self.flush()
                if not await self.pull():
                    return b""
            except ssl.SSLZeroReturnError:
                self.close_notified = True
                return b""
            except ssl.SSLEOFError:
                return b""

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        for at in range(0, len(view), 1 << 20):
            self.tls.write(view[at : at + (1 << 20)])
            await self.flush()

    async def say_goodbye(self) -> None:
        """close_notify, while we go on reading and the TCP connection stays."""
        try:
            self.tls.unwrap()
        except (ssl.SSLWantReadError, ssl.SSLSyscallError):
            pass
        await self.flush()
