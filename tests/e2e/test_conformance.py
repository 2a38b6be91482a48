"""Frame sequences that a strict peer must judge, direct and through ringway: both ends see the same.

A raw end speaks with a peer of another make, once without ringway and once with it in between, in both forms and both
roles. What the raw end gets (frames, Close, the end of TCP) and what the peer's application says (messages, Close) is
compared. A case that differs is run again: where a peer races with itself, what was seen through ringway must have been
seen without it.
"""
from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import asynccontextmanager

import pytest
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from harness import frames
from harness.client import KEY, Client, connect_frame, upgrade_request
from harness.conversations import F, LAST, SECTIONS, Case, is_last
from harness.frames import CLOSE, PONG, close_payload
from harness.programs import CLIENTS, node
from harness.target import TargetConnection
from harness.transparent import address
from harness.wire import Lost

PATIENCE_S = 12.0
AT_A_TIME = 8
AGAIN = 3
DEFLATE = "permessage-deflate"
OFFER = f"{DEFLATE}; server_no_context_takeover"
DONE = close_payload(1000, "done")
LOST = {1001, 1011}
"""What a TCP connection that ends without a Close becomes: the one thing that may differ."""


# --- the raw end --------------------------------------------------------------------------------------------------------
async def speak(wire, case: Case) -> dict:
    """Sends all of a case while it reads, answers a Close, and says what came up to the end of TCP."""
    # Pongs apart: a library answers pings at once, and its application messages when it has its turn.
    seen: dict = {"frames": [], "pongs": [], "close": None}
    sent_close = not case.closes
    server = isinstance(wire, TargetConnection)
    data = case.raw(wire.masks)
    if case.closes and server:
        data += F(CLOSE, DONE).raw(wire.masks)
        sent_close = True
    elif case.closes:
        data += F(frames.TEXT, LAST).raw(wire.masks)

    async def send() -> None:
        try:
            if case.chop:
                await wire.send_slices(data, case.chop)
            else:
                await wire.send(data, PATIENCE_S)
        except (ConnectionError, TimeoutError):
            pass  # It has had enough.

    sending = asyncio.create_task(send())
    try:
        while True:
            got = await wire.read_frame(PATIENCE_S)
            payload = got.payload if len(got.payload) <= 200 else hashlib.sha256(got.payload).hexdigest()
            seen["pongs" if got.opcode == PONG else "frames"].append((got.opcode, got.fin, got.rsv, got.mask is not None, payload))
            if not sent_close and is_last(got):
                await sending
                await wire.send_frame(CLOSE, DONE)
                sent_close = True
            if got.opcode == CLOSE:
                seen["close"] = got.close_code
                if not sent_close:
                    await sending
                    await wire.send_frame(CLOSE, got.payload)
                # Of a hop, the server ends TCP first (RFC 6455 section 7.1.1).
                if server:
                    break
    except Lost:
        pass
    except (ConnectionError, AssertionError) as error:
        seen["frames"].append(repr(error)[:80])
    await sending
    wire.close()
    return seen


def told(messages: list, code: int | None, reason: str | None) -> dict:
    return {"messages": messages, "code": code, "reason": reason}


def digest(message: str | bytes) -> list:
    data = message.encode() if isinstance(message, str) else message
    return ["text" if isinstance(message, str) else "binary", len(data), hashlib.sha256(data).hexdigest()]


# --- peers of other makes -------------------------------------------------------------------------------------------------
class PythonServer:
    @asynccontextmanager
    async def run(self):
        self.seen: dict[str, asyncio.Future] = {}
        async with serve(self.echo, "127.0.0.1", 0, max_size=None, ping_interval=None, close_timeout=5) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def echo(self, connection) -> None:
        messages = []
        try:
            async for message in connection:
                messages.append(digest(message))
                await connection.send(message)
        except websockets.ConnectionClosed:
            pass
        await connection.wait_closed()
        self.result(connection.request.path).set_result(told(messages, connection.close_code, connection.close_reason))

    def result(self, path: str) -> asyncio.Future:
        return self.seen.setdefault(path, asyncio.get_running_loop().create_future())


class NodeServer:
    @asynccontextmanager
    async def run(self):
        self.seen: dict[str, asyncio.Future] = {}
        child = await asyncio.create_subprocess_exec(node(), str(CLIENTS / "peer_server.mjs"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 22)
        try:
            self.port = json.loads(await child.stdout.readline())["port"]
            reading = asyncio.create_task(self.read(child.stdout))
            yield self
            reading.cancel()
        finally:
            child.kill()
            await child.wait()

    async def read(self, output) -> None:
        async for line in output:
            got = json.loads(line)
            self.result(got["path"]).set_result(told(got["messages"], got["code"], got["reason"]))

    result = PythonServer.result


class PythonClient:
    @asynccontextmanager
    async def run(self):
        yield self

    async def talk(self, url: str, headers: dict, first: str | None) -> dict:
        messages = []
        async with connect(url, max_size=None, ping_interval=None, proxy=None, close_timeout=5, additional_headers=headers) as connection:
            try:
                if first is not None:
                    await connection.send(first)
                    await connection.recv()
                async for message in connection:
                    messages.append(digest(message))
            except websockets.ConnectionClosed:
                pass
            await connection.wait_closed()
            return told(messages, connection.close_code, connection.close_reason)


class NodeClient:
    @asynccontextmanager
    async def run(self):
        self.seen: dict[str, asyncio.Future] = {}
        self.child = await asyncio.create_subprocess_exec(node(), str(CLIENTS / "peer_client.mjs"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 22)
        try:
            reading = asyncio.create_task(self.read(self.child.stdout))
            yield self
            reading.cancel()
        finally:
            self.child.kill()
            await self.child.wait()

    async def read(self, output) -> None:
        async for line in output:
            got = json.loads(line)
            self.seen[got["id"]].set_result(told(got["messages"], got["code"], got["reason"]))

    async def talk(self, url: str, headers: dict, first: str | None) -> dict:
        name = str(len(self.seen))
        self.seen[name] = asyncio.get_running_loop().create_future()
        self.child.stdin.write(json.dumps({"id": name, "url": url, "headers": headers, "first": first}).encode() + b"\n")
        return await asyncio.wait_for(self.seen[name], PATIENCE_S)


# --- one case, one way ----------------------------------------------------------------------------------------------------
FORMS = ["message", "query"]


async def as_client(world, gateway, server, case: Case, form: str | None, number: int) -> dict:
    """A raw client, and a strict server. `form`: through ringway so; `None`: without it."""
    path = f"/{number}-{form}-{len(server.seen)}"
    url = f"ws://127.0.0.1:{server.port}{path}"
    result = server.result(path)
    offer = {"Sec-WebSocket-Extensions": OFFER} if case.deflate else {}
    client = await Client.tcp(server.port if form is None else gateway.port)
    if form == "message":
        await client.upgrade()
        await client.send(connect_frame({"apiKey": KEY, "url": url}))
        await client.expect_connected()
    else:
        target, headers = (path, offer) if form is None else (address(url), {**offer, "X-API-Key": KEY})
        await client.send(upgrade_request(target, headers))
        head = await client.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ") and (DEFLATE.encode() in head.lower()) == case.deflate, head
    seen = await speak(client, case)
    return {"raw": seen, "peer": await asyncio.wait_for(result, PATIENCE_S)}


async def as_server(world, gateway, peer, case: Case, form: str | None, number: int) -> dict:
    """A strict client, and a raw server."""
    target = world.target()
    url = target.url()

    async def serve_raw() -> dict:
        connection = await target.accept()
        await connection.read_request()
        extra = f"Sec-WebSocket-Extensions: {DEFLATE}\r\n" if case.deflate else ""
        await connection.send(connection.switching(extra))
        return await speak(connection, case)

    headers = {"X-API-Key": KEY} if form == "query" else {}
    first = json.dumps({"apiKey": KEY, "url": url}) if form == "message" else None
    there = url if form is None else f"ws://127.0.0.1:{gateway.port}{'/ws' if form == 'message' else address(url)}"
    seen, said = await asyncio.gather(serve_raw(), peer.talk(there, headers, first))
    return {"raw": seen, "peer": said}


def allowed(direct: dict, relayed: dict) -> bool:
    """One end's TCP ended without a Close, for which the other one gets a Close of ringway's."""
    without = {"raw": {**direct["raw"], "close": None}, "peer": {**direct["peer"], "code": None, "reason": None}}
    through = {"raw": {**relayed["raw"], "close": None}, "peer": {**relayed["peer"], "code": None, "reason": None}}
    if relayed["raw"]["close"] in LOST and direct["raw"]["close"] is None:
        through["raw"]["frames"] = through["raw"]["frames"][:-1]
        return without == through
    return direct["peer"]["code"] in (None, 1005, 1006) and relayed["peer"]["code"] in LOST and without == through


async def differs(run, case: Case, form: str) -> str | None:
    """What is not the same, after as many tries as it takes to know."""
    direct, relayed = [await run(case, None)], [await run(case, form)]
    for _ in range(AGAIN):
        if any(one in direct or any(allowed(other, one) for other in direct) for one in relayed):
            return None
        direct.append(await run(case, None))
        relayed.append(await run(case, form))
    return f"{case.name}:\n  direct:  {direct[0]}\n  relayed: {relayed[0]}"


async def all_the_same(run, cases: list[Case], form: str) -> None:
    gate = asyncio.Semaphore(AT_A_TIME)

    async def one(case: Case) -> str | None:
        async with gate:
            return await differs(run, case, form)

    found = [what for what in await asyncio.gather(*(one(case) for case in cases)) if what]
    assert not found, f"{len(found)} of {len(cases)} differ\n" + "\n".join(found)


def chosen(section: str, form: str) -> list[Case]:
    # In the connect-message form no extension is agreed on.
    return [case for case in SECTIONS[section] if form == "query" or not case.deflate]


WAYS = [(section, form) for section in SECTIONS for form in FORMS if chosen(section, form)]
SERVERS, CLIENTS_ = {"websockets": PythonServer, "ws": NodeServer}, {"websockets": PythonClient, "ws": NodeClient}


@pytest.mark.limit(120)
@pytest.mark.parametrize("peer", SERVERS)
@pytest.mark.parametrize("section, form", WAYS)
async def test_a_raw_client_and_a_strict_server(world, section, form, peer):
    """For every case the result through ringway equals the result without it: behaviour, close behaviour, close code"""
    gateway = await world.gateway()
    async with SERVERS[peer]().run() as server:
        numbers = iter(range(100_000))
        await all_the_same(lambda case, form: as_client(world, gateway, server, case, form, next(numbers)), chosen(section, form), form)


@pytest.mark.limit(120)
@pytest.mark.parametrize("peer", CLIENTS_)
@pytest.mark.parametrize("section, form", WAYS)
async def test_a_strict_client_and_a_raw_server(world, section, form, peer):
    """The same in the other role"""
    gateway = await world.gateway()
    async with CLIENTS_[peer]().run() as client:
        numbers = iter(range(100_000))
        await all_the_same(lambda case, form: as_server(world, gateway, client, case, form, next(numbers)), chosen(section, form), form)


# --- that it can fail -----------------------------------------------------------------------------------------------------
class Tamperer:
    """Stands where a gateway would, for the transparent form: passes everything on but for one thing."""

    def __init__(self, change):
        self.change = change

    @asynccontextmanager
    async def run(self, upstream: int):
        async def serve_one(reader, writer) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", upstream)
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ")[1].rpartition(b"%2F")[2]
            back.write(head.replace(head.split(b" ")[1], b"/" + path, 1))

            async def copy(source, sink, change) -> None:
                try:
                    while data := await source.read(1 << 16):
                        sink.write(change(data))
                        await sink.drain()
                    sink.close()
                except ConnectionError:
                    sink.close()

            await asyncio.gather(copy(reader, back, lambda data: data), copy(there, writer, self.change))

        async with await asyncio.start_server(serve_one, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self


CHANGES = {
    "nothing": lambda data: data,
    "a payload's bit": lambda data: data.replace(b"hello", b"hellO"),
    "a ping's answer lost": lambda data: data.replace(frames.frame(PONG, b"p"), b""),
    "a close code": lambda data: data.replace(DONE, close_payload(1001, "done")),
    "a close reason": lambda data: data.replace(b"done", b"Done"),
}


@pytest.mark.parametrize("what", CHANGES)
async def test_a_difference_is_found(world, what):
    case = Case("hello", [F(frames.TEXT, b"hello"), F(frames.PING, b"p")])
    async with PythonServer().run() as server, Tamperer(CHANGES[what]).run(server.port) as tamperer:
        numbers = iter(range(100_000))
        found = await differs(lambda case, form: as_client(world, tamperer, server, case, form, next(numbers)), case, "query")
        assert (found is None) == (what == "nothing"), found
