"""An agent that does what a test says, over raw connections: what no real agent would do, a gateway must bear."""
from __future__ import annotations

import asyncio
import json
import struct

from .client import KEY  # noqa: F401  (tests that use this module use it too)
from .process import TOKEN
from .wire import PATIENCE_S


def message(fields: dict) -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack(">I", len(text)) + text


class Link:
    """One connection to `/agent/control` or `/agent/data`, its upgrade answered."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer
        self.status = 0
        self.head: dict[str, str] = {}
        self.body = b""
        self._hearing: asyncio.Task | None = None

    @classmethod
    async def open(cls, port: int, path: str, headers: dict[str, str | None], upgrade: str | None = "ringway") -> "Link":
        link = cls(*await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), PATIENCE_S))
        lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += ["Connection: Upgrade", f"Upgrade: {upgrade}"] if upgrade else []
        lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
        link.writer.write("\r\n".join([*lines, "", ""]).encode())
        head = (await asyncio.wait_for(link.reader.readuntil(b"\r\n\r\n"), PATIENCE_S)).decode()
        first, *rest = head.split("\r\n")
        link.status = int(first.split(" ")[1])
        link.head = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
        if link.status != 101:
            link.body = await asyncio.wait_for(link.reader.readexactly(int(link.head["content-length"])), PATIENCE_S)
        return link

    @property
    def error(self) -> dict:
        return json.loads(self.body)

    def say(self, fields: dict) -> None:
        self.writer.write(message(fields))

    def hearing(self) -> asyncio.Task:
        """The next message, on its way. Nothing is lost when nobody waits for it any more."""
        if self._hearing is None:
            self._hearing = asyncio.create_task(self._hear())
        return self._hearing

    async def _hear(self) -> dict:
        size, = struct.unpack(">I", await self.reader.readexactly(4))
        return json.loads(await self.reader.readexactly(size))

    async def hear(self, patience: float = PATIENCE_S) -> dict:
        async with asyncio.timeout(patience):
            await asyncio.wait([hearing := self.hearing()])
        self._hearing = None
        return hearing.result()

    async def hear_of(self, kind: str, patience: float = PATIENCE_S) -> dict:
        async with asyncio.timeout(patience):
            while (heard := await self.hear(patience))["type"] != kind:
                pass
            return heard

    async def ended(self, patience: float = PATIENCE_S) -> bytes:
        """What comes until the connection ends."""
        if self._hearing is not None:
            # Two cannot read at a time, and which of the two hears of the end is chance.
            self._hearing.cancel()
            await asyncio.wait([self._hearing])
            self._hearing = None
        try:
            return await asyncio.wait_for(self.reader.read(), patience)
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


class FakeAgent:
    def __init__(self, port: int, slug: str = "de1", country: str = "DE", token: str = TOKEN, process: str | None = None, max_sessions: int = 1000):
        self.port, self.slug, self.country, self.token, self.max_sessions = port, slug, country, token, max_sessions
        self.process = process or f"process-{id(self):x}"
        self.node_id = f"node-{slug}"
        self.instance = ""
        self.links: list[Link] = []
        self._beating: asyncio.Task | None = None

    def headers(self, **changed) -> dict[str, str | None]:
        return {
            "Authorization": f"Bearer {self.token}", "Ringway-Protocol": "1", "Ringway-Slug": self.slug, "Ringway-Country": self.country,
            "Ringway-Node-Id": self.node_id, "Ringway-Process": self.process, "Ringway-Max-Sessions": str(self.max_sessions),
            **{name.replace("_", "-"): value for name, value in changed.items()},
        }

    async def ask(self, path: str = "/agent/control", upgrade: str | None = "ringway", **changed) -> Link:
        link = await Link.open(self.port, path, self.headers(**changed), upgrade)
        self.links.append(link)
        return link

    async def link(self, beats: bool = True, **changed) -> Link:
        """A control link that stands; `beats`: with heartbeats."""
        control = await self.ask(**changed)
        assert control.status == 101, (control.status, control.body)
        self.instance = control.head["ringway-instance"]
        if beats:
            control.say({"type": "heartbeat", "sessions": 0})
            self._beating = asyncio.create_task(self._beat(control))
        return control

    async def _beat(self, control: Link) -> None:
        while True:
            await asyncio.sleep(2)
            control.say({"type": "heartbeat", "sessions": 0})

    async def data(self, **changed) -> Link:
        """A data channel; its status may be other than 101."""
        channel = await Link.open(self.port, "/agent/data", {"Authorization": f"Bearer {self.token}", "Ringway-Instance": self.instance, "Ringway-Process": self.process, **{name.replace("_", "-"): value for name, value in changed.items()}})
        self.links.append(channel)
        return channel

    async def channels(self, count: int) -> list[Link]:
        made = [await self.data() for _ in range(count)]
        assert all(channel.status == 101 for channel in made)
        return made

    async def close(self) -> None:
        if self._beating:
            self._beating.cancel()
        for link in self.links:
            link.reset()
            if link._hearing:
                link._hearing.cancel()


async def first_request(channels: list[Link]) -> tuple[Link, dict]:
    """The channel that a session's request comes over, and the request."""
    hearing = {channel.hearing(): channel for channel in channels}
    done, _ = await asyncio.wait(hearing, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    assert done, "no request on any channel"
    channel = hearing[next(iter(done))]
    return channel, await channel.hear()
