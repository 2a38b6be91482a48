"""CONTRACT 5 and 6: the admin listener."""
from __future__ import annotations

import asyncio
import datetime
import os
import re
import signal
import socket
import time

from harness.client import KEY, Client
from harness.http import fetch, read_answer, request_bytes, samples, sessions, until
from harness.process import Process, gateway_config, key_entry, toml


async def test_health_and_readiness(world):
    """`/healthz`, `/readyz` (200 only while not draining and at least one agent is up)"""
    gateway = await world.gateway(admin=True)
    for path in ("/healthz", "/readyz"):
        answer = await fetch(gateway.admin_port, path)
        assert (answer.status, answer.json()) == (200, {"ok": True})
    without = await world.gateway(admin=True, embedded=False)
    assert (await fetch(without.admin_port, "/healthz")).status == 200
    (await fetch(without.admin_port, "/readyz")).expect_error(503, "no_agent")


async def test_unknown_paths_and_methods(world):
    """404 JSON; 405 for other methods"""
    gateway = await world.gateway(admin=True)
    for path in ("/", "/metric", "/metrics/", "/ws", "/usage"):
        (await fetch(gateway.admin_port, path)).expect_error(404, "not_found")
    for path, method, allowed in (("/metrics", "POST", "GET"), ("/sessions", "DELETE", "GET"), ("/readyz", "HEAD", "GET"), ("/drain", "GET", "POST")):
        wire = await Client.tcp(gateway.admin_port)
        await wire.send(request_bytes(path, method=method))
        head = (await wire.read_until(b"\r\n\r\n")).decode()
        wire.close()
        assert head.startswith("HTTP/1.1 405 ") and f"\r\nAllow: {allowed}\r\n" in head, head
    assert (await fetch(gateway.admin_port, "/readyz")).status == 200, "none of these drained it"
    for path in ("/metrics", "/sessions", "/readyz", "/drain"):
        assert (await fetch(gateway.port, path)).status == 404, f"{path} on the public listener"


async def test_broken_requests(world):
    """400, 414 and 431 here too, and the connection is closed"""
    gateway = await world.gateway(admin=True)
    for data, status in ((b"\x16\x03\x01\x00\x00\r\n\r\n", 400), (b"GET /%s HTTP/1.1\r\nHost: h\r\n\r\n" % (b"x" * 20_000), 414), (b"GET / HTTP/1.1\r\nHost: h\r\nX: %s\r\n\r\n" % (b"x" * 70_000), 431)):
        wire = await Client.tcp(gateway.admin_port)
        await wire.send(data)
        answer = await read_answer(wire)
        assert answer.status == status and answer.json()["type"] == "error", answer.head
        await wire.expect_end()
        wire.close()


async def test_one_connection_for_many_requests(world):
    """HTTP/1.1: kept alive, pipelined too"""
    gateway = await world.gateway(admin=True)
    wire = await Client.tcp(gateway.admin_port)
    world.stack.callback(wire.close)
    await wire.send(request_bytes("/healthz") * 3)
    for _ in range(3):
        assert (await read_answer(wire)).status == 200
    await wire.send(request_bytes("/metrics", headers={"Connection": "close"}))
    assert (await read_answer(wire)).status == 200
    await wire.expect_end()


async def test_sessions(world):
    """`/sessions`: `{"sessions":[{"id","key","client","agent","target","form","worker","started","age_s","frames_in","frames_out","bytes_in","bytes_out","state"}]}`, `key` the key's id, `target` scheme, host and port only; `in` is from the client"""
    gateway, target = await world.gateway(admin=True), world.target()
    assert await sessions(gateway) == []
    client, connection = await world.dialling(gateway, target, "/secret-path?secret-query=1", headers={"Authorization": "secret-header"})
    [row] = await sessions(gateway)
    assert row["state"] == "dialling" and row["frames_in"] == 0, row
    await connection.send(connection.switching())
    await client.expect_connected()
    sent = await client.send_text("hello") + await client.send_text("again")
    await connection.expect_raw(sent)
    back = await connection.send_text("x" * 1000)
    await client.expect_raw(back)
    before = await sessions(gateway)
    [row] = before
    assert list(row) == ["id", "key", "client", "agent", "target", "form", "worker", "started", "age_s", "frames_in", "frames_out", "bytes_in", "bytes_out", "state"]
    assert re.fullmatch(r"[0-9a-f]{16}", row["id"])
    local = "{}:{}".format(*client.pipe.sock.getsockname())
    assert (row["key"], row["client"], row["agent"], row["form"], row["state"]) == (f"id-{KEY}", local, "de1", "message", "connected")
    assert row["target"] == f"ws://127.0.0.1:{target.port}"
    assert (row["frames_in"], row["bytes_in"], row["frames_out"], row["bytes_out"]) == (2, len(sent), 1, len(back))
    assert row["worker"] in (0, 1)
    started = datetime.datetime.fromisoformat(row["started"])
    age = (datetime.datetime.now(datetime.timezone.utc) - started).total_seconds()
    assert started.tzinfo is not None and 0 <= age < 30 and abs(age - row["age_s"]) < 5, row
    await client.send_close(1000)
    await connection.expect_close(1000)
    await until(lambda: sessions(gateway), lambda rows: [row["state"] for row in rows] == ["closing"], "closing session")
    await connection.send_close(1000)
    await client.expect_close(1000)
    client.close()
    connection.close()
    await until(lambda: sessions(gateway), lambda rows: rows == [], "end of the session")


async def test_sessions_of_all_workers(world):
    """every session of every worker, each once, however many batches that takes"""
    gateway, target = await world.gateway(admin=True), world.target().serve_echo()

    async def one() -> None:
        client = await world.client(gateway)
        await client.connect({"apiKey": KEY, "url": target.url()})
        await client.expect_connected()

    for _ in range(15):
        await asyncio.gather(*(one() for _ in range(40)))
    rows = await sessions(gateway)
    assert len(rows) == 600 and len({row["id"] for row in rows}) == 600
    assert len({row["client"] for row in rows}) == 600
    assert {row["worker"] for row in rows} == {0, 1}
    assert (await samples(gateway))["ringway_sessions_active"] == 600
    several = await asyncio.gather(*(sessions(gateway) for _ in range(5)))
    assert all(len(rows) == 600 for rows in several)


async def test_drain(world):
    """`POST /drain` (202); the process exits 0 as soon as none is left"""
    gateway, target = await world.gateway(admin=True), world.target()
    client, connection = await world.session(gateway, target)
    answer = await fetch(gateway.admin_port, "/drain", method="POST")
    assert answer.status == 202 and answer.json(), answer.head
    (await fetch(gateway.admin_port, "/readyz")).expect_error(503, "draining")
    assert (await fetch(gateway.admin_port, "/drain", method="POST")).status == 202, "asked twice it goes on"
    assert (await samples(gateway))["ringway_draining"] == 1
    await connection.expect_close(1001, "Service restart")
    await connection.send_close(1001)
    connection.close()
    await client.expect_close(1012, "Service restart")
    await client.send_close(1012)
    client.close()
    assert await gateway.exit_code() == 0


async def test_drain_without_sessions_is_answered(world):
    """the answer comes although the process ends at once"""
    gateway = await world.gateway(admin=True)
    assert (await fetch(gateway.admin_port, "/drain", method="POST", headers={"Content-Length": "0"})).status == 202
    assert await gateway.exit_code() == 0


async def test_a_page_in_a_browser_cannot_drain(world):
    """a web page's requests carry Origin"""
    gateway = await world.gateway(admin=True)
    (await fetch(gateway.admin_port, "/drain", method="POST", headers={"Origin": "https://evil.example.com"})).expect_error(403, "forbidden")
    assert (await fetch(gateway.admin_port, "/readyz")).status == 200


async def test_a_page_whose_name_was_rebound(world):
    """a page cannot reach it under a name of its own (DNS rebinding), while programs may use any name"""
    gateway = await world.gateway(admin=True)
    browser = {"Accept-Language": ""}

    async def status(host: str, path: str = "/metrics", method: str = "GET", **headers) -> int:
        return (await fetch(gateway.admin_port, path, method=method, headers={"Host": host, **headers})).status

    for host in ("evil.example.com:9091", "evil.example.com", "10.0.0.1.evil.example.com:9091", "evil.example."):
        for path in ("/metrics", "/sessions", "/readyz"):
            assert await status(host, path) == 200, (host, path)
            assert await status(host, path, **browser) == 403, (host, path)
        assert await status(host, **{"Origin": "http://" + host}) == 403
        assert await status(host, **{"Sec-Fetch-Site": "same-origin"}) == 403
        assert await status(host, "/drain", "POST") == 403
    for host in ("127.0.0.1:9091", "192.0.2.1", "[::1]:9091", "localhost:9091", "localhost", "localhost.", "gateway:9091"):
        assert await status(host, **browser) == 200, host
    assert await status("localhost", "/readyz") == 200, "not drained"


async def test_connections_are_bounded(world):
    """64 at a time; the next is told so, and room comes back"""
    gateway = await world.gateway(admin=True)
    held = [await Client.tcp(gateway.admin_port) for _ in range(64)]
    for one in held:
        await one.send(request_bytes("/healthz"))
        assert (await read_answer(one)).status == 200
    over = await Client.tcp(gateway.admin_port)
    await over.send(request_bytes("/healthz"))
    (await read_answer(over)).expect_error(503, "overloaded")
    await over.read_to_end()
    over.close()
    for one in held:
        one.close()

    async def status() -> int:
        try:
            return (await fetch(gateway.admin_port, "/healthz")).status
        except OSError:
            return 0

    await until(status, lambda status: status == 200, "room")


async def test_half_a_head_has_its_time(world):
    """timeouts: a head that does not come to its end is given up after 10 s"""
    gateway = await world.gateway(admin=True)
    wire = await Client.tcp(gateway.admin_port)
    world.stack.callback(wire.close)
    began = time.monotonic()
    await wire.send(b"GET /metrics HTTP/1.1\r\n")
    await wire.expect_end(20)
    assert 9 < time.monotonic() - began < 15


async def test_it_is_off_when_empty(world):
    """`addr = ""` turns it off"""
    gateway = await world.gateway()
    assert not any("(admin)" in line for line in gateway.lines)


async def gateway_with_admin(world, addr: str) -> Process:
    folder = world.folder()
    (folder / "keys.toml").write_text(toml({"key": [key_entry()]}))
    (folder / "gateway.toml").write_text(toml({**gateway_config(), "admin": {"addr": addr}}))
    return await world.process("gateway", "-c", str(folder / "gateway.toml"), ready=False)


async def test_a_taken_port(world):
    """start-up fails with a clear error; another gateway's admin listener counts as taken"""
    gateway = await world.gateway(admin=True)
    taken = f"127.0.0.1:{gateway.admin_port}"
    second = await gateway_with_admin(world, taken)
    assert await second.exit_code() == 1
    assert "admin.addr" in second.err and taken in second.err and "panicked" not in second.err, second.err
    assert not any("listening" in line for line in second.lines)
    assert (await fetch(gateway.admin_port, "/healthz")).status == 200


async def test_configuration(world):
    """wrong addresses are named with their line"""
    for addr, contains in (("localhost:9091", "127.0.0.1:9091"), ("9091", "an address is an IP and a port"), (":9091", "0.0.0.0:9091")):
        process = await gateway_with_admin(world, addr)
        assert await process.exit_code() == 2
        assert re.search(r"gateway\.toml:\d+:", process.err) and contains in process.err, process.err


async def test_it_does_not_wait_for_a_busy_worker(world):
    """the admin listener has a thread of its own: it answers while a worker is stopped by load, and `/sessions` comes too"""
    gateway, target = await world.gateway(admin=True, workers=1), world.target()
    client, connection = await world.session(gateway, target)
    await client.send(b"\x82\xff" + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0")
    load = [asyncio.create_task(client.pour(os.urandom(1 << 20))), asyncio.create_task(connection.drop())]
    for _ in range(5):
        began = time.monotonic()
        before = (await samples(gateway))['ringway_bytes_total{direction="client_to_target"}']
        [row] = await sessions(gateway)
        assert row["bytes_in"] >= before and time.monotonic() - began < 5
        await until(lambda: samples(gateway), lambda found: found['ringway_bytes_total{direction="client_to_target"}'] > before, "further bytes of the frame in progress")
    for job in load:
        job.cancel()


async def test_dev_has_one(world):
    """`ringway dev`: metrics at the usual port, or a free one where that is taken"""
    taken = socket.socket()
    world.stack.callback(taken.close)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind(("127.0.0.1", 9091))
        taken.listen()
    except OSError:
        pass  # somebody else has it already
    process = await Process.start("dev")
    world.stack.push_async_callback(process.kill)
    await process.ready()
    port = int((await process.line(r"^listening on \S+:(\d+) \(admin\)$"))[1])
    assert port != 9091
    await process.wait_until(lambda: "asyncio.run(" in process.out, "its lines to paste")
    assert f"http://127.0.0.1:{port}/metrics" in process.out
    answer = await fetch(port, "/metrics")
    assert answer.status == 200 and 'ringway_agents_up{slug="dev1"} 1' in answer.text
    process.signal(signal.SIGINT)
    assert await process.exit_code() == 0
