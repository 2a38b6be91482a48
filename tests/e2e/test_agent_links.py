"""The gateway's side of the link (CONTRACT 5 and 7), against an agent that does as it is told."""
from __future__ import annotations

import asyncio
import json
import signal
import time

import pytest

from harness import frames
from harness.client import KEY
from harness.fake_agent import FakeAgent, Link, first_request
from harness.process import TOKEN, Gateway, token_entry, write_tokens
from harness.world import World

URL = "ws://target.example.com/some/path?token=secret"


@pytest.fixture
def agents(world: World):
    """Makes agents that are gone when the test is."""
    def make(gateway: Gateway, *arguments, **options) -> FakeAgent:
        agent = FakeAgent(gateway.port, *arguments, **options)
        world.stack.push_async_callback(agent.close)
        return agent
    return make


async def gateway_of(world: World, tokens: list[dict] | None = None, **options) -> Gateway:
    return await world.gateway(embedded=False, tokens=tokens if tokens is not None else [token_entry()], **options)


async def ask(world: World, gateway: Gateway, **fields):
    client = await world.client(gateway)
    await client.connect({"apiKey": KEY, "url": URL, **fields})
    return client


async def accept(channels: list[Link]) -> tuple[Link, dict]:
    channel, request = await first_request(channels)
    channel.say({"type": "accepted"})
    return channel, request


async def answered(channels: list[Link], client, **fields) -> Link:
    """Goes through with the set-up of a session."""
    channel, _ = await accept(channels)
    channel.say({"type": "dialing"})
    channel.say({"type": "connected", **fields})
    connected = await client.read_json()
    assert connected["type"] == "connected", connected
    return channel


async def serve(channel: Link) -> None:
    """The agent's part of a session that comes about, once it is asked for one."""
    await channel.hear()
    for kind in ("accepted", "dialing", "connected"):
        channel.say({"type": kind})


# --- the requests -------------------------------------------------------------------------------------------------
async def test_the_answer_to_a_control_link(world: World, agents) -> None:
    gateway = await gateway_of(world, workers=2, agents={"idle_channels": 3})
    control = await agents(gateway).ask()
    assert control.status == 101
    assert control.head["upgrade"] == "ringway" and control.head["connection"].lower() == "upgrade"
    assert control.head["ringway-protocol"] == "1"
    assert control.head["ringway-channels"] == "6", "three for each of two workers"
    assert len(control.head["ringway-instance"]) == 32
    assert (await control.hear()) == {"type": "heartbeat"}


@pytest.mark.parametrize("path", ["/agent/control", "/agent/data"])
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN.upper()])
async def test_a_stranger_learns_nothing(world: World, agents, path: str, token: str | None) -> None:
    gateway = await gateway_of(world)
    for changed in ({}, {"Ringway_Instance": "x"}, {"Ringway_Protocol": "99"}, {"upgrade": None}):
        link = await agents(gateway).ask(path, **{"Authorization": f"Bearer {token}" if token is not None else None, **changed})
        assert link.status == 401
        assert link.error == {"type": "error", "message": "Invalid or missing agent token", "code": "invalid_token"}


async def test_without_a_file_of_tokens_there_is_nothing(world: World, agents) -> None:
    gateway = await world.gateway()
    for path in ("/agent/control", "/agent/data"):
        assert (await agents(gateway).ask(path)).status == 404


@pytest.mark.parametrize("changed, status, code, says", [
    ({"upgrade": None}, 426, "upgrade_required", "upgrade"),
    ({"upgrade": "websocket"}, 426, "upgrade_required", "upgrade"),
    ({"Ringway_Slug": "us1"}, 403, "other_slug", "token is for the agent de1"),
    ({"Ringway_Country": "US"}, 403, "other_country", "de1 is in DE here, not in US"),
    ({"Ringway_Country": "D"}, 400, "invalid_request", "Ringway-Country"),
    ({"Ringway_Protocol": "3", "Ringway_Protocol_Oldest": "2"}, 426, "unsupported_protocol", "agent speaks link protocol 2 to 3, this gateway 1: update the gateway"),
    ({"Ringway_Protocol": "0"}, 426, "unsupported_protocol", "update the agent"),
    ({"Ringway_Protocol": None}, 400, "invalid_request", "Ringway-Protocol"),
    ({"Ringway_Process": None}, 400, "invalid_request", "Ringway-Process"),
    ({"Ringway_Node_Id": "x" * 300}, 400, "invalid_request", "Ringway-Node-Id"),
    ({"Ringway_Max_Sessions": "many"}, 400, "invalid_request", "Ringway-Max-Sessions"),
    ({"Content_Length": "5"}, 400, "invalid_request", "body"),
])
async def test_requests_that_may_not_go_on(world: World, agents, changed: dict, status: int, code: str, says: str) -> None:
    gateway = await gateway_of(world, [token_entry(country="DE")])
    upgrade = changed.pop("upgrade", "ringway")
    link = await agents(gateway).ask(upgrade=upgrade, **changed)
    assert (link.status, link.error["code"]) == (status, code)
    assert says in link.error["message"], link.error


async def test_an_agent_one_version_newer_works(world: World, agents) -> None:
    gateway = await gateway_of(world)
    control = await agents(gateway).link(Ringway_Protocol="2", Ringway_Protocol_Oldest="1")
    assert control.head["ringway-protocol"] == "1"
    control.say({"type": "sing", "song": {"of": "the future"}})
    control.say({"type": "heartbeat", "sessions": 0, "mood": "good"})
    await control.hear_of("heartbeat")


async def test_a_data_channel_names_its_gateway_and_its_agent(world: World, agents) -> None:
    gateway = await gateway_of(world, [token_entry(), token_entry("us1", "other-token")])
    agent = agents(gateway)
    await agent.link()
    for changed, code in [({"Ringway_Instance": "0" * 32}, "other_instance"), ({"Ringway_Process": "nobody"}, "not_linked"), ({"Authorization": "Bearer other-token"}, "not_linked")]:
        channel = await agent.data(**changed)
        assert (channel.status, channel.error["code"]) == (421, code)
    assert (await agent.data()).status == 101


async def test_other_methods(world: World) -> None:
    gateway = await gateway_of(world)
    client = await world.tcp(gateway)
    await client.send(b"POST /agent/control HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 405 ")


# --- sessions -----------------------------------------------------------------------------------------------------
async def test_what_an_agent_is_asked(world: World, agents) -> None:
    gateway = await gateway_of(world)
    agent = agents(gateway)
    await agent.link()
    channels = await agent.channels(2)
    client = await ask(world, gateway, headers={"x-Custom": "1", "Sec-WebSocket-Protocol": "a, b", "User-Agent": "me"}, cookies={"c": "2"})
    channel, request = await accept(channels)
    assert len(request.pop("session")) == 16
    assert 14_000 < request.pop("timeout_ms") <= 15_000
    assert request == {
        "url": "ws://target.example.com:80/some/path?token=secret", "host": ["Host", "target.example.com"],
        "headers": [["x-Custom", "1"], ["Sec-WebSocket-Protocol", "a, b"], ["User-Agent", "me"], ["Cookie", "c=2"]],
        "subprotocols": ["a", "b"],
    }
    channel.say({"type": "dialing"})
    channel.say({"type": "connected", "subprotocol": "b", "took": {"tcp_us": 5}})
    assert await client.read_json() == {"type": "connected", "status": 101, "node_id": "node-de1", "subprotocol": "b"}


async def test_frames_pass_as_they_are_and_a_channel_serves_one_session(world: World, agents) -> None:
    gateway = await gateway_of(world)
    agent = agents(gateway)
    await agent.link()
    channels = await agent.channels(1)
    client = await world.client(gateway)
    early = frames.masked(frames.TEXT, b"early") + frames.masked(frames.PING, b"p")
    from harness.client import connect_frame
    await client.send(connect_frame({"apiKey": KEY, "url": URL}) + early)
    channel, _ = await accept(channels)
    channel.say({"type": "dialing"})
    # What comes right behind the last message are frames.
    text = json.dumps({"type": "connected"}).encode()
    channel.writer.write(len(text).to_bytes(4, "big") + text + frames.frame(frames.TEXT, b"hello") + b"\x82")
    assert (await client.read_json())["type"] == "connected"
    assert (await client.read_frame()).payload == b"hello"
    assert await channel.reader.readexactly(len(early)) == early
    channel.writer.write(b"\x03abc")
    assert (await client.read_frame()).payload == b"abc"
    await client.send_close(4000)
    close = await channel.reader.readexactly(8)
    assert close[:2] == b"\x88\x82"
    channel.writer.write(frames.frame(frames.CLOSE, frames.close_payload(4000)))
    await client.expect_close(4000)
    # The agent is the server side of the channel: it ends it first.
    channel.close()
    await client.expect_end()


@pytest.mark.parametrize("reply, code, message", [
    ({"code": "target_unreachable", "detail": "connection refused"}, "target_unreachable", "Target connection failed: connection refused"),
    ({"code": "target_rejected", "status": 403}, "target_rejected", "Target answered HTTP 403"),
    ({"code": "target_not_allowed"}, "target_not_allowed", "Target not allowed"),
    ({"code": "target_timeout"}, "target_timeout", "Target timed out"),
    ({"code": "invalid_key"}, "agent_failure", "Agent failure"),
    ({"code": "never heard of"}, "agent_failure", "Agent failure"),
])
async def test_failures_reach_the_client(world: World, agents, reply: dict, code: str, message: str) -> None:
    gateway = await gateway_of(world)
    agent = agents(gateway)
    await agent.link()
    channels = await agent.channels(1)
    client = await ask(world, gateway)
    channel, _ = await accept(channels)
    channel.say({"type": "dialing"})
    channel.say({"type": "failed", **reply})
    await client.expect_error(code, 1008 if code == "target_not_allowed" else 1011, message)
    assert await channel.ended() == b"", "it is used once"


@pytest.mark.parametrize("how", ["ends", "resets", "refuses", "is silent", "talks nonsense", "sends too much", "accepts and ends"])
async def test_what_fails_before_the_dial_goes_to_another_channel_and_agent_unseen(world: World, agents, how: str) -> None:
    gateway = await gateway_of(world, [token_entry(), token_entry("us1", "other")])
    bad, good = agents(gateway), agents(gateway, "us1", "US", "other")
    await bad.link()
    channels = await bad.channels(3)

    def spoil(channel: Link) -> None:
        if how == "ends":
            channel.close()
        elif how == "resets":
            channel.reset()
        elif how == "refuses":
            channel.say({"type": "refused", "reason": "full"})
        elif how == "talks nonsense":
            channel.writer.write(b"\0\0\0\2[]")
        elif how == "sends too much":
            channel.writer.write(b"\xff\xff\xff\xff")
        elif how == "accepts and ends":
            channel.say({"type": "accepted"})
            channel.close()

    client = await ask(world, gateway)
    first, _ = await first_request(channels)
    # The other agent comes while the first one holds the session.
    await good.link()
    others = await good.channels(1)
    spoil(first)
    rest = [channel for channel in channels if channel is not first]
    if how != "refuses":
        # One that says no says it for all its channels.
        second, _ = await first_request(rest)
        spoil(second)
        rest.remove(second)
    channel = await answered(others, client)
    await client.send(frames.masked(frames.TEXT, b"x"))
    assert len(await channel.reader.readexactly(7)) == 7
    for channel in rest:
        with pytest.raises(TimeoutError):
            await channel.hear(0.1)


@pytest.mark.parametrize("how", ["ends", "resets", "refuses"])
async def test_behind_the_beginning_of_a_dial_nobody_else_tries(world: World, agents, how: str) -> None:
    gateway = await gateway_of(world, [token_entry(), token_entry("us1", "other")])
    bad, good = agents(gateway), agents(gateway, "us1", "US", "other")
    await bad.link()
    await good.link()
    channels, others = await bad.channels(2), await good.channels(2)
    client = await ask(world, gateway, agent="de1")
    channel, _ = await accept(channels)
    channel.say({"type": "dialing"})
    if how == "refuses":
        channel.say({"type": "refused", "reason": "changed my mind"})
    else:
        getattr(channel, {"ends": "close", "resets": "reset"}[how])()
    await client.expect_error("agent_failure", 1011, "Agent failure")
    for other in others + [other for other in channels if other is not channel]:
        with pytest.raises(TimeoutError):
            await other.hear(0.1)


async def test_no_other_agent_is_agent_failure_and_none_at_all_is_no_agent(world: World, agents) -> None:
    gateway = await gateway_of(world)
    client = await ask(world, gateway)
    await client.expect_error("no_agent", 1011, "No agent available")
    agent = agents(gateway)
    await agent.link()
    channels = await agent.channels(2)
    client = await ask(world, gateway)
    for channel in channels:
        await channel.hear()
        channel.close()
    await client.expect_error("agent_failure", 1011, "Agent failure")


async def test_a_session_without_a_ready_channel_asks_for_one_and_waits(world: World, agents) -> None:
    gateway = await gateway_of(world)
    agent = agents(gateway)
    control = await agent.link()
    clients = [await ask(world, gateway) for _ in range(5)]
    for client in clients:
        assert (await control.hear_of("open"))["count"] == 1
    serving = [asyncio.create_task(serve(await agent.data())) for _ in range(5)]
    await asyncio.gather(*serving)
    for client in clients:
        assert (await client.read_json())["type"] == "connected"


async def test_a_worker_without_a_channel_takes_anothers(world: World, agents) -> None:
    gateway = await gateway_of(world, workers=4)
    agent = agents(gateway)
    control = await agent.link()
    serving = [asyncio.create_task(serve(channel)) for channel in await agent.channels(8)]
    clients = [await ask(world, gateway) for _ in range(8)]
    await asyncio.gather(*serving)
    for client in clients:
        assert (await client.read_json())["type"] == "connected"
    # None had to wait for a fresh one.
    with pytest.raises(TimeoutError):
        await control.hear_of("open", 0.2)


async def test_a_client_that_leaves_ends_the_dial(world: World, agents) -> None:
    gateway = await gateway_of(world)
    agent = agents(gateway)
    await agent.link()
    channels = await agent.channels(1)
    client = await ask(world, gateway)
    channel, _ = await accept(channels)
    channel.say({"type": "dialing"})
    await client.send_close(1000)
    await client.expect_close(1000)
    assert await channel.ended() == b""


async def test_a_channel_that_ends_without_a_close_is_agent_lost(world: World, agents) -> None:
    gateway = await gateway_of(world)
    agent = agents(gateway)
    await agent.link()
    channels = await agent.channels(2)
    first = await ask(world, gateway)
    one = await answered(channels, first)
    second = await ask(world, gateway)
    other = await answered([channel for channel in channels if channel is not one], second)
    one.reset()
    await first.expect_close(1011, "Agent lost")
    # The others are not touched.
    other.writer.write(frames.frame(frames.TEXT, b"still here"))
    assert (await second.read_frame()).payload == b"still here"


async def test_an_agent_that_says_it_drains_gets_no_new_sessions(world: World, agents) -> None:
    gateway = await gateway_of(world, admin=True)
    agent = agents(gateway)
    control = await agent.link()
    channels = await agent.channels(2)
    client = await ask(world, gateway)
    channel = await answered(channels, client)
    control.say({"type": "draining"})
    await gateway.line("agent drains")
    refused = await ask(world, gateway)
    await refused.expect_error("no_agent", 1011)
    channel.writer.write(frames.frame(frames.TEXT, b"goes on"))
    assert (await client.read_frame()).payload == b"goes on"


async def test_a_full_agent_is_never_picked(world: World, agents) -> None:
    gateway = await gateway_of(world)
    agent = agents(gateway, max_sessions=1)
    await agent.link()
    channels = await agent.channels(2)
    client = await ask(world, gateway)
    await answered(channels, client)
    refused = await ask(world, gateway)
    await refused.expect_error("no_agent", 1011)


# --- death --------------------------------------------------------------------------------------------------------
async def test_a_link_that_comes_back_in_time_ends_no_session(world: World, agents) -> None:
    gateway = await gateway_of(world)
    agent = agents(gateway)
    control = await agent.link()
    channels = await agent.channels(1)
    client = await ask(world, gateway)
    channel = await answered(channels, client)
    control.reset()
    await gateway.line("agent's link ended")
    refused = await ask(world, gateway)
    await refused.expect_error("no_agent", 1011)
    again = agents(gateway, process=agent.process)
    await again.link()
    channel.writer.write(frames.frame(frames.TEXT, b"still here"))
    assert (await client.read_frame()).payload == b"still here"
    # And it is picked again.
    client = await ask(world, gateway)
    await answered(await again.channels(1), client)


@pytest.mark.slow
@pytest.mark.limit(120)
@pytest.mark.parametrize("how", ["reset", "silent"])
async def test_a_lost_agents_sessions_end(world: World, agents, how: str) -> None:
    gateway = await gateway_of(world)
    agent = agents(gateway)
    control = await agent.link(beats=how == "reset")
    channels = await agent.channels(2)
    client = await ask(world, gateway)
    channel = await answered(channels, client)
    gone = time.monotonic()
    if how == "reset":
        control.reset()
    else:
        await gateway.line("agent is silent", patience=20)
        refused = await ask(world, gateway)
        await refused.expect_error("no_agent", 1011)
    await client.expect_close(1011, "Agent lost", patience=40)
    took = time.monotonic() - gone
    assert took > (14 if how == "reset" else 28), took
    await channel.ended()
    for idle in channels:
        await idle.ended()


# --- operators ----------------------------------------------------------------------------------------------------
async def test_agents_are_listed(world: World, agents) -> None:
    gateway = await gateway_of(world, [token_entry(country="DE"), token_entry("us1", "other"), token_entry("us1", "third", country="US")])

    async def listed() -> list:
        client = await world.tcp(gateway)
        await client.send(f"GET /network/agents HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nConnection: close\r\n\r\n".encode())
        return json.loads((await client.read_to_end()).split(b"\r\n\r\n", 1)[1])["agents"]

    assert await listed() == [{"slug": "de1", "country": "DE", "up": False}, {"slug": "us1", "country": "US", "up": False}]
    agent = agents(gateway, "us1", "US", "other")
    control = await agent.link()
    await gateway.line("agent linked")
    assert await listed() == [{"slug": "us1", "country": "US", "up": True}, {"slug": "de1", "country": "DE", "up": False}]
    control.close()
    await gateway.line("agent's link ended")
    assert [one["up"] for one in await listed()] == [False, False]


async def test_a_token_that_is_taken_away(world: World, agents) -> None:
    folder = world.folder()
    gateway = await gateway_of(world, [token_entry(), token_entry("us1", "other")], folder=folder)
    agent = agents(gateway)
    control = await agent.link()
    channels = await agent.channels(2)
    client = await ask(world, gateway)
    channel = await answered(channels, client)
    write_tokens(folder, [token_entry("us1", "other")])
    gateway.signal(signal.SIGHUP)
    await gateway.line("its token was removed.* it gets no new sessions")
    assert (await control.hear_of("draining"))["type"] == "draining"
    refused = await ask(world, gateway)
    await refused.expect_error("no_agent", 1011)
    assert (await agent.data()).status == 401
    # Its session lives on, and the link with it.
    channel.writer.write(frames.frame(frames.TEXT, b"still here"))
    assert (await client.read_frame()).payload == b"still here"
    await client.send_close(1000)
    channel.writer.write(frames.frame(frames.CLOSE, frames.close_payload(1000)))
    channel.close()
    await client.expect_close(1000)
    await gateway.line("its last session has ended: link closed", patience=10)
    assert (await agents(gateway).ask()).status == 401


async def test_a_broken_file_of_tokens_keeps_the_old_ones(world: World, agents) -> None:
    folder = world.folder()
    gateway = await gateway_of(world, folder=folder)
    (folder / "agents.toml").write_text("[[agent]]\nslug = 5\n")
    gateway.signal(signal.SIGHUP)
    await gateway.line("agents.toml:2")
    assert (await agents(gateway).ask()).status == 101


async def test_a_gateway_that_drains_tells_its_agents(world: World, agents) -> None:
    gateway = await gateway_of(world, limits={"drain": "10s"})
    agent = agents(gateway)
    control = await agent.link()
    channels = await agent.channels(2)
    client = await ask(world, gateway)
    channel, _ = await accept(channels)
    gateway.signal(signal.SIGTERM)
    await control.hear_of("draining")
    stranger = await agents(gateway).ask()
    assert (stranger.status, stranger.error["code"], stranger.head["retry-after"]) == (503, "draining", "1")
    assert (await agent.data()).status == 101, "for dials in progress"
    again = await agents(gateway, process=agent.process).ask()
    assert again.status == 101, "it has a session here"
    channel.say({"type": "dialing"})
    channel.say({"type": "connected"})
    assert (await client.read_json())["type"] == "connected"
    await client.expect_close(1012, "Service restart")
    close = await channel.reader.readexactly(23)
    assert close[:2] == b"\x88\x91"
    await client.send_close(1012)
    channel.writer.write(frames.frame(frames.CLOSE, frames.close_payload(1001)))
    channel.close()
    assert await gateway.exit_code() == 0
