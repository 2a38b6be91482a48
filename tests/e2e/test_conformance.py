"""Frame sequences that a strict peer must judge, direct and through ringway: both ends see the same.

A raw end speaks with a peer of another make, once without ringway and once with it in between, in both forms and both
roles. What the raw end gets (frames, Close, the end of TCP) and what the peer's application says (messages, Close) is
compared. A case that differs is run again: where a peer races with itself, what was seen through ringway must have been
seen without it.
"""
from __future__ import annotations

import asyncio
import copy
import hashlib
import json
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs, urlsplit

import pytest
import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

from harness import frames
from harness.client import KEY, Client, connect_frame, upgrade_request
from harness.conversations import F, LAST, SECTIONS, Case, is_last
from harness.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_payload
from harness.programs import CLIENTS, node
from harness.target import TargetConnection
from harness.transparent import address

PATIENCE_S = 12.0
AT_A_TIME = 8
AGAIN = 3
DEFLATE = "permessage-deflate"
OFFER = f"{DEFLATE}; server_no_context_takeover"
OURS = {"client": (1011, "Target connection lost"), "server": (1001, "Client disconnected")}
"""docs/protocol.md, "How sessions end": what this end gets where the other one's TCP ends without a Close."""


# --- the raw end --------------------------------------------------------------------------------------------------------
def as_it_came(got: frames.Frame) -> tuple:
    """All of a frame but its masking key, which nobody chooses twice: opcode, FIN, reserved bits, masked or not, bytes of
    its header (so the form of its length), payload."""
    payload = got.payload if len(got.payload) <= 200 else hashlib.sha256(got.payload).hexdigest()
    return got.opcode, got.fin, got.rsv, got.mask is not None, len(got.raw) - len(got.payload), payload


async def next_frame(wire) -> frames.Frame | str:
    """The next whole frame, or how TCP ended instead."""
    while (got := frames.parse(wire.buffer)) is None:
        try:
            data = await asyncio.wait_for(wire.pipe.recv(1 << 18), PATIENCE_S)
        except ConnectionError:
            return "reset"
        except TimeoutError:
            return "never"
        if not data:
            return "fin"
        wire.buffer += data
    del wire.buffer[: len(got.raw)]
    return got


async def speak(wire, case: Case) -> dict:
    """Sends all of a case while it reads, answers a Close, and says all that came, and how TCP ended."""
    # Pongs apart: a library answers pings at once, and its application messages when it has its turn.
    seen: dict = {"frames": [], "pongs": [], "closes": [], "behind a Close": []}
    server = isinstance(wire, TargetConnection)
    data, end = case.raw(wire.masks), case.end(wire.masks)
    hangs_up = case.cut is not None
    # The end is owed until all answers are there: an application that has messages left when the Close comes may or may
    # not get to them. A client knows by an echo, a server by a pong.
    owes = end is not None
    data += F(PING if server else TEXT, LAST).raw(wire.masks) if owes else b""

    async def send(what: bytes, then_hang_up: bool = False, chop: int | None = None) -> None:
        try:
            await (wire.send_slices(what, chop) if chop else wire.send(what, PATIENCE_S))
            if then_hang_up:
                wire.half_close()
        except (OSError, TimeoutError):
            pass  # It has had enough.

    sending = asyncio.create_task(send(data, chop=case.chop))
    while isinstance(got := await next_frame(wire), frames.Frame):
        kind = "closes" if got.opcode == CLOSE else "behind a Close" if seen["closes"] else "pongs" if got.opcode == PONG else "frames"
        # Where the last ping stands behind what an application judges, `websockets` may answer it in between.
        if not (got.opcode == PONG and is_last(got)):
            seen[kind].append(as_it_came(got))
        if owes and (got.opcode == CLOSE or is_last(got)):
            await sending
            await send(F(CLOSE, got.payload).raw(wire.masks) if got.opcode == CLOSE else end, hangs_up)
            owes = False
        # Of a hop, the server ends TCP first (RFC 6455 section 7.1.1).
        if got.opcode == CLOSE and server and not hangs_up:
            await sending
            await send(b"", then_hang_up=True)
    seen["cut"], seen["end"] = bytes(wire.buffer[:200]), got
    await sending
    wire.close()
    return seen


def told(messages: list, code: int | None, reason: str | None, error: str | None) -> dict:
    return {"messages": messages, "code": code, "reason": reason, "error": error}


def digest(message: str | bytes) -> list:
    data = message.encode() if isinstance(message, str) else message
    return ["text" if isinstance(message, str) else "binary", len(data), hashlib.sha256(data).hexdigest()]


# --- peers of other makes -------------------------------------------------------------------------------------------------
async def listen(connection, echo: bool = False) -> dict:
    """What an application on `websockets` is told."""
    messages = []
    try:
        while True:
            message = await connection.recv()
            messages.append(digest(message))
            if echo:
                await connection.send(message)
    except websockets.ConnectionClosed:
        pass
    await connection.wait_closed()
    # Which Close was received and which sent, and in what order.
    ended = connection.protocol.close_exc
    return told(messages, connection.close_code, connection.close_reason, f"{type(ended).__name__}: {ended}")


class PythonServer:
    @asynccontextmanager
    async def run(self):
        self.seen: dict[str, asyncio.Future] = {}
        async with serve(self.echo, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def echo(self, connection) -> None:
        self.result(connection.request.path).set_result(await listen(connection, echo=True))

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
            self.result(got["path"]).set_result(told(got["messages"], got["code"], got["reason"], got["error"]))

    result = PythonServer.result


class PythonClient:
    @asynccontextmanager
    async def run(self):
        yield self

    async def talk(self, url: str, headers: dict, first: str | None) -> dict:
        async with connect(url, proxy=None, additional_headers=headers) as connection:
            if first is not None:
                await connection.send(first)
                await connection.recv()
            return await listen(connection)


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
            self.seen[got["id"]].set_result(told(got["messages"], got["code"], got["reason"], got["error"]))

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
    seen, said = await asyncio.gather(serve_raw(), asyncio.wait_for(peer.talk(there, headers, first), 2 * PATIENCE_S))
    return {"raw": seen, "peer": said}


def allowed(direct: dict, relayed: dict, role: str) -> bool:
    """The one thing that may differ: an end's TCP ends without a Close, and the other end gets ringway's in its place."""
    direct, relayed = copy.deepcopy([direct, relayed])
    told = OURS["server" if role == "client" else "client"]
    if direct["peer"]["code"] == 1006 and (relayed["peer"]["code"], relayed["peer"]["reason"]) == told:
        for side in direct, relayed:
            side["peer"].update(code=None, reason=None, error=None)
        # A client that ended its side only still gets the target's Close, which answers ringway's.
        if role == "client" and not direct["raw"]["closes"] and payloads(relayed) == [close_payload(*told)]:
            relayed["raw"]["closes"] = []
    elif not direct["raw"]["closes"] and payloads(relayed) == [close_payload(*OURS[role])]:
        relayed["raw"]["closes"] = []
    return direct == relayed


def payloads(side: dict) -> list[bytes]:
    return [close[-1] for close in side["raw"]["closes"]]


def difference(case: Case, direct: list[dict], relayed: dict) -> str:
    """Of a case what is not the same, a line each."""
    lines = [f"{case.name}:"]
    for end in "raw", "peer":
        for what, got in relayed[end].items():
            if got not in (known := [one[end][what] for one in direct]):
                lines.append(f"  {end} {what}: direct {str(known[0])[:600]}\n{' ' * (len(end) + len(what) + 2)} relayed {str(got)[:600]}")
    return "\n".join(lines)


async def differs(run, case: Case, form: str, role: str) -> str | None:
    """What is not the same. A difference is looked at again, both ways: where a peer races with itself, all that was seen
    through ringway must have been seen without it."""
    direct, relayed = [await run(case, None)], [await run(case, form)]

    def unseen() -> dict | None:
        return next((one for one in relayed if not any(one == other or allowed(other, one, role) for other in direct)), None)

    for _ in range(AGAIN):
        if unseen() is None:
            return None
        direct.append(await run(case, None))
        relayed.append(await run(case, form))
    return difference(case, direct, found) if (found := unseen()) else None


async def all_the_same(run, cases: list[Case], form: str, role: str) -> None:
    gate = asyncio.Semaphore(AT_A_TIME)

    async def one(case: Case) -> str | None:
        async with gate:
            return await differs(run, case, form, role)

    found = [what for what in await asyncio.gather(*(one(case) for case in cases)) if what]
    assert not found, f"{len(found)} of {len(cases)} differ\n" + "\n".join(found)


def chosen(section: str, form: str, peer: str) -> list[Case]:
    # In the connect-message form no extension is agreed on.
    return [case for case in SECTIONS[section] if (form == "query" or not case.deflate) and case.only in (None, peer)]


WAYS = [(section, form) for section in SECTIONS for form in FORMS if (section, form) != ("compression", "message")]
SERVERS, CLIENTS_ = {"websockets": PythonServer, "ws": NodeServer}, {"websockets": PythonClient, "ws": NodeClient}


@pytest.mark.limit(120)
@pytest.mark.parametrize("peer", SERVERS)
@pytest.mark.parametrize("section, form", WAYS)
async def test_a_raw_client_and_a_strict_server(world, section, form, peer):
    """For every case the result through ringway equals the result without it: behaviour, close behaviour, close code"""
    gateway = await world.gateway()
    async with SERVERS[peer]().run() as server:
        numbers = iter(range(100_000))
        await all_the_same(lambda case, form: as_client(world, gateway, server, case, form, next(numbers)), chosen(section, form, peer), form, "client")


@pytest.mark.limit(120)
@pytest.mark.parametrize("peer", CLIENTS_)
@pytest.mark.parametrize("section, form", WAYS)
async def test_a_strict_client_and_a_raw_server(world, section, form, peer):
    """The same in the other role"""
    gateway = await world.gateway()
    async with CLIENTS_[peer]().run() as client:
        numbers = iter(range(100_000))
        await all_the_same(lambda case, form: as_server(world, gateway, client, case, form, next(numbers)), chosen(section, form, peer), form, "server")


# --- that it can fail -----------------------------------------------------------------------------------------------------
class Tamperer:
    """Stands where a gateway would, for the transparent form, and changes frames of its first sessions: `there` those of
    clients, `back` those of targets."""

    def __init__(self, there=None, back=None, sessions: int = 1000):
        self.there, self.back, self.sessions = there, back, sessions

    @asynccontextmanager
    async def run(self):
        async with await asyncio.start_server(self.session, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def session(self, client_reader, client_writer) -> None:
        self.sessions -= 1
        there, back = (self.there, self.back) if self.sessions >= 0 else (None, None)
        head = await client_reader.readuntil(b"\r\n\r\n")
        asked = head.split(b" ")[1]
        target = urlsplit(parse_qs(urlsplit(asked.decode()).query)["url"][0])
        target_reader, target_writer = await asyncio.open_connection(target.hostname, target.port)
        target_writer.write(head.replace(asked, target.path.encode(), 1))
        client_writer.write(await target_reader.readuntil(b"\r\n\r\n"))
        try:
            await asyncio.gather(self.copy(client_reader, target_writer, there), self.copy(target_reader, client_writer, back))
        finally:
            client_writer.close()
            target_writer.close()

    async def copy(self, source, sink, change) -> None:
        buffer = b""
        with suppress(OSError):
            while data := await source.read(1 << 16):
                buffer += data
                while (got := frames.parse(buffer)) is not None:
                    buffer = buffer[len(got.raw) :]
                    sink.write(b"".join(one.raw(got.mask is not None) for one in change(got)) if change else got.raw)
                await sink.drain()
            sink.write(buffer)
            sink.write_eof()


def of(opcode: int, change):
    """Changes frames of this opcode; the last ping and its pong, for which a raw server waits, stay."""

    def changed(got: frames.Frame) -> list[F]:
        if got.opcode == opcode and not (is_last(got) and opcode in (PING, PONG)):
            return change(got.payload)
        return [F(got.opcode, got.payload, fin=got.fin, rsv=got.rsv)]

    return changed


CHANGES = {
    "nothing": of(TEXT, lambda payload: [F(TEXT, payload)]),
    "a bit": of(TEXT, lambda payload: [F(TEXT, payload.replace(b"hello", b"hellm"))]),
    "a message lost": of(TEXT, lambda payload: [F(TEXT, payload)] if payload == LAST else []),
    "a message twice": of(TEXT, lambda payload: [F(TEXT, payload)] * 2),
    "another kind of message": of(TEXT, lambda payload: [F(BINARY, payload)]),
    "a reserved bit": of(TEXT, lambda payload: [F(TEXT, payload, rsv=1)]),
    "in fragments": of(TEXT, lambda payload: [F(TEXT, payload)] if payload == LAST else [F(TEXT, payload[:1], fin=False), F(CONTINUATION, payload[1:])]),
    "the form of a length": of(TEXT, lambda payload: [F(TEXT, payload, form=16)]),
    "a ping lost": of(PING, lambda payload: []),
    "a ping's payload": of(PING, lambda payload: [F(PING, b"q")]),
    "a pong lost": of(PONG, lambda payload: []),
    "a pong's payload": of(PONG, lambda payload: [F(PONG, b"q")]),
    "a close code": of(CLOSE, lambda payload: [F(CLOSE, close_payload(1001, payload[2:]))]),
    "a close reason": of(CLOSE, lambda payload: [F(CLOSE, payload[:2] + b"Done")]),
    "a Close that says nothing": of(CLOSE, lambda payload: [F(CLOSE)]),
    "something behind a Close": of(CLOSE, lambda payload: [F(CLOSE, payload), F(PONG, b"p")]),
}
TO_THE_PEER = [name for name in CHANGES if name not in ("in fragments", "the form of a length", "something behind a Close")]
"""The rest no application on the peer is told of."""
CLOSES_AND_PONGS = [name for name in CHANGES if name == "nothing" or "Close" in name or "close" in name or "pong" in name]
"""All that a strict client sends to a server that only talks."""
TAMPERED = [
    *(("client", "there", name) for name in TO_THE_PEER),
    *(("client", "back", name) for name in CHANGES if "ping" not in name),
    *(("server", "there", name) for name in CLOSES_AND_PONGS),
    *(("server", "back", name) for name in TO_THE_PEER),
]
HELLO = Case("hello", [F(TEXT, b"hello"), F(PING, b"p"), F(PONG, b"r")])


async def through(tamperer: Tamperer, world, role: str) -> str | None:
    numbers = iter(range(100_000))
    run, peer = (as_client, NodeServer()) if role == "client" else (as_server, NodeClient())
    async with peer.run(), tamperer.run():
        return await differs(lambda case, form: run(world, tamperer, peer, case, form, next(numbers)), HELLO, "query", role)


@pytest.mark.parametrize("role, way, what", TAMPERED)
async def test_a_difference_is_found(world, role, way, what):
    found = await through(Tamperer(**{way: CHANGES[what]}), world, role)
    assert (found is None) == (what == "nothing"), found


async def test_a_difference_that_is_there_once_is_found(world):
    """Nor is it taken for a race of the peer's, which would show without ringway too"""
    assert await through(Tamperer(back=CHANGES["a bit"], sessions=1), world, "client")


async def test_a_close_of_ringways_is_no_difference_only_where_tcp_ended(world):
    told = {"frames": [], "pongs": [], "closes": [(CLOSE, True, 0, False, 2, close_payload(1000))], "behind a Close": [], "cut": b"", "end": "fin"}
    peer = {"messages": [], "code": 1000, "reason": "", "error": None}
    lost = [(CLOSE, True, 0, False, 2, close_payload(1011, "Target connection lost"))]
    went, gone = {"raw": {**told, "closes": []}, "peer": peer}, {"raw": told, "peer": {**peer, "code": 1006}}
    assert allowed(went, {"raw": {**told, "closes": lost}, "peer": peer}, "client")
    assert not allowed(went, {"raw": {**told, "closes": lost}, "peer": peer}, "server")
    assert not allowed(went, {"raw": {**told, "closes": lost * 2}, "peer": peer}, "client")
    assert not allowed(went, {"raw": {**told, "closes": lost, "frames": [(TEXT, b"x")]}, "peer": peer}, "client")
    assert not allowed({"raw": told, "peer": peer}, {"raw": {**told, "closes": lost}, "peer": peer}, "client")
    assert allowed(gone, {"raw": told, "peer": {**peer, "code": 1001, "reason": "Client disconnected"}}, "client")
    assert not allowed(gone, {"raw": told, "peer": {**peer, "code": 1001, "reason": ""}}, "client")
    assert not allowed(gone, {"raw": told, "peer": {**peer, "code": 1011, "reason": "Target connection lost"}}, "client")
    assert not allowed({"raw": told, "peer": peer}, {"raw": told, "peer": {**peer, "code": 1001, "reason": "Client disconnected"}}, "client")
