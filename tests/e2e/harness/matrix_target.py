"""The target of the client matrix: an echo that also sends fragments, closes when asked to, and says what it saw."""
from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field

import websockets
from websockets.asyncio.server import serve


@dataclass
class Seen:
    """What the target saw of one connection."""

    compressed: bool
    messages: list[tuple[str, int, str]] = field(default_factory=list)
    """Kind, bytes and SHA-256 of each."""
    frames: list[int] = field(default_factory=list)
    """In how many frames each came."""
    close: tuple[int, str] | None = None
    """The peer's Close."""
    ended: bool = False


def told(message: str | bytes) -> tuple[str, int, str]:
    data = message.encode() if isinstance(message, str) else message
    return "text" if isinstance(message, str) else "binary", len(data), hashlib.sha256(data).hexdigest()


class MatrixTarget:
    """`fragment N` is answered in N fragments, `close CODE REASON` with that Close, all else comes back as it was. On the path
    `/greeting` it says a text and leaves, for clients that only listen."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        """Of each connection, in the order in which they came."""
        self.changed = asyncio.Condition()

    async def start(self) -> "MatrixTarget":
        self.server = await serve(self.echo, "127.0.0.1", 0, max_size=None, ping_interval=None)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def echo(self, connection) -> None:
        seen = Seen(compressed=bool(connection.protocol.extensions))
        self.seen.append(seen)
        try:
            if connection.request.path == "/greeting":
                await connection.send("a greeting")
                await connection.close(1000, "that was all")
            while True:
                pieces = [piece async for piece in connection.recv_streaming()]
                message = type(pieces[0])().join(pieces)
                seen.messages.append(told(message))
                seen.frames.append(len(pieces))
                words = message.split(" ", 2) if isinstance(message, str) else [""]
                if words[0] == "fragment":
                    await connection.send(iter(["0123456789" * 100] * int(words[1])))
                elif words[0] == "close":
                    await connection.close(int(words[1]), words[2])
                else:
                    await connection.send(message)
        except websockets.ConnectionClosed:
            pass
        await connection.wait_closed()
        seen.close = the_close(connection)
        async with self.changed:
            seen.ended = True
            self.changed.notify_all()

    async def until(self, count: int) -> list[Seen]:
        """When so many connections have ended: these, in the order in which they came."""
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: sum(seen.ended for seen in self.seen) >= count), 15)
        return self.seen


def the_close(connection) -> tuple[int, str] | None:
    received = connection.protocol.close_rcvd
    return (received.code, received.reason) if received else None


class Hub:
    """A hub of SignalR's JSON protocol. Echo answers; Tell calls the client's `told`; Count is a stream; Pinged answers when
    the client's next ping has come; Leave is the protocol's own end, with an error; Break is a Close 4002 without one."""

    END = "\x1e"

    async def start(self) -> "Hub":
        self.closes: list[tuple[int, str] | None] = []
        """The client's Close, of each connection that has ended."""
        self.changed = asyncio.Condition()
        self.server = await serve(self.run, "127.0.0.1", 0, max_size=None, ping_interval=None)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def until(self, count: int) -> list[tuple[int, str] | None]:
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: len(self.closes) >= count), 15)
        return self.closes

    async def run(self, connection) -> None:
        try:
            await self.serve_one(connection)
        except websockets.ConnectionClosed:
            pass
        await connection.wait_closed()
        async with self.changed:
            self.closes.append(the_close(connection))
            self.changed.notify_all()

    async def serve_one(self, connection) -> None:
        async def say(message: dict) -> None:
            await connection.send(json.dumps(message) + self.END)

        shaken = json.loads((await connection.recv()).removesuffix(self.END))
        if shaken["protocol"] != "json" or shaken["version"] not in (1, 2):
            return await say({"error": f"not a protocol of this hub: {shaken}"})
        await say({})
        await say({"type": 6})
        awaiting_ping: list[str] = []
        async for text in connection:
            for message in map(json.loads, filter(None, text.split(self.END))):
                match message:
                    case {"type": 1, "target": "Echo", "invocationId": number, "arguments": [said]}:
                        await say({"type": 3, "invocationId": number, "result": said})
                    case {"type": 1, "target": "Tell", "arguments": arguments}:
                        await say({"type": 1, "target": "told", "arguments": arguments})
                    case {"type": 1, "target": "Pinged", "invocationId": number}:
                        awaiting_ping.append(number)
                        await say({"type": 6})  # the client sets its clock anew when something comes
                    case {"type": 1, "target": "Leave"}:
                        await say({"type": 7, "error": "enough"})
                    case {"type": 1, "target": "Break"}:
                        await connection.close(4002, "enough")
                    case {"type": 4, "target": "Count", "invocationId": number, "arguments": [count]}:
                        for at in range(count):
                            await say({"type": 2, "invocationId": number, "item": at})
                        await say({"type": 3, "invocationId": number})
                    case {"type": 6}:
                        while awaiting_ping:
                            await say({"type": 3, "invocationId": awaiting_ping.pop(), "result": True})
