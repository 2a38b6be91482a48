"""aiohttp: python py_aiohttp.py '{"relay": …, "target": …, "key": …, "form": …}'."""
import asyncio
import json
import sys

# docs: both
from urllib.parse import quote

import aiohttp
# docs: end

asked = json.loads(sys.argv[1])
relay, target, key = asked["relay"], asked["target"], asked["key"]
passed = []


async def begin(session):
    if asked["form"] == "message":
        # docs: message
        socket = await session.ws_connect(relay)
        await socket.send_json({"apiKey": key, "url": target})
        answer = await socket.receive_json()
        # docs: end
        assert answer["type"] == "connected", answer
    else:
        # docs: query
        # compress=15 offers permessage-deflate; without it nothing is compressed.
        socket = await session.ws_connect(relay + "?url=" + quote(target, safe=""), headers={"X-API-Key": key}, compress=15)
        # docs: end
    return socket


def pattern(length: int) -> bytes:
    return bytes(at * 7 % 251 for at in range(length))


async def main() -> None:
    async with aiohttp.ClientSession() as session:
        socket = await begin(session)
        for name, message in [("text", "grüße \U0001f600"), ("empty", ""), ("binary", pattern(256)), ("1 MiB", pattern(1 << 20))]:
            await (socket.send_str if isinstance(message, str) else socket.send_bytes)(message)
            if (await socket.receive()).data == message:
                passed.append(name)
        await socket.send_str("fragment 5")
        if await socket.receive_str() == "0123456789" * 500:
            passed.append("fragments received")
        compressed = bool(socket.compress)
        await socket.close(code=3001, message=b"bye")
        own = [socket.close_code, ""]
        socket = await begin(session)
        await socket.send_str("close 4002 enough")
        message = await socket.receive()
        target_s = [message.data, message.extra]
        await socket.close()
    print(json.dumps({"version": aiohttp.__version__, "passed": passed, "compressed": compressed, "own": own, "target": target_s}))


asyncio.run(main())
