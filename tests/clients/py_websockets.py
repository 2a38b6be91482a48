"""Python's websockets: python py_websockets.py '{"relay": …, "target": …, "key": …, "form": …}'."""
import asyncio
import sys

# docs: both
import json
from urllib.parse import quote

import websockets
# docs: end

asked = json.loads(sys.argv[1])
relay, target, key = asked["relay"], asked["target"], asked["key"]
passed = []


async def begin():
    if asked["form"] == "message":
        # docs: message
        socket = await websockets.connect(relay)
        await socket.send(json.dumps({"apiKey": key, "url": target}))
        answer = json.loads(await socket.recv())
        # docs: end
        assert answer["type"] == "connected", answer
    else:
        # docs: query
        socket = await websockets.connect(relay + "?url=" + quote(target, safe=""), additional_headers={"X-API-Key": key})
        # docs: end
    return socket


def pattern(length: int) -> bytes:
    return bytes(at * 7 % 251 for at in range(length))


async def main() -> None:
    socket = await begin()
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
    socket = await begin()
    await socket.send("close 4002 enough")
    await socket.wait_closed()
    target_s = [socket.close_code, socket.close_reason]
    print(json.dumps({"version": websockets.__version__, "passed": passed, "compressed": compressed, "own": own, "target": target_s}))


asyncio.run(main())
