"""Python's websockets: python py_websockets.py '{"url": …, "headers": …, "first": …}'."""
import asyncio
import json
import sys

import websockets
from websockets.asyncio.client import connect

asked = json.loads(sys.argv[1])
passed = []


def opened():
    return connect(asked["url"], additional_headers=asked["headers"], max_size=None)


async def begin(socket) -> None:
    if asked["first"] is not None:
        await socket.send(asked["first"])
        answer = json.loads(await socket.recv())
        assert answer["type"] == "connected", answer


def pattern(length: int) -> bytes:
    return bytes(at * 7 % 251 for at in range(length))


async def main() -> None:
    async with opened() as socket:
        await begin(socket)
        for name, message in [("text", "grüße \U0001f600"), ("empty", ""), ("binary", pattern(256)), ("1 MiB", pattern(1 << 20))]:
            await socket.send(message)
            if await socket.recv() == message:
                passed.append(name)
        await socket.send(iter(["frag", "men", "ts"]))
        if await socket.recv() == "fragments":
            passed.append("fragments sent")
        await socket.send("fragment 5")
        if await socket.recv() == "0123456789" * 500:
            passed.append("fragments received")
        compressed = bool(socket.protocol.extensions)
        await socket.close(3001, "bye")
        own = [socket.close_code, socket.close_reason]
    async with opened() as socket:
        await begin(socket)
        await socket.send("close 4002 enough")
        await socket.wait_closed()
        target = [socket.close_code, socket.close_reason]
    print(json.dumps({"version": websockets.__version__, "passed": passed, "compressed": compressed, "own": own, "target": target}))


asyncio.run(main())
