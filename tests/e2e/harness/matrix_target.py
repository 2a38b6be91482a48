"""The target of the client matrix: an echo that also sends fragments, closes when asked to, and says what it saw."""
from __future__ import annotations

import asyncio
import json

import websockets
from websockets.asyncio.server import serve


class MatrixTarget:
    """`fragment N` is answered in N fragments, `close CODE REASON` with that Close, all else comes back as it was."""

    def __init__(self) -> None:
        self.seen: list[dict] = []
        """Of each connection that has ended: how many messages came, whether compressed, and the peer's Close."""
        self.ended = asyncio.Condition()

    async def start(self) -> "MatrixTarget":
        self.server = await serve(self.echo, "127.0.0.1", 0, max_size=None, ping_interval=None)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def echo(self, connection) -> None:
        count = 0
        try:
            async for message in connection:
                count += 1
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
        received = connection.protocol.close_rcvd
        async with self.ended:
            self.seen.append({"messages": count, "compressed": bool(connection.protocol.extensions), "close": [received.code, received.reason] if received else None})
            self.ended.notify_all()

    async def until(self, count: int) -> list[dict]:
        async with self.ended:
            await asyncio.wait_for(self.ended.wait_for(lambda: len(self.seen) >= count), 15)
        return self.seen


class Hub:
    """A hub of SignalR's JSON protocol: Echo, Tell (calls the client's `told`), Count (a stream)."""

    END = "\x1e"

    async def start(self) -> "Hub":
        self.closes: list = []
        self.ended = asyncio.Event()
        self.server = await serve(self.run, "127.0.0.1", 0, max_size=None)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        self.server.close()
        await self.server.wait_closed()

    async def run(self, connection) -> None:
        async def say(message: dict) -> None:
            await connection.send(json.dumps(message) + self.END)

        try:
            shaken = json.loads((await connection.recv()).rstrip(self.END))
            assert shaken == {"protocol": "json", "version": shaken["version"]}, shaken
            await say({})
            async for text in connection:
                for message in map(json.loads, filter(None, text.split(self.END))):
                    if message["type"] == 1 and message["target"] == "Echo":
                        await say({"type": 3, "invocationId": message["invocationId"], "result": message["arguments"][0]})
                    elif message["type"] == 1 and message["target"] == "Tell":
                        await say({"type": 1, "target": "told", "arguments": message["arguments"]})
                    elif message["type"] == 4:
                        for number in range(message["arguments"][0]):
                            await say({"type": 2, "invocationId": message["invocationId"], "item": number})
                        await say({"type": 3, "invocationId": message["invocationId"]})
                    elif message["type"] == 6:
                        await say({"type": 6})
        except websockets.ConnectionClosed:
            pass
        await connection.wait_closed()
        received = connection.protocol.close_rcvd
        self.closes.append([received.code, received.reason] if received else None)
        self.ended.set()
