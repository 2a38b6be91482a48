"""A gateway of raw sockets that an agent links to: a test takes links and channels, and says every message itself."""
from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct

from .secure import SecurePipe
from .wire import PATIENCE_S, PlainPipe, Wire

class Link(Wire):
    """A control link or a data channel, from its request on. On a data channel the gateway is the client."""

    masks = True
    head = ""

    async def read_request(self) -> "Link":
        self.head = (await self.read_until(b"\r\n\r\n")).decode("latin-1")
        return self

    @property
    def path(self) -> str:
        return self.head.split(" ")[1]

    @property
    def fields(self) -> dict[str, str]:
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in self.head.split("\r\n")[1:-2])}

    async def answer(self, status: int, fields: dict[str, str] | None = None, body: bytes = b"", behind: bytes = b"") -> "Link":
        fields = {**(fields or {}), **({"Content-Length": str(len(body))} if status != 101 else {})}
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        await self.send("\r\n".join(lines).encode() + body + behind)
        return self

    async def say(self, message: dict, behind: bytes = b"") -> None:
        await self.send(encode(message) + behind)

    async def hear(self, patience: float = PATIENCE_S) -> dict:
        """The next message."""
        (length,) = struct.unpack("!I", await self.read_exactly(4, patience))
        return json.loads(await self.read_exactly(length, patience))

    async def hear_of(self, kind: str, patience: float = PATIENCE_S) -> dict:
        """The next message of this type; those in front of it are passed over."""
        async with asyncio.timeout(patience):
            while (got := await self.hear(patience))["type"] != kind:
                pass
        return got

    async def hear_exactly(self, *kinds: str) -> dict:
        """The next messages are of these types; gives the last."""
        for kind in kinds:
            got = await self.hear()
            assert got["type"] == kind, got
        return got


def encode(message: dict) -> bytes:
    text = json.dumps(message).encode()
    return struct.pack("!I", len(text)) + text


def request_for(url: str, **more) -> dict:
    host = url.split("//")[1].split("/")[0]
    return {"session": "00ff00ff00ff00ff", "url": url, "host": ["Host", host], "headers": [], "subprotocols": [], "timeout_ms": 15000, **more}


class FakeGateway:
    def __init__(self, instance: str = "instance-1", channels: int = 2, tls: ssl.SSLContext | None = None, port: int = 0):
        self.instance, self.channels, self.tls = instance, channels, tls
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("127.0.0.1", port))
        self.sock.listen(256)
        self.sock.setblocking(False)
        self.port = self.sock.getsockname()[1]
        self.links: list[Link] = []
        self.answer_control = self.answer_data = True
        """Whether requests of that kind get a 101 by themselves."""
        self.waiting: dict[str, asyncio.Queue[Link]] = {"control": asyncio.Queue(), "data": asyncio.Queue()}
        self.task = asyncio.create_task(self._serve())
        self.tasks: set[asyncio.Task] = set()

    @property
    def url(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}/agent"

    @property
    def accepted(self) -> dict[str, str]:
        return {"Connection": "Upgrade", "Upgrade": "ringway", "Ringway-Protocol": "1", "Ringway-Instance": self.instance, "Ringway-Channels": str(self.channels)}

    async def _serve(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self.sock)
            task = asyncio.create_task(self._take(sock))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _take(self, sock: socket.socket) -> None:
        try:
            link = Link(await SecurePipe.accept(sock, self.tls) if self.tls else PlainPipe(sock))
            self.links.append(link)
            await link.read_request()
            kind = link.path.rpartition("/")[2]
            if self.answer_control if kind == "control" else self.answer_data:
                await link.answer(101, self.accepted if kind == "control" else {"Connection": "Upgrade", "Upgrade": "ringway"})
            self.waiting[kind].put_nowait(link)
        except Exception:
            sock.close()

    async def control(self, patience: float = PATIENCE_S) -> Link:
        """The next control link."""
        return await self._next("control", patience)

    async def channel(self, patience: float = PATIENCE_S) -> Link:
        """The next data channel."""
        return await self._next("data", patience)

    async def _next(self, kind: str, patience: float) -> Link:
        try:
            return await asyncio.wait_for(self.waiting[kind].get(), patience)
        except TimeoutError:
            raise AssertionError(f"no {kind} link for {patience} s") from None

    def stop_listening(self) -> None:
        self.task.cancel()
        self.sock.close()

    def close(self) -> None:
        self.stop_listening()
        for task in list(self.tasks):
            task.cancel()
        for link in self.links:
            link.close()
