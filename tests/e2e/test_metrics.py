"""CONTRACT 8: the metrics, as curl, promtool and Prometheus itself see them."""
from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import urllib.parse
import urllib.request

import pytest

from harness import frames
from harness.client import KEY
from harness.frames import BINARY, PING, TEXT, masked
from harness.http import fetch, parse_samples, samples, until
from harness.process import DRIVER, key_entry
from harness.wire import PATIENCE_S

SERIES = [
    "ringway_sessions_active",
    'ringway_sessions_total{outcome="connected"}',
    *(f'ringway_frames_total{{direction="{direction}",opcode="{opcode}"}}' for direction in ("client_to_target", "target_to_client") for opcode in ("continuation", "text", "binary", "close", "ping", "pong", "reserved")),
    'ringway_bytes_total{direction="client_to_target"}',
    'ringway_bytes_total{direction="target_to_client"}',
    *(f'ringway_connect_seconds_{part}{{stage="{stage}"}}' for part in ("count", "sum") for stage in ("message", "agent", "dns", "tcp", "proxy", "tls", "upgrade", "total")),
    *(f'ringway_closes_total{{code="{code}",side="{side}"}}' for side in ("client", "target") for code in (*range(1000, 1015), "other")),
    'ringway_agents_up{slug="de1"}',
    "ringway_rate_limited_total",
    'ringway_accepts_total{worker="0"}',
    'ringway_accepts_total{worker="1"}',
    'ringway_worker_sessions{worker="0"}',
    'ringway_worker_sessions{worker="1"}',
    f'ringway_driver{{name="{DRIVER}"}}',
    "ringway_pending",
    "ringway_draining",
    "ringway_log_lines_dropped_total",
    'ringway_refused_total{reason="too_many_pending"}',
]
"""Labels in alphabetical order. `build_info` has the version in a label and is looked at by itself."""


async def counts(gateway, name: str, value: float) -> dict[str, float]:
    """Waits until a series has this value."""
    return await until(lambda: samples(gateway), lambda found: found.get(name) == value, f"{name} {value}")


async def test_every_series_is_there_from_the_start(world):
    """Metrics (Prometheus text, `ringway_` prefix)"""
    gateway = await world.gateway(admin=True)
    answer = await fetch(gateway.admin_port, "/metrics")
    assert answer.fields["content-type"].startswith("text/plain; version=0.0.4"), answer.head
    found = parse_samples(answer.text)
    missing = [series for series in SERIES if series not in found]
    assert not missing, missing
    assert re.search(r'^ringway_build_info\{.*version="\d+\.\d+\.\d+.*\} 1$', answer.text, re.M)
    assert all(series.startswith("ringway_") for series in found)
    for name, kind in (("sessions_active", "gauge"), ("sessions_total", "counter"), ("connect_seconds", "histogram"), ("rate_limited_total", "counter"), ("agents_up", "gauge")):
        assert f"# TYPE ringway_{name} {kind}\n" in answer.text, name
    assert found['ringway_agents_up{slug="de1"}'] == 1 and found[f'ringway_driver{{name="{DRIVER}"}}'] == 1


async def test_live_sessions_are_counted_while_they_run(world):
    """`frames_total{direction,opcode}`, `bytes_total{direction}`, `sessions_active`, `worker_sessions{worker}`"""
    gateway, target = await world.gateway(admin=True), world.target()
    client, connection = await world.session(gateway, target)
    sent = masked(TEXT, b"x" * 100) * 3 + masked(BINARY, b"y" * 1000, fin=False) + masked(0, b"z") + masked(PING, b"p") + masked(0xB, b"r")
    back = frames.frame(BINARY, b"b" * 70_000)
    await client.send(sent)
    await connection.expect_raw(sent)
    await connection.send(back)
    await client.expect_raw(back)
    found = await samples(gateway)
    up, down = '{direction="client_to_target",opcode="%s"}', '{direction="target_to_client",opcode="%s"}'
    for labels, count in ((up % "text", 3), (up % "binary", 1), (up % "continuation", 1), (up % "ping", 1), (up % "reserved", 1), (up % "close", 0), (down % "binary", 1), (down % "text", 0)):
        assert found[f"ringway_frames_total{labels}"] == count, labels
    assert found['ringway_bytes_total{direction="client_to_target"}'] == len(sent)
    assert found['ringway_bytes_total{direction="target_to_client"}'] == len(back)
    assert found["ringway_sessions_active"] == 1
    assert sum(found[f'ringway_worker_sessions{{worker="{worker}"}}'] for worker in (0, 1)) == 1
    assert found['ringway_sessions_total{outcome="connected"}'] == 1
    assert sum(found[f'ringway_accepts_total{{worker="{worker}"}}'] for worker in (0, 1)) == 1
    assert found["ringway_pending"] == 0
    await client.part(connection)
    found = await counts(gateway, "ringway_sessions_active", 0)
    assert found['ringway_closes_total{code="1000",side="client"}'] == 1
    assert found['ringway_closes_total{code="1000",side="target"}'] == 1
    assert found[f"ringway_frames_total{up % 'close'}"] == found[f"ringway_frames_total{down % 'close'}"] == 1


async def test_closes_by_side_and_code(world):
    """`closes_total{side,code}` (`code`: 1000 to 1014, or `other`)"""
    gateway, target = await world.gateway(admin=True), world.target()
    client, connection = await world.session(gateway, target)
    await client.send_close(4321, "own")
    await connection.expect_close(4321)
    await connection.send_close(None)
    await client.expect_close(None)
    other, lost = await world.session(gateway, target)
    lost.close()
    await other.expect_close(1011, "Target connection lost")
    third, left = await world.session(gateway, target)
    third.close()
    await left.expect_close(1001, "Client disconnected")
    await world.refused(gateway, {"apiKey": "wrong", "url": target.url()}, "invalid_key", 1008)
    found = await samples(gateway)
    for side, code, count in (("target", "other", 1), ("client", "other", 1), ("client", "1011", 1), ("target", "1001", 1), ("client", "1008", 1), ("client", "1000", 0)):
        assert found[f'ringway_closes_total{{code="{code}",side="{side}"}}'] == count, (side, code)


async def test_a_close_that_nobody_gets_is_not_counted(world):
    """`closes_total{side,code}`: Closes that were sent"""
    gateway, target = await world.gateway(admin=True), world.target()
    for attempt in range(1, 11):
        client, connection = await world.dialling(gateway, target)
        # More than 64 KiB wait, so that the gateway looks for a reset four times a second only. Where it looks in just
        # that moment, the dial is given up, and nothing is shown.
        await client.send(b"".join(masked(BINARY, bytes(1000)) for _ in range(120)))
        await asyncio.sleep(0.3)
        client.pipe.reset()
        await connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        ended = lambda found: sum(value for name, value in found.items() if name.startswith("ringway_sessions_total")) == attempt
        found = await until(lambda: samples(gateway), ended, f"{attempt} ends")
        if found['ringway_sessions_total{outcome="target_rejected"}']:
            break
    found = await counts(gateway, "ringway_sessions_active", 0)
    assert found['ringway_sessions_total{outcome="target_rejected"}'] == 1
    assert found['ringway_closes_total{code="1011",side="client"}'] == 0


async def test_outcomes(world):
    """`sessions_total{outcome}` (as in the access log), `rate_limited_total`"""
    gateway, target = await world.gateway(admin=True, keys=[key_entry(KEY, rate=0.001, burst=2)]), world.target()
    closed = world.target()
    closed.sock.close()
    for message, code, close in (
        ({"apiKey": "nobody", "url": target.url()}, "invalid_key", 1008),
        ({"apiKey": KEY, "url": "http://x/"}, "invalid_connect_message", 1008),
        ("no json", "invalid_connect_message", 1008),
        ({"apiKey": KEY, "url": f"ws://127.0.0.1:{closed.port}/"}, "target_unreachable", 1011),
        ({"apiKey": KEY, "url": "ws://10.0.0.1/"}, "target_not_allowed", 1008),
        ({"apiKey": KEY, "url": target.url()}, "rate_limited", 1008),
        ({"apiKey": KEY, "url": target.url()}, "rate_limited", 1008),
    ):
        await world.refused(gateway, message, code, close)
    found = await samples(gateway)
    for outcome, count in (("invalid_key", 1), ("invalid_connect_message", 2), ("target_unreachable", 1), ("target_not_allowed", 1), ("rate_limited", 2), ("connected", 0), ("internal", 0)):
        assert found[f'ringway_sessions_total{{outcome="{outcome}"}}'] == count, outcome
    assert found["ringway_rate_limited_total"] == 2


async def test_connect_seconds(world):
    """`connect_seconds{stage}` (histogram; `message`, `agent`, `dns`, `tcp`, `tls`, `upgrade`, `total`)"""
    from harness.tls import Authority

    authority = Authority(world.folder())
    gateway = await world.gateway(admin=True, egress={"ca_file": str(authority.file), "allow": ["127.0.0.0/8", "localhost"]})
    plain, secret = world.target(), world.target(tls=authority.server("localhost"))
    client = await world.client(gateway)
    await asyncio.sleep(0.3)  # the client's own time
    await client.connect({"apiKey": KEY, "url": plain.url()})
    connection = await plain.accept()
    await connection.read_request()
    await asyncio.sleep(0.6)  # the target's
    await connection.send(connection.switching())
    await client.expect_connected()
    found = await samples(gateway)
    counted = {stage: found[f'ringway_connect_seconds_count{{stage="{stage}"}}'] for stage in ("message", "agent", "dns", "tcp", "tls", "upgrade", "total")}
    assert counted == {"message": 1, "agent": 1, "dns": 0, "tcp": 1, "tls": 0, "upgrade": 1, "total": 1}
    took = {stage: found[f'ringway_connect_seconds_sum{{stage="{stage}"}}'] for stage in counted}
    assert took["message"] >= 0.29 and took["upgrade"] >= 0.59 and took["total"] >= took["upgrade"] + took["tcp"], took
    assert found['ringway_connect_seconds_bucket{le="0.5",stage="upgrade"}'] == 0
    assert found['ringway_connect_seconds_bucket{le="+Inf",stage="upgrade"}'] == 1
    other = await world.client(gateway)
    await other.connect({"apiKey": KEY, "url": secret.url(host="localhost")})
    await (await secret.accept()).open()
    await other.expect_connected()
    found = await samples(gateway)
    assert found['ringway_connect_seconds_count{stage="dns"}'] == found['ringway_connect_seconds_count{stage="tls"}'] == 1


async def test_hostile_peers_are_counted(world):
    """what a stranger does before a connect message shows up, under fixed labels"""
    gateway = await world.gateway(admin=True, limits={"header_timeout": "300ms", "connect_timeout": "300ms", "max_pending": 2})
    silent = await world.tcp(gateway)
    await silent.expect_end()
    waiting = await world.client(gateway)
    await waiting.expect_close(1008, "Connect timeout")
    await waiting.finish(1008)
    garbage = await world.tcp(gateway)
    await garbage.send(b"\x16\x03\x01garbage\r\n\r\n")
    await garbage.read_to_end()
    rude = await world.client(gateway)
    await rude.send(frames.frame(TEXT, b"not masked"))
    await rude.expect_close(1002)
    rude.close()
    await until(lambda: samples(gateway), lambda found: found["ringway_pending"] == 0, "end of those")
    held = [await world.tcp(gateway) for _ in range(8)]
    answers = await asyncio.gather(*(one.read_to_end() for one in held))
    refused = sum(b" 503 " in answer for answer in answers)
    assert refused >= 1
    found = await samples(gateway)
    for reason, least in (("timeout_head", 1), ("timeout_message", 1), ("bad_request", 1), ("bad_frame", 1), ("too_many_pending", refused)):
        assert found[f'ringway_refused_total{{reason="{reason}"}}'] >= least, (reason, found)
    assert all(found[f'ringway_sessions_total{{outcome="{outcome}"}}'] == 0 for outcome in ("invalid_connect_message", "client_gone")), "none of them sent a connect message"


async def test_many_sessions_add_up(world):
    """counters are exact across workers, under concurrent sessions"""
    gateway, target = await world.gateway(admin=True), world.target().serve_echo()

    async def one(number: int) -> int:
        client = await world.client(gateway)
        await client.connect({"apiKey": KEY, "url": target.url()})
        await client.expect_connected()
        sent = 0
        for _ in range(20):
            sent += len(await client.send_text("m" * number))
            await client.read_frame()
        sent += len(await client.send_close(1000))
        await client.expect_close(1000)
        client.close()
        return sent

    sent = sum(await asyncio.gather(*(one(number) for number in range(1, 41))))
    found = await counts(gateway, "ringway_sessions_active", 0)
    assert found['ringway_frames_total{direction="client_to_target",opcode="text"}'] == 800
    assert found['ringway_frames_total{direction="target_to_client",opcode="text"}'] == 800
    assert found['ringway_bytes_total{direction="client_to_target"}'] == sent
    assert found['ringway_sessions_total{outcome="connected"}'] == 40
    assert found['ringway_closes_total{code="1000",side="client"}'] == 40


# --- Prometheus itself -------------------------------------------------------------------------------------------------
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian package prometheus)")
async def test_promtool_has_nothing_to_say(world):
    """Prometheus text: `promtool check metrics`"""
    gateway = await world.gateway(admin=True)
    text = (await fetch(gateway.admin_port, "/metrics")).body
    promtool = await asyncio.create_subprocess_exec("promtool", "check", "metrics", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    said, _ = await asyncio.wait_for(promtool.communicate(text), PATIENCE_S)
    assert (promtool.returncode, said) == (0, b""), said.decode()


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed (Debian package prometheus)")
async def test_prometheus_scrapes_it(world):
    """Every series of the contract is found through Prometheus' HTTP API"""
    gateway, target = await world.gateway(admin=True), world.target()
    client, connection = await world.session(gateway, target)
    await connection.expect_raw(await client.send_text("hello"))
    folder, port = world.folder(), free_port()
    config = {"global": {"scrape_interval": "500ms", "scrape_timeout": "400ms"}, "scrape_configs": [{"job_name": "ringway", "static_configs": [{"targets": [f"127.0.0.1:{gateway.admin_port}"]}]}]}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    log = open(folder / "log", "wb")
    world.stack.callback(log.close)
    prometheus = await asyncio.create_subprocess_exec(
        "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}", stdout=log, stderr=log,
    )

    async def end() -> None:
        if prometheus.returncode is None:
            prometheus.kill()
        await prometheus.wait()

    world.stack.push_async_callback(end)

    async def query(text: str) -> list:
        try:
            body = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query=" + urllib.parse.quote(text), timeout=PATIENCE_S).read())
        except OSError:  # not listening yet, or 503: not ready yet
            assert prometheus.returncode is None, (folder / "log").read_text()
            return []
        return json.loads(body)["data"]["result"]

    up = await until(lambda: query('up{job="ringway"}'), lambda found: bool(found) and found[0]["value"][1] == "1", "scrape", 40)
    assert up
    names = ["sessions_active", "sessions_total", "frames_total", "bytes_total", "connect_seconds_bucket", "connect_seconds_sum", "connect_seconds_count", "closes_total", "agents_up", "rate_limited_total", "accepts_total", "worker_sessions", "driver", "build_info"]
    for name in names:
        assert await query(f"ringway_{name}"), name
    for series in SERIES:
        assert len(await query(series)) == 1, series
    value = await query('ringway_frames_total{direction="client_to_target",opcode="text"}')
    assert value[0]["value"][1] == "1", value
    assert set(value[0]["metric"]) == {"__name__", "direction", "opcode", "instance", "job"}, value
