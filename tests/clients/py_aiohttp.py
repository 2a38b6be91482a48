"""aiohttp: python py_aiohttp.py '{"url": …, "headers": …, "first": …}'."""
import asyncio
import json
import sys

import aiohttp

asked = json.loads(sys.argv[1])
passed = []


async def begin(session):
    socket = await session.ws_connect(asked["url"], headers=asked["headers"], compress=15, max_msg_size=0, autoping=True)
    if asked["first"] is not None:
        await socket.send_str(asked["first"])
        answer = await socket.receive_json()
        assert answer["type"] == "connected", answer
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
        target = [message.data, message.extra]
        await socket.close()
    print(json.dumps({"version": aiohttp.__version__, "passed": passed, "compressed": compressed, "own": own, "target": target}))


asyncio.run(main())
