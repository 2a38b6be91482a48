"""The agent as a process, linked to gateways that the tests play: its links, its channels, its sessions, its ends."""
from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from harness import frames
from harness.fake_gateway import FakeGateway, Link, encode, request_for
from harness.http import fetch, samples, sessions, until
from harness.process import TOKEN, Agent
from harness.target import Target, TargetConnection
from harness.tls import Authority
from harness.world import World


def gateway_of(world: World, **options) -> FakeGateway:
    gateway = FakeGateway(**options)
    world.stack.callback(gateway.close)
    return gateway


async def agent_of(world: World, *gateways: FakeGateway, folder: Path | None = None, urls: list[str] | None = None, **options) -> Agent:
    agent = await Agent.run(folder or world.folder(), urls or [gateway.url for gateway in gateways], **options)
    world.stack.push_async_callback(agent.kill)
    return agent


async def linked(world: World, gateway_options: dict | None = None, **options) -> tuple[Agent, FakeGateway, Link]:
    gateway = gateway_of(world, **(gateway_options or {}))
    agent = await agent_of(world, gateway, **options)
    return agent, gateway, await gateway.control()


async def connected(gateway: FakeGateway, target: Target, behind: bytes = b"", from_target: bytes = b"", **more) -> tuple[Link, TargetConnection]:
    """A session that is relayed, from a channel that the agent opened."""
    channel = await gateway.channel()
    await channel.say(request_for(target.url(), **more), behind)
    await channel.hear_exactly("accepted", "dialing")
    connection = await target.accept()
    await connection.open(behind=from_target)
    await channel.hear_exactly("connected")
    return channel, connection


@asynccontextmanager
async def keeping(link: Link):
    """Heartbeats over a control link, and what comes over it read, as long as this lasts."""
    async def beat() -> None:
        while True:
            await link.say({"type": "heartbeat"})
            await asyncio.sleep(5)

    async def read() -> None:
        while True:
            await link.hear(60)

    tasks = [asyncio.create_task(beat()), asyncio.create_task(read())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


# --- links --------------------------------------------------------------------------------------------------------
async def test_it_says_who_it_is(world):
    agent, gateway, control = await linked(world, top={"max_sessions": 77})
    assert control.path == "/agent/control"
    fields = control.fields
    process = fields["ringway-process"]
    assert len(process) == 32 and int(process, 16)
    assert {name: fields[name] for name in fields if name not in ("ringway-process", "host", "connection")} == {
        "upgrade": "ringway", "authorization": f"Bearer {TOKEN}", "ringway-protocol": "1", "ringway-protocol-oldest": "1",
        "ringway-slug": "de1", "ringway-country": "DE", "ringway-node-id": "scraping-de1", "ringway-max-sessions": "77",
    }
    assert fields["host"] == f"127.0.0.1:{gateway.port}"
    channel = await gateway.channel()
    assert channel.path == "/agent/data"
    assert (channel.fields["ringway-instance"], channel.fields["ringway-process"]) == ("instance-1", process)
    assert channel.fields["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in agent.err


async def test_heartbeats_go_out_at_once_and_every_five_seconds(world):
    _, gateway, control = await linked(world)
    assert await control.hear() == {"type": "heartbeat", "sessions": 0}
    target = world.target()
    await connected(gateway, target)
    began = time.monotonic()
    assert await control.hear_of("heartbeat") == {"type": "heartbeat", "sessions": 1}
    assert time.monotonic() - began < 14


async def test_wanted_channels_are_opened_and_replaced(world):
    _, gateway, control = await linked(world, {"channels": 3})
    channels = [await gateway.channel() for _ in range(3)]
    await asyncio.sleep(0.3)
    assert gateway.waiting["data"].empty()
    await control.say({"type": "open", "count": 2})
    channels += [await gateway.channel() for _ in range(2)]
    for channel in channels[:3]:
        channel.close()
    channels[3:] = [*channels[3:], await gateway.channel()]
    await asyncio.sleep(0.3)
    assert gateway.waiting["data"].empty(), "more than were wanted"


async def test_a_gateway_cannot_make_it_open_channels_without_end(world):
    _, gateway, control = await linked(world, {"channels": 0})
    gateway.answer_data = False
    await control.say({"type": "open", "count": 4_000_000_000})
    for _ in range(64):
        await gateway.channel()
    await asyncio.sleep(0.5)
    assert gateway.waiting["data"].empty(), "more than 64 at once"


async def test_channels_that_end_at_once_are_not_opened_without_a_pause(world):
    _, gateway, _ = await linked(world, {"channels": 1})
    began, taken = time.monotonic(), 0
    while taken < 4:
        (await gateway.channel()).close()
        taken += 1
    assert time.monotonic() - began >= 1.4, "three pauses of at least half a second"


async def test_messages_in_pieces_and_of_later_versions(world):
    _, gateway, control = await linked(world, {"channels": 0})
    await control.send_slices(encode({"type": "sing"}) + encode({"type": "open", "count": 1, "why": [1]}))
    await gateway.channel()


@pytest.mark.parametrize("junk", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01{", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_control_link_that_says_nonsense_is_ended_and_made_anew(world, junk):
    agent, gateway, control = await linked(world)
    await control.send(junk)
    await agent.line("the link to the gateway has ended")
    await gateway.control()


async def test_over_tls(world):
    authority = Authority(world.folder())
    gateway = gateway_of(world, tls=authority.server("127.0.0.1"))
    agent = await agent_of(world, gateway, top={"ca_file": str(authority.file)})
    await gateway.control()
    target = world.target()
    channel, connection = await connected(gateway, target)
    sent = await channel.send_text("x" * 300_000)
    await connection.expect_raw(sent)
    await connection.send(frames.frame(frames.BINARY, b"y" * 300_000))
    await channel.expect_frame(frames.BINARY, b"y" * 300_000)
    assert agent.child.returncode is None


async def test_two_gateways_are_two_links(world):
    first, second = gateway_of(world, instance="a"), gateway_of(world, instance="b")
    await agent_of(world, first, second)
    await first.control()
    await second.control()
    assert (await first.channel()).fields["ringway-instance"] == "a"
    assert (await second.channel()).fields["ringway-instance"] == "b"


# --- links that fail ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("status", "fields", "body", "log"), [
    (401, {}, b"", r"ERROR.*no link to the gateway: its token is refused"),
    (403, {}, b'{"message":"slug de1 is not yours"}', r"ERROR.*slug or country is refused \(slug de1 is not yours\)"),
    (426, {}, b'{"message":"This gateway speaks 9"}', r"the versions do not fit: This gateway speaks 9 \(this agent speaks link protocol 1 to 1\)"),
    (101, {"Upgrade": "ringway", "Ringway-Protocol": "9", "Ringway-Instance": "x"}, b"", r"the versions do not fit: it speaks link protocol 9"),
    (101, {"Upgrade": "ringway"}, b"", r"it does not say who it is"),
    (503, {"Retry-After": "1"}, b'{"message":"shutting down"}', r"it takes no agents now \(shutting down\)"),
    (404, {}, b"", r"no ringway gateway of this version, or the path is wrong: HTTP 404"),
])
async def test_refusals_are_logged_with_what_is_needed(world, status, fields, body, log):
    gateway = gateway_of(world)
    gateway.answer_control = False
    agent = await agent_of(world, gateway, linked=False)
    await (await gateway.control()).answer(status, fields, body)
    await agent.line(log)
    assert TOKEN not in agent.err
    if status == 503:
        await (await gateway.control()).answer(status, fields, body)
        gateway.answer_control = True
        await gateway.control()
        await agent.ready()
        assert len([line for line in agent.lines if "no link" in line]) == 1, "the same cause is said once"


async def test_stages_of_a_link_that_fails(world):
    gateway = gateway_of(world)
    plain = gateway_of(world)
    tls = gateway_of(world, tls=Authority(world.folder()).server("127.0.0.1"))
    gone = gateway_of(world)
    gone.close()
    agent = await agent_of(world, urls=["wss://no-such-host.invalid:80/agent", gone.url, tls.url, plain.url.replace("ws:", "wss:"), gateway.url])
    await agent.line(r"no link to the gateway: DNS: .*gateway=no-such-host.invalid:80")
    await agent.line(rf"no link to the gateway: TCP: connection refused.*:{gone.port}$")
    await agent.line(rf"no link to the gateway: TLS: its certificate is signed by nobody.*:{tls.port}$")
    await agent.line(rf"no link to the gateway: TLS: .*:{plain.port}$", patience=30)
    await gateway.control()


async def test_five_mismatches_are_several_gateways(world):
    agent, gateway, _ = await linked(world, {"channels": 1})
    gateway.answer_data = False
    (await gateway.channel()).close()
    for _ in range(5):
        await (await gateway.channel(40)).answer(421)
    await agent.line("several gateways behind one address: list each in `gateways`")


async def test_sighup_reads_the_token_again(world):
    gateway = gateway_of(world)
    gateway.answer_control = False
    folder = world.folder()
    agent = await agent_of(world, gateway, folder=folder, token="old-token-old-token", linked=False)
    old = await gateway.control()
    assert old.fields["authorization"] == "Bearer old-token-old-token"
    await old.answer(401)
    await agent.line("its token is refused")
    (folder / "agent.token").write_text(TOKEN + "\n")
    gateway.answer_control = True
    agent.signal(signal.SIGHUP)
    new = await gateway.control(5)
    assert new.fields["authorization"] == f"Bearer {TOKEN}"
    await agent.ready()


# --- sessions -----------------------------------------------------------------------------------------------------
async def test_a_session_both_ways_with_frames_behind_both_set_ups(world):
    agent, gateway, _ = await linked(world, admin=True)
    target = world.target()
    early = frames.masked(frames.TEXT, b"early", fin=False)
    late = frames.frame(frames.TEXT, b"late")
    headers = [["x-Odd-Case", "1"], ["Cookie", "a=b"], ["Sec-WebSocket-Protocol", "mqtt"]]
    channel = await gateway.channel()
    await channel.say(request_for(target.url("/path?q=1"), headers=headers, subprotocols=["mqtt"]), early)
    await channel.hear_exactly("accepted", "dialing")
    connection = await target.accept()
    await connection.open("Sec-WebSocket-Protocol: mqtt\r\n", behind=late)
    assert connection.request_line == "GET /path?q=1 HTTP/1.1"
    assert "x-Odd-Case: 1" in connection.header_lines
    got = await channel.hear_exactly("connected")
    assert got["subprotocol"] == "mqtt" and got["took"]["tcp_us"] > 0 and got["took"]["upgrade_us"] > 0, got
    await channel.expect_raw(late)
    await connection.expect_raw(early)
    data = os.urandom(3_000_000)
    both = [frames.masked(frames.CONTINUATION, data), frames.frame(frames.BINARY, data)]
    await asyncio.gather(channel.send(both[0]), connection.expect_raw(both[0]), connection.send(both[1]), channel.expect_raw(both[1]))
    listed = await sessions(agent)
    assert [(row["id"], row["target"], row["state"]) for row in listed] == [("00ff00ff00ff00ff", target.url(""), "connected")], listed
    await channel.send_close(1000, "done")
    await connection.expect_close(1000, "done")
    await connection.send_close(1000)
    await channel.expect_close(1000)
    await until(lambda: sessions(agent), lambda rows: rows == [], "end of the session")
    got = await samples(agent)
    assert got['ringway_sessions_total{outcome="connected"}'] == 1
    assert got[f'ringway_links_up{{gateway="127.0.0.1:{gateway.port}"}}'] == 1
    assert got['ringway_frames_total{direction="client_to_target",opcode="continuation"}'] == 1
    assert "secret" not in agent.err


async def test_a_request_in_pieces(world):
    _, gateway, _ = await linked(world)
    target = world.target()
    channel = await gateway.channel()
    await channel.send_slices(encode(request_for(target.url())), 7)
    await channel.hear_exactly("accepted", "dialing")
    await (await target.accept()).open()
    await channel.hear_exactly("connected")


async def test_frames_while_it_dials_are_kept(world):
    _, gateway, _ = await linked(world)
    target = world.target()
    channel = await gateway.channel()
    await channel.say(request_for(target.url()))
    await channel.hear_exactly("accepted", "dialing")
    connection = await target.accept()
    await connection.read_request()
    sent = b"".join([await channel.send_text("a" * 100) for _ in range(2000)])
    await connection.send(connection.switching())
    await channel.hear_exactly("connected")
    await connection.expect_raw(sent)


@pytest.mark.parametrize("case", ["refused", "rejected", "invalid", "forbidden", "timeout", "own timeout"])
async def test_dials_that_fail(world, case):
    options = {"egress": {"deny": ["127.0.0.1/32"]}} if case == "forbidden" else {}
    if case == "own timeout":
        options["limits"] = {"target_timeout": "300ms"}
    _, gateway, _ = await linked(world, **options)
    target = world.target()
    if case == "refused":
        target.close()
    channel = await gateway.channel()
    await channel.say(request_for(target.url(), timeout_ms=300 if case == "timeout" else 15000))
    await channel.hear_exactly("accepted")
    if case == "forbidden":
        got = await channel.hear_exactly("failed")
        assert got["code"] == "target_not_allowed", got
        await target.expect_no_dial()
    else:
        await channel.hear_exactly("dialing")
        if case in ("rejected", "invalid"):
            connection = await target.accept()
            await connection.read_request()
            await connection.send(b"HTTP/1.1 403 Forbidden\r\n\r\n" if case == "rejected" else connection.switching(accept="wrong"))
        got = await channel.hear_exactly("failed")
        expected = {
            "refused": ("target_unreachable", "connection refused", None),
            "rejected": ("target_rejected", "", 403),
            "invalid": ("target_rejected", "Sec-WebSocket-Accept does not fit the key", None),
            "timeout": ("target_timeout", "", None),
            "own timeout": ("target_timeout", "", None),
        }[case]
        assert (got["code"], got.get("detail", ""), got.get("status")) == expected, got
    await channel.expect_fin()


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_gateway_that_gives_up_ends_the_dial(world, how):
    agent, gateway, _ = await linked(world, admin=True)
    target = world.target()
    channel = await gateway.channel()
    await channel.say(request_for(target.url()))
    await channel.hear_exactly("accepted", "dialing")
    connection = await target.accept()
    await connection.read_request()
    getattr(channel, how)()
    await connection.expect_end()
    assert (await samples(agent))['ringway_sessions_total{outcome="client_gone"}'] == 1
    assert await sessions(agent) == []


async def test_a_request_that_cannot_be_read_ends_its_channel_alone(world):
    _, gateway, control = await linked(world)
    channel = await gateway.channel()
    await channel.send(b"\x00\x00\x00\x02[]")
    await channel.expect_end()
    channel = await gateway.channel()
    await channel.say(request_for("http://nonsense"))
    await channel.hear_exactly("refused")
    await connected(gateway, world.target())


async def test_a_full_agent_refuses(world):
    _, gateway, _ = await linked(world, top={"max_sessions": 1})
    target = world.target()
    first, connection = await connected(gateway, target)
    channel = await gateway.channel()
    await channel.say(request_for(target.url()))
    assert (await channel.hear_exactly("refused"))["reason"] == "full"
    await channel.expect_fin()
    await first.send_close(1000)
    await connection.expect_close(1000)
    await connection.send_close(1000)
    await first.expect_close(1000)
    first.close()
    connection.close()
    await asyncio.sleep(0.2)
    await connected(gateway, target)


async def test_a_channel_that_ends_without_a_close_ends_its_session_alone(world):
    _, gateway, _ = await linked(world)
    target = world.target()
    lost, of_lost = await connected(gateway, target)
    kept, of_kept = await connected(gateway, target)
    lost.close()
    await of_lost.expect_close(1001, "Gateway lost")
    await kept.send_text("on")
    await of_kept.read_frame()


async def test_a_target_that_leaves_without_a_close(world):
    _, gateway, _ = await linked(world)
    channel, connection = await connected(gateway, world.target())
    connection.close()
    got = await channel.read_frame()
    assert (got.close_code, got.close_reason) == (1011, "Target connection lost"), got


# --- links that end -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_link_that_only_reconnects_ends_no_session(world, how):
    agent, gateway, control = await linked(world)
    channel, connection = await connected(gateway, world.target())
    getattr(control, how)()
    again = await gateway.control(5)
    assert again.fields["ringway-process"] == control.fields["ringway-process"]
    async with keeping(again):
        # Longer than a gateway that has not come back would be waited for.
        await asyncio.sleep(16)
        await channel.send_text("on")
        await connection.read_frame()
    assert "is lost" not in agent.err


async def test_another_process_at_the_address_means_that_the_gateway_is_lost(world):
    agent, gateway, control = await linked(world)
    channel, connection = await connected(gateway, world.target())
    gateway.instance = "instance-2"
    control.close()
    await gateway.control(5)
    await connection.expect_close(1001, "Gateway lost")
    await agent.line("the gateway is lost")
    while (await gateway.channel()).fields["ringway-instance"] != "instance-2":
        pass


async def test_a_gateway_that_does_not_come_back_is_lost_after_fifteen_seconds(world):
    _, gateway, control = await linked(world)
    channel, connection = await connected(gateway, world.target())
    idle = await gateway.channel()
    gateway.stop_listening()
    began = time.monotonic()
    control.close()
    await connection.expect_close(1001, "Gateway lost", patience=30)
    assert time.monotonic() - began >= 14.5
    await idle.expect_end()


@pytest.mark.slow
@pytest.mark.limit(90)
async def test_a_silent_gateway_is_lost_after_thirty_seconds(world):
    _, gateway, control = await linked(world)
    channel, connection = await connected(gateway, world.target())
    gateway.answer_control = False
    began = time.monotonic()
    await connection.expect_close(1001, "Gateway lost", patience=50)
    assert time.monotonic() - began >= 29
    assert gateway.waiting["control"].qsize() >= 3, "tried again all the time"


async def test_a_gateway_that_drains_gets_no_new_channels(world):
    agent, gateway, control = await linked(world, {"channels": 1})
    channel = await gateway.channel()
    await control.say({"type": "draining"})
    await agent.line("the gateway drains")
    channel.close()
    await asyncio.sleep(0.3)
    assert gateway.waiting["data"].empty()


# --- its own end --------------------------------------------------------------------------------------------------
async def test_it_drains(world):
    agent, gateway, control = await linked(world, limits={"drain": "20s"}, admin=True)
    target = world.target()
    channel, connection = await connected(gateway, target)
    idle = await gateway.channel()
    agent.signal(signal.SIGTERM)
    await control.hear_of("draining")
    assert (await fetch(agent.admin_port, "/readyz")).status == 503
    await idle.say(request_for(target.url()))
    assert (await idle.hear_exactly("refused"))["reason"] == "draining"
    got = await channel.read_frame()
    assert (got.close_code, got.close_reason) == (1012, "Service restart")
    await connection.expect_close(1001, "Service restart")
    await connection.send_close(1001)
    await channel.send_close(1012)
    assert await agent.exit_code() == 0


async def test_an_idle_agent_exits_at_once(world):
    agent, gateway, control = await linked(world)
    agent.signal(signal.SIGTERM)
    assert await agent.exit_code(5) == 0


async def test_a_second_signal_ends_it_at_once(world):
    agent, gateway, control = await linked(world, limits={"drain": "60s"})
    await connected(gateway, world.target())
    agent.signal(signal.SIGTERM)
    await control.hear_of("draining")
    agent.signal(signal.SIGTERM)
    assert await agent.exit_code() == 1


async def test_it_is_ready_when_linked(world):
    gateway = gateway_of(world)
    gateway.answer_control = False
    agent = await agent_of(world, gateway, linked=False, admin=True)
    link = await gateway.control()
    assert (await fetch(agent.admin_port, "/readyz")).status == 503
    assert (await fetch(agent.admin_port, "/healthz")).status == 200
    await link.answer(101, gateway.accepted)
    await agent.ready()
    assert (await fetch(agent.admin_port, "/readyz")).status == 200
