"""Gateways and remote agents as processes (CONTRACT 7): selection, failover, death on every side, many sessions."""
from __future__ import annotations

import asyncio
import collections
import ctypes
import json
import os
import signal
import subprocess
import time

import pytest

from harness import frames
from harness.client import KEY
from harness.netns import CLONE_NEWNET, in_namespace
from harness.process import TOKEN, token_entry, write_tokens
from harness.target import Target
from harness.world import World

SLUGS = {"de1": "DE", "at5": "AT", "us1": "US"}


async def fleet(world: World, slugs=tuple(SLUGS), gateways: int = 1, agent: dict | None = None, **options):
    """Gateways without an embedded agent, and one agent a slug that is linked to all of them."""
    tokens = [token_entry(slug, f"{TOKEN}-{slug}") for slug in dict.fromkeys(slugs)]
    made = [await world.gateway(embedded=False, tokens=tokens, admin=True, **options) for _ in range(gateways)]
    agents = []
    for number, slug in enumerate(slugs):
        agents.append(await world.agent(*made, slug=slug, country=SLUGS[slug], node_id=f"{slug}-{number}", token=f"{TOKEN}-{slug}", **(agent or {})))
    for gateway in made:
        await linked(gateway, len(slugs))
    return made, agents


async def linked(gateway, count: int) -> None:
    await gateway.wait_until(lambda: sum("agent linked" in line for line in gateway.lines) >= count, f"{count} links")


async def connected(world: World, gateway, target: Target, **fields):
    """A session, and the node that dialled. The target echoes."""
    client = await world.client(gateway)
    await client.connect({"apiKey": KEY, "url": target.url(), **fields})
    answer = await client.read_json()
    assert answer["type"] == "connected", answer
    return client, answer["node_id"]


async def echoes(client, payload: bytes = b"ping") -> None:
    await client.send(frames.masked(frames.BINARY, payload))
    got = await client.read_frame()
    assert got.payload == payload


async def closes(client) -> None:
    await client.send_close(1000)
    await client.expect_close(1000)
    await client.expect_end()
    client.close()


async def rows(world: World, gateway) -> list[dict]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.admin_port)
    writer.write(b"GET /sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 15)
    writer.close()
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])["sessions"]


async def no_sessions(world: World, gateway, patience: float = 15) -> None:
    async with asyncio.timeout(patience):
        while await rows(world, gateway):
            await asyncio.sleep(0.1)


# --- selection ----------------------------------------------------------------------------------------------------
async def test_geo_and_agent(world: World) -> None:
    (gateway,), _ = await fleet(world)
    target = world.target().serve_echo()
    for fields, nodes in [
        ({}, {"de1-0", "at5-1", "us1-2"}),
        ({"geo": "DE"}, {"de1-0"}),
        ({"geo": " de , ,"}, {"de1-0"}),
        ({"geo": ""}, {"de1-0", "at5-1", "us1-2"}),
        ({"geo": "US,AT"}, {"at5-1", "us1-2"}),
        ({"agent": "US1"}, {"us1-2"}),
        ({"agent": "us1, de1"}, {"us1-2", "de1-0"}),
        ({"agent": "us1,de1", "geo": "DE,XX"}, {"de1-0"}),
        ({"geo": "XX"}, None),
        ({"agent": "fr1"}, None),
        ({"agent": "us1", "geo": "DE"}, None),
    ]:
        if nodes is None:
            client = await world.client(gateway)
            await client.connect({"apiKey": KEY, "url": target.url(), **fields})
            await client.expect_error("no_agent", 1011, "No agent available")
            continue
        seen = set()
        for _ in range(4 * len(nodes) if len(nodes) > 1 else 2):
            client, node = await connected(world, gateway, target, **fields)
            await closes(client)
            seen.add(node)
        assert seen <= nodes, (fields, seen)


@pytest.mark.limit(120)
async def test_named_slugs_have_the_same_chance_even_where_one_has_two_agents(world: World) -> None:
    (gateway,), _ = await fleet(world, ("de1", "de1", "at5"))
    target = world.target().serve_echo()
    picks = 300
    counts = collections.Counter()
    for _ in range(picks):
        client, node = await connected(world, gateway, target, agent="de1,at5")
        await closes(client)
        counts[node] += 1
    both = counts["de1-0"] + counts["de1-1"]
    chi_square = 2 * (both - picks / 2) ** 2 / (picks / 2)
    assert chi_square < 15.1, counts  # one run in 10,000 of a fair pick is beyond this
    assert counts["de1-0"] and counts["de1-1"], "sessions spread over the two of one slug"


async def test_sessions_spread_over_agents_by_load(world: World) -> None:
    (gateway,), _ = await fleet(world)
    target = world.target().serve_echo()
    clients = [await connected(world, gateway, target) for _ in range(30)]
    counts = collections.Counter(node for _, node in clients)
    assert max(counts.values()) - min(counts.values()) <= 8, counts


# --- life ---------------------------------------------------------------------------------------------------------
@pytest.mark.limit(120)
async def test_a_killed_agent_ends_its_sessions_and_no_others(world: World) -> None:
    gateways, agents = await fleet(world, gateways=2)
    target = world.target().serve_echo()
    clients = {}
    for gateway in gateways:
        for slug in SLUGS:
            client, node = await connected(world, gateway, target, agent=slug)
            clients[client] = node
    agents[0].signal(signal.SIGKILL)
    for client, node in clients.items():
        if node == "de1-0":
            await client.expect_close(1011, "Agent lost")
            await client.finish(1011)
        else:
            await echoes(client)
    for gateway in gateways:
        client, node = await connected(world, gateway, target)
        assert node != "de1-0"
        await echoes(client)


@pytest.mark.limit(120)
async def test_a_killed_gateway_ends_its_sessions_and_no_others(world: World) -> None:
    gateways, agents = await fleet(world, gateways=2)
    target = world.target()
    mine, theirs = [], []
    for slug in SLUGS:
        for gateway, sessions in zip(gateways, (mine, theirs)):
            sessions.append(await world.dialling(gateway, target, agent=slug))
            await sessions[-1][1].send(sessions[-1][1].switching())
            assert (await sessions[-1][0].read_json())["type"] == "connected"
    gateways[0].signal(signal.SIGKILL)
    for _, connection in mine:
        await connection.expect_close(1001, "Gateway lost")
        await connection.send_close(1001)
        await connection.expect_end()
    for client, connection in theirs:
        await client.send(sent := frames.masked(frames.TEXT, b"still"))
        await connection.expect_raw(sent)
    client, connection = await world.dialling(gateways[1], target)
    await connection.send(connection.switching())
    assert (await client.read_json())["type"] == "connected"


@pytest.mark.slow
@pytest.mark.limit(150)
async def test_a_stopped_agent(world: World) -> None:
    """Its kernel still acknowledges: only the heartbeats tell."""
    (gateway,), agents = await fleet(world, ("de1", "at5"))
    target = world.target().serve_echo()
    on_it, _ = await connected(world, gateway, target, agent="de1")
    other, _ = await connected(world, gateway, target, agent="at5")
    agents[0].signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        # New sessions that it does not accept go elsewhere, unseen.
        for _ in range(4):
            client, node = await connected(world, gateway, target)
            assert node == "at5-1"
            await closes(client)
        await gateway.line("agent is silent", patience=25)
        await on_it.expect_close(1011, "Agent lost", patience=40)
        assert time.monotonic() - began < 45
        await echoes(other)
    finally:
        agents[0].signal(signal.SIGCONT)
    # It comes back by itself.
    await linked(gateway, 3)
    client, _ = await connected(world, gateway, target, agent="de1")
    await echoes(client)


@pytest.mark.slow
@pytest.mark.limit(150)
async def test_a_stopped_gateway(world: World) -> None:
    gateways, agents = await fleet(world, ("de1",), gateways=2)
    target = world.target()
    client, connection = await world.dialling(gateways[0], target)
    await connection.send(connection.switching())
    assert (await client.read_json())["type"] == "connected"
    gateways[0].signal(signal.SIGSTOP)
    try:
        await connection.expect_close(1001, "Gateway lost", patience=45)
        await connection.send_close(1001)
        await connection.expect_end()
        other, theirs = await world.dialling(gateways[1], target)
        await theirs.send(theirs.switching())
        assert (await other.read_json())["type"] == "connected"
    finally:
        gateways[0].signal(signal.SIGCONT)
    await client.expect_close(1011, "Agent lost", patience=40)


async def test_a_gateway_that_comes_back_has_its_agents_again(world: World) -> None:
    folder = world.folder()
    gateways, agents = await fleet(world, ("de1",), folder=folder)
    port = gateways[0].port
    gateways[0].signal(signal.SIGTERM)
    assert await gateways[0].exit_code() == 0
    again = await world.gateway(embedded=False, tokens=[token_entry("de1", f"{TOKEN}-de1")], admin=True, folder=folder, listen={"addr": [f"127.0.0.1:{port}"]})
    await linked(again, 1)
    client, node = await connected(world, again, world.target().serve_echo())
    assert node == "de1-0"
    await echoes(client)


async def test_an_agent_that_drains(world: World) -> None:
    (gateway,), agents = await fleet(world, ("de1", "at5"), agent={"limits": {"drain": "8s"}})
    target = world.target().serve_echo()
    client, _ = await connected(world, gateway, target, agent="de1")
    agents[0].signal(signal.SIGTERM)
    await gateway.line("agent drains")
    other, node = await connected(world, gateway, target)
    assert node == "at5-1"
    await client.expect_close(1012, "Service restart")
    await client.finish(1012)
    assert await agents[0].exit_code() == 0
    await echoes(other)


async def test_a_token_that_is_taken_away(world: World) -> None:
    folder = world.folder()
    (gateway,), (agent,) = await fleet(world, ("de1",), folder=folder)
    target = world.target().serve_echo()
    client, _ = await connected(world, gateway, target)
    write_tokens(folder, [token_entry("de1", "another")])
    gateway.signal(signal.SIGHUP)
    await gateway.line("its token was removed")
    refused = await world.client(gateway)
    await refused.connect({"apiKey": KEY, "url": target.url()})
    await refused.expect_error("no_agent", 1011)
    await echoes(client)
    await closes(client)
    await gateway.line("link closed")
    await agent.line("(?i)token")


# --- the network --------------------------------------------------------------------------------------------------
def sh(text: str) -> None:
    made = subprocess.run(["sh", "-ec", text], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr


@pytest.mark.slow
@in_namespace
async def test_a_network_that_is_cut(world: World) -> None:
    """The link is down, and no FIN comes: both sides end their half, and new sessions go on elsewhere."""
    anchor = subprocess.Popen(["unshare", "-n", "sleep", "300"])
    world.stack.callback(anchor.wait)
    world.stack.callback(anchor.kill)
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    while os.readlink(f"/proc/{anchor.pid}/ns/net") == os.readlink("/proc/thread-self/ns/net"):
        await asyncio.sleep(0.01)
    away = os.open(f"/proc/{anchor.pid}/ns/net", os.O_RDONLY)
    sh(f"""ip link add near type veth peer name far
        ip link set far netns {anchor.pid}
        ip addr add 10.78.0.1/24 dev near; ip link set near up
        nsenter --net=/proc/{anchor.pid}/ns/net sh -ec 'ip link set lo up; ip addr add 10.78.0.2/24 dev far; ip link set far up'""")
    gateway = await world.gateway(embedded=False, tokens=[token_entry("de1"), token_entry("at5", "other")], listen={"addr": ["10.78.0.1:0", "127.0.0.1:0"]}, admin=True)
    ports = [int(line.rsplit(":", 1)[1].split()[0]) for line in gateway.lines if "(public)" in line]
    gateway.port = ports[1]
    from harness.process import Agent
    far = await Agent.run(world.folder(), [f"ws://10.78.0.1:{ports[0]}/agent"], top={"insecure": True}, launcher=["nsenter", f"--net=/proc/{anchor.pid}/ns/net"])
    world.stack.push_async_callback(far.kill)
    near = await world.agent(gateway, slug="at5", country="AT", node_id="at5", token="other")
    assert libc.setns(away, CLONE_NEWNET) == 0
    try:
        target = world.target()
    finally:
        assert libc.setns(own, CLONE_NEWNET) == 0
    client, connection = await world.dialling(gateway, target, agent="de1")
    await connection.send(connection.switching())
    assert (await client.read_json())["type"] == "connected"
    sh("ip link set near down")
    client_ends = asyncio.create_task(client.expect_close(1011, "Agent lost", patience=60))
    target_ends = asyncio.create_task(connection.expect_close(1001, "Gateway lost", patience=60))
    local = world.target().serve_echo()
    other, node = await connected(world, gateway, local, agent="at5,de1")
    assert node == "at5"
    await asyncio.gather(client_ends, target_ends)
    await echoes(other)
    await near.line("linked")


# --- many ---------------------------------------------------------------------------------------------------------
@pytest.mark.limit(180)
async def test_two_thousand_sessions_over_one_agent(world: World) -> None:
    (gateway,), (agent,) = await fleet(world, ("de1",))
    target = world.target().serve_echo()
    count = 2000

    async def one(number: int) -> None:
        client = await world.client(gateway)
        await client.connect({"apiKey": KEY, "url": target.url()})
        answer = await client.read_json(60)
        assert answer["type"] == "connected", answer
        await client.send(frames.masked(frames.BINARY, payload := os.urandom(100 + number)))
        assert (await client.read_frame(60)).payload == payload
        sessions.append(client)

    sessions: list = []
    files = agent.fds()
    for first in range(0, count, 100):
        await asyncio.gather(*(one(number) for number in range(first, first + 100)))
    assert len(await rows(world, gateway)) == count

    async def end(client) -> None:
        await client.send_close(1000)
        await client.expect_close(1000, patience=60)
        await client.expect_end(60)
        client.close()

    for first in range(0, count, 100):
        await asyncio.gather(*(end(client) for client in sessions[first:first + 100]))
    await no_sessions(world, gateway)
    async with asyncio.timeout(30):
        while agent.fds() > files + 40:
            await asyncio.sleep(0.1)


async def test_more_sessions_at_once_than_channels(world: World) -> None:
    (gateway,), _ = await fleet(world, ("de1",), agents={"idle_channels": 1})
    target = world.target().serve_echo()
    made = await asyncio.gather(*(connected(world, gateway, target) for _ in range(100)))
    for client, _ in made:
        await echoes(client)


async def test_stopped_readers_do_not_slow_the_others(world: World) -> None:
    (gateway,), _ = await fleet(world, ("de1",))
    target = world.target()
    stopped = []
    for _ in range(50):
        client, connection = await world.dialling(gateway, target, sizes={"rcvbuf": 4096})
        await connection.send(connection.switching())
        await client.read_json()
        stopped.append((client, connection))
    block = frames.frame(frames.BINARY, os.urandom(1 << 20))

    async def flood(connection) -> None:
        # Ends by being cancelled: nobody takes it all.
        while True:
            await connection.send(block, 3600)

    floods = [asyncio.create_task(flood(connection)) for _, connection in stopped]
    busy = world.target().serve_echo()
    client, _ = await connected(world, gateway, busy)
    for number in range(200):
        await echoes(client, os.urandom(1000))
    for task in floods:
        assert not task.done()
        task.cancel()


# --- operators ----------------------------------------------------------------------------------------------------
async def get(gateway, path: str, port: int | None = None, key: str | None = None) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port or gateway.admin_port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{f'X-API-Key: {key}' if key else 'X-None: 1'}\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 15)).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split(b" ")[1]), body


async def ups(gateway) -> dict[str, bool]:
    _, body = await get(gateway, "/network/agents", gateway.port, KEY)
    return {one["slug"]: one["up"] for one in json.loads(body)["agents"]}


async def refused(world: World, gateway, target: Target, code: str, **fields) -> None:
    client = await world.client(gateway)
    await client.connect({"apiKey": KEY, "url": target.url(), **fields})
    await client.expect_error(code, 1011)


@pytest.mark.parametrize("entry", [token_entry("zz", f"{TOKEN}-de1"), token_entry("de1", f"{TOKEN}-de1", country="FR")], ids=["slug", "country"])
async def test_a_token_that_is_for_another_agent_now(world: World, entry: dict) -> None:
    folder = world.folder()
    (gateway,), (agent,) = await fleet(world, ("de1",), folder=folder)
    target = world.target().serve_echo()
    client, _ = await connected(world, gateway, target)
    write_tokens(folder, [entry])
    gateway.signal(signal.SIGHUP)
    await gateway.line("is for another agent now: it gets no new sessions")
    await refused(world, gateway, target, "no_agent")
    await echoes(client)
    await closes(client)
    await agent.line("slug or country is refused")
    assert not any((await ups(gateway)).values())


async def test_a_token_is_exchanged_without_a_gap_while_sessions_live(world: World) -> None:
    folder, home = world.folder(), world.folder()
    (gateway,), (agent,) = await fleet(world, ("de1",), folder=folder, agent={"folder": home})
    target = world.target().serve_echo()
    client, _ = await connected(world, gateway, target)
    write_tokens(folder, [token_entry("de1", f"{TOKEN}-de1"), token_entry("de1", "new")])
    gateway.signal(signal.SIGHUP)
    await gateway.line("agent tokens.*2 in all")
    (home / "agent.token").write_text("new")
    agent.signal(signal.SIGHUP)
    await agent.line("linking anew")
    await linked(gateway, 2)
    write_tokens(folder, [token_entry("de1", "new")])
    gateway.signal(signal.SIGHUP)
    await gateway.line("agent tokens.*1 in all")
    other, _ = await connected(world, gateway, target)
    await echoes(other)
    await echoes(client)


async def test_a_full_agent_of_two_gateways_is_no_agent(world: World) -> None:
    gateways, _ = await fleet(world, ("de1",), gateways=2, agent={"top": {"max_sessions": 2}})
    target = world.target().serve_echo()
    kept = [await connected(world, gateway, target) for gateway in gateways]
    for gateway in gateways:
        await refused(world, gateway, target, "no_agent")
        assert await ups(gateway) == {"de1": True}, "full is not down"
        assert (await get(gateway, "/readyz"))[0] == 200
    for client, _ in kept:
        await echoes(client)


async def test_what_is_said_of_an_agent_that_drains(world: World) -> None:
    (gateway,), (agent,) = await fleet(world, ("de1",), agent={"limits": {"drain": "7s"}})
    target = world.target()
    client, connection = await world.dialling(gateway, target)
    await connection.send(connection.switching())
    assert (await client.read_json())["type"] == "connected"
    agent.signal(signal.SIGTERM)
    await gateway.line("agent drains")
    assert await ups(gateway) == {"de1": False}
    assert (await get(gateway, "/readyz"))[0] == 503
    await asyncio.gather(client.expect_close(1012, "Service restart"), connection.expect_close(1001, "Service restart"))
    await connection.send_close(1001)
    await client.finish(1012)
    line = await gateway.line("access: .*")
    assert 'closed_by="agent" close_code=1012' in line[0], line[0]


async def test_a_dial_that_a_draining_agent_cannot_finish_is_1012(world: World) -> None:
    (gateway,), (agent,) = await fleet(world, ("de1",), agent={"limits": {"drain": "4s"}})
    client, connection = await world.dialling(gateway, world.target())
    agent.signal(signal.SIGTERM)
    await client.expect_close(1012, "Service restart")
    await client.finish(1012)
