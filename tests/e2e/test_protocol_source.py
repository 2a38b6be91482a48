"""The original protocol description, sentence by sentence, with the clients that it names.

Each docstring quotes the sentence. Targets are servers of another make (Python `websockets`) where frames are echoed.
"""
from __future__ import annotations

import asyncio
import json
import re

import pytest
import websockets
from websockets.asyncio.server import serve

from harness.client import KEY
from harness.frames import BINARY, CLOSE, PING, TEXT, close_payload, masked
from harness.process import key_entry
from harness.programs import Program


@pytest.fixture
def echo(world):
    """Starts an echo server of the `websockets` library; gives its URL."""

    async def start(**options) -> str:
        async def handler(connection) -> None:
            async for message in connection:
                await connection.send(message)

        server = await world.stack.enter_async_context(serve(options.pop("handler", handler), "127.0.0.1", 0, max_size=None, **options))
        return f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    return start


def message(url: str, **fields) -> str:
    return json.dumps({"apiKey": KEY, "url": url, **fields})


# --- overview and playground ------------------------------------------------------------------------------------------------
async def test_relay_between_client_and_target(world, echo):
    """You connect to the gateway, send a JSON connect message, and the gateway relays all frames between you and the target."""
    gateway, url = await world.gateway(), await echo()
    async with websockets.connect(f"ws://127.0.0.1:{gateway.port}/ws", max_size=None) as ws:
        await ws.send(message(url))
        assert json.loads(await ws.recv()) == {"type": "connected", "status": 101, "node_id": "scraping-de1"}
        for payload in ("text", "", "ünïcode ✓", b"", b"binary", bytes(range(256)) * 1000):
            await ws.send(payload)
            assert await ws.recv() == payload


async def test_docs_with_curl(world):
    """The /ws/docs endpoint returns the protocol schema: curl …/ws/docs"""
    gateway = await world.gateway()
    curl = await world.program(await Program.start("curl", "-sS", f"http://127.0.0.1:{gateway.port}/ws/docs"))
    assert await curl.ends() == 0, curl.text
    assert json.loads(curl.text) == {
        "type": "connected", "status": 101, "node_id": "scraping-de1",
        "message": f"This is a documentation endpoint. Connect via WebSocket at ws://127.0.0.1:{gateway.port}/ws",
    }


async def test_wscat(world, echo):
    """For interactive WebSocket testing, use wscat … Then paste. After "connected" response, type messages to relay. The echo server will send back your message"""
    gateway, url = await world.gateway(), await echo()
    wscat = await world.program(await Program.wscat("-c", f"ws://127.0.0.1:{gateway.port}/ws"))
    await wscat.says("Connected")
    await wscat.type('{"apiKey":"%s","url":"%s"}' % (KEY, url))
    await wscat.says('{"type":"connected","status":101,"node_id":"scraping-de1"}')
    before = wscat.text.count("hello world")
    await wscat.type("hello world")
    await wscat.says("< hello world")
    assert wscat.text.count("hello world") > before


async def test_wscat_is_told_of_an_error(world):
    """Invalid API key: Gateway sends error JSON, closes with 1008"""
    gateway = await world.gateway()
    wscat = await world.program(await Program.wscat("-c", f"ws://127.0.0.1:{gateway.port}/ws"))
    await wscat.says("Connected")
    await wscat.type('{"apiKey":"WRONG","url":"ws://127.0.0.1:1"}')
    await wscat.says("Invalid or missing API key")
    await wscat.says("code: 1008")


SNIPPET = '''
import asyncio
import json
import websockets

async def test():
    async with websockets.connect("ws://127.0.0.1:{port}/ws") as ws:
        await ws.send(json.dumps({{
            "apiKey": "{key}",
            "url": "{url}",
        }}))

        resp = json.loads(await ws.recv())
        print(f"Status: {{resp}}")

        if resp["type"] == "connected":
            await ws.send("test message")
            reply = await ws.recv()
            print(f"Echo: {{reply}}")

asyncio.run(test())
'''
"""As it stands in the description, with address, key and target replaced."""


async def test_python_snippet(world, echo):
    """Testing with Python"""
    gateway, url = await world.gateway(), await echo()
    python = await world.program(await Program.python(SNIPPET.format(port=gateway.port, key=KEY, url=url)))
    assert await python.ends() == 0, python.text
    assert "Status: {'type': 'connected', 'status': 101, 'node_id': 'scraping-de1'}" in python.text
    assert "Echo: test message" in python.text


async def test_npm_ws(world, echo):
    """Relayed frames: all subsequent frames are raw relay; text frames stay text, binary frames stay binary (npm `ws`)"""
    gateway, url = await world.gateway(), await echo()
    ws = await world.program(await Program.ws(f"ws://127.0.0.1:{gateway.port}/ws", message(url)))
    assert await ws.ends(30) == 0, ws.text
    events = [json.loads(line) for line in ws.text.splitlines()]
    assert events == [
        {"event": "open", "extensions": "", "protocol": ""},
        {"event": "answer", "answer": {"type": "connected", "status": 101, "node_id": "scraping-de1"}},
        {"event": "echoed", "messages": 8},
        {"event": "pong", "data": "are you there"},
        {"event": "close", "code": 4000, "reason": "done"},
    ]


# --- the connect message ----------------------------------------------------------------------------------------------------
async def test_must_be_sent_within_10_seconds(world):
    """Must be sent as JSON text within 10 seconds of connecting. No connect message within 10s: Gateway closes with code 1008"""
    gateway = await world.gateway()
    async with websockets.connect(f"ws://127.0.0.1:{gateway.port}/ws") as ws:
        began = asyncio.get_running_loop().time()
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await ws.recv()
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "Connect timeout")
        assert 9 < asyncio.get_running_loop().time() - began < 13


async def test_the_whole_connect_message(world):
    """Connect message (client → gateway), with every field of the description at once"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(
        gateway, target, "/stream",
        headers={"Authorization": "Bearer token", "Origin": "https://target.example.com"}, cookies={"session": "abc123"}, geo="US,DE", agent="de1", idle_timeout=0,
    )
    assert connection.request_line == "GET /stream HTTP/1.1"
    assert connection.header("Authorization") == "Bearer token"
    assert connection.header("Origin") == "https://target.example.com"
    assert connection.header("Cookie") == "session=abc123"
    await connection.send(connection.switching())
    await client.expect_connected()


@pytest.mark.parametrize("name", ["apiKey", "key"])
async def test_key_is_also_accepted(world, name):
    """API key for authentication. key is also accepted."""
    gateway, target = await world.gateway(), world.target()
    client = await world.client(gateway)
    await client.connect({name: KEY, "url": target.url()})
    await (await target.accept()).open()
    await client.expect_connected()


async def test_custom_headers(world, echo):
    """Custom headers sent with the WS upgrade request to the target. Useful for Authorization, Origin, Cookie headers that the target expects."""
    seen = {}

    async def handler(connection) -> None:
        seen.update(connection.request.headers.raw_items())
        await connection.wait_closed()

    gateway, url = await world.gateway(), await echo(handler=handler)
    async with websockets.connect(f"ws://127.0.0.1:{gateway.port}/ws") as ws:
        await ws.send(message(url, headers={"Authorization": "Bearer t", "Origin": "https://o.example.com", "Cookie": "a=1", "X-Custom": "yes"}, cookies={"b": "2"}))
        await ws.recv()
    assert seen["Authorization"] == "Bearer t" and seen["Origin"] == "https://o.example.com" and seen["X-Custom"] == "yes"
    assert seen["Cookie"] == "a=1; b=2", "Cookies … Merged into the Cookie header."


@pytest.mark.parametrize("geo, agent, fits", [("US,DE,AT", None, True), ("US,AT", None, False), (None, "de1,at5,us3", True), (None, "at5,us3", False), ("DE", "de1", True), ("AT", "de1", False)])
async def test_geo_and_agent(world, geo, agent, fits):
    """Restrict agent selection to specific countries. Pin to specific agent(s) by slug. No agent available: Gateway sends error JSON, closes with 1011"""
    gateway, target = await world.gateway(), world.target()
    client = await world.client(gateway)
    await client.connect({"apiKey": KEY, "url": target.url(), "geo": geo, "agent": agent})
    if fits:
        await (await target.accept()).open()
        await client.expect_connected()
    else:
        await client.expect_error("no_agent", 1011, "No agent available")


async def test_idle_timeout(world):
    """If > 0, disconnect after this many seconds without receiving a message from the target."""
    gateway, target = await world.gateway(), world.target()
    client, _ = await world.session(gateway, target, idle_timeout=0.8)
    await client.expect_close(1000, "Idle timeout", patience=4)


async def test_no_idle_timeout(world):
    """0 = no idle timeout (the default)."""
    gateway, target = await world.gateway(), world.target()
    client, _ = await world.session(gateway, target)
    await client.expect_silence(2)


# --- answers ------------------------------------------------------------------------------------------------------------------
async def test_connected_is_sent_after_the_agent_connected(world):
    """Sent once after the agent successfully connects to the target WebSocket."""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    await client.expect_silence(0.5)
    await connection.send(connection.switching())
    await client.expect_connected()
    await client.expect_silence(0.3)


async def test_no_json_wrapping(world):
    """After the connected message, all subsequent frames are raw relay — no JSON wrapping. Text frames stay text, binary frames stay binary."""
    _, _, client, connection = await world.pair()
    for opcode in (TEXT, BINARY):
        await connection.expect_raw(await client.send_frame(opcode, b'{"type":"connected"}'))
        await client.expect_raw(await connection.send_frame(opcode, b'{"type":"error"}'))


# --- close codes and error scenarios ------------------------------------------------------------------------------------------
async def test_1000_normal_closure(world, echo):
    """1000: Normal closure (you or target closed)"""
    gateway, url = await world.gateway(), await echo()
    async with websockets.connect(f"ws://127.0.0.1:{gateway.port}/ws") as ws:
        await ws.send(message(url))
        await ws.recv()
        await ws.close()
        assert ws.close_code == 1000


async def test_invalid_key(world):
    """Invalid API key: Gateway sends error JSON, closes with 1008. {"type": "error", "message": "Invalid or missing API key"}"""
    gateway = await world.gateway()
    await world.refused(gateway, {"apiKey": "WRONG", "url": "ws://127.0.0.1:1/"}, "invalid_key", 1008, "Invalid or missing API key")


async def test_rate_limit_exceeded(world, echo):
    """Rate limit exceeded: Gateway sends error JSON, closes with 1008. If your bucket is empty, the gateway sends an error and closes with 1008."""
    gateway, url = await world.gateway(keys=[key_entry(rate=0.001, burst=1)]), await echo()
    for want in ("connected", "error"):
        ws = await websockets.connect(f"ws://127.0.0.1:{gateway.port}/ws")
        await ws.send(message(url))
        got = json.loads(await ws.recv())
        assert got["type"] == want, got
        if want == "error":
            assert got["message"] == "Rate limit exceeded"
            await ws.wait_closed()
            assert ws.close_code == 1008
        else:
            for number in range(20):  # Subsequent frames do not consume tokens.
                await ws.send(str(number))
                assert await ws.recv() == str(number)
            await ws.close()


async def test_target_connection_refused(world):
    """Target connection refused: Gateway sends error JSON, closes with 1011. 1011: Internal error — agent failure or target unreachable"""
    gateway, target = await world.gateway(), world.target()
    target.close()
    await world.refused(gateway, {"apiKey": KEY, "url": target.url()}, "target_unreachable", 1011, contains="Target connection failed: ")


async def test_target_closes(world, echo):
    """Target closes connection: Gateway forwards the close frame with target’s code and reason"""

    async def handler(connection) -> None:
        await connection.close(4321, "target is done")

    gateway, url = await world.gateway(), await echo(handler=handler)
    async with websockets.connect(f"ws://127.0.0.1:{gateway.port}/ws") as ws:
        await ws.send(message(url))
        await ws.recv()
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await ws.recv()
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "target is done")


async def test_client_closes(world):
    """Client closes connection: Gateway forwards close to target, cleans up"""
    gateway, target = await world.gateway(), world.target()
    warm = await world.session(gateway, target)
    fds = gateway.fds()
    for _ in range(10):
        client, connection = await world.session(gateway, target)
        await client.send_close(4000, "bye")
        await connection.expect_frame(CLOSE, close_payload(4000, "bye"))
        await connection.send_close(4000, "bye")
        connection.close()
        await client.expect_frame(CLOSE, close_payload(4000, "bye"))
        await client.expect_end()
        client.close()
    for _ in range(50):
        if gateway.fds() <= fds:
            break
        await asyncio.sleep(0.1)
    assert gateway.fds() <= fds
    del warm


async def test_one_token_for_each_connect(world, echo):
    """WebSocket connections consume 1 token from your rate limit bucket on connect (when the connect message is validated)."""
    gateway, url = await world.gateway(keys=[key_entry(rate=0.001, burst=3)]), await echo()
    got = []
    for _ in range(4):
        await world.client(gateway)  # an upgrade alone costs nothing
        client = await world.client(gateway)
        await client.connect(message(url))
        got.append((await client.read_json())["type"])
    assert got == ["connected"] * 3 + ["error"]


async def test_pings_are_relayed_too(world):
    """the gateway relays all frames between you and the target"""
    _, _, client, connection = await world.pair()
    ping = masked(PING, b"end to end")
    await client.send(ping)
    await connection.expect_raw(ping)
    assert re.search(b"end", (await connection_echo(client, connection)).payload)


async def connection_echo(client, connection):
    await connection.send_frame(PING, b"the other end")
    return await client.read_frame()
