"""CONTRACT 6 'Access log': one line a connection that sent a connect message, and no secret in any line."""
from __future__ import annotations

import asyncio
import json
import re
import signal

import pytest

from harness import frames
from harness.client import KEY
from harness.frames import PING, TEXT, masked
from harness.process import Gateway, key_entry
from harness.tls import Authority

FIELDS = ["session", "key", "client", "form", "agent", "upstream", "outcome", "connect_ms", "duration_ms", "frames_in", "frames_out", "bytes_in", "bytes_out", "closed_by", "close_code"]
JSON = {"RINGWAY_LOG_FORMAT": "json"}


def lines(gateway: Gateway) -> list[dict]:
    """The access log so far, in JSON."""
    found = [json.loads(line) for line in gateway.lines if line.startswith("{")]
    return [line for line in found if line["target"] == "access"]


async def wait_for(gateway: Gateway, count: int) -> list[dict]:
    await gateway.wait_until(lambda: len(lines(gateway)) >= count, f"access log of {count} lines")
    return lines(gateway)


async def the_line(gateway: Gateway) -> dict:
    [line] = await wait_for(gateway, 1)
    return line


def local(client) -> str:
    return "{}:{}".format(*client.pipe.sock.getsockname())


async def test_a_session(world):
    """Its fields as JSON: `session`, `key` (id), `client` (address), `form`, `agent`, `upstream` (host and port; no path, no query), `outcome`, `connect_ms`, `duration_ms`, `frames_in`, `frames_out`, `bytes_in`, `bytes_out`, `closed_by`, `close_code`"""
    gateway, target = await world.gateway(env=JSON), world.target()
    client, connection = await world.session(gateway, target, "/path?query=1")
    address = local(client)
    sent = masked(TEXT, b"hello") + masked(PING, b"")
    await client.send(sent)
    await connection.expect_raw(sent)
    back = await connection.send_text("x" * 200)
    await client.expect_raw(back)
    await asyncio.sleep(0.3)
    assert not lines(gateway), "at its end"
    close, answer = await client.part(connection)
    line = await the_line(gateway)
    assert set(line) == {"timestamp", "level", "target", *FIELDS}, line
    assert [field for field in line if field in FIELDS] == FIELDS
    assert (line["level"], line["target"]) == ("INFO", "access")
    assert re.fullmatch(r"[0-9a-f]{16}", line["session"])
    assert (line["key"], line["client"], line["form"], line["agent"]) == (f"id-{KEY}", address, "message", "de1")
    assert line["upstream"] == f"127.0.0.1:{target.port}"
    assert (line["outcome"], line["closed_by"], line["close_code"]) == ("connected", "client", 1000)
    assert (line["frames_in"], line["bytes_in"]) == (3, len(sent) + len(close))
    assert (line["frames_out"], line["bytes_out"]) == (2, len(back) + len(answer))
    assert 300 <= line["duration_ms"] < 15_000 and 0 <= line["connect_ms"] <= line["duration_ms"], line
    assert all(type(line[field]) is int for field in FIELDS[7:13]), line


async def test_who_closed(world):
    """`closed_by` (`client`, `target`, `agent`, `gateway`), `close_code`; what is not known is left out"""
    gateway, target = await world.gateway(env=JSON), world.target()
    client, connection = await world.session(gateway, target)
    await connection.send_close(4001, "enough")
    await client.expect_close(4001)
    await client.send_close(4001)
    await connection.expect_close(4001)
    connection.close()
    client.close()
    line = (await wait_for(gateway, 1))[0]
    assert (line["closed_by"], line["close_code"]) == ("target", 4001)

    client, connection = await world.session(gateway, target)
    client.close()
    await connection.expect_close(1001)
    connection.close()
    line = (await wait_for(gateway, 2))[1]
    assert line["closed_by"] == "client" and "close_code" not in line, line

    client, connection = await world.session(gateway, target)
    connection.close()
    await client.expect_close(1011)
    client.close()
    line = (await wait_for(gateway, 3))[2]
    assert line["closed_by"] == "target" and "close_code" not in line, line

    client, connection = await world.session(gateway, target, idle_timeout=0.3)
    await client.expect_close(1000, "Idle timeout")
    client.close()
    connection.close()
    line = (await wait_for(gateway, 4))[3]
    assert (line["closed_by"], line["close_code"], line["outcome"]) == ("gateway", 1000, "connected")


async def test_failures(world):
    """`outcome` (`connected`, or the code of section 3); a usable or unusable connect message"""
    gateway, target = await world.gateway(env=JSON, keys=[key_entry(KEY, rate=0.001, burst=3), key_entry("crowded", max_sessions=1), key_entry("old", expires="2020-01-01T00:00:00Z")]), world.target()
    closed = world.target()
    closed.sock.close()
    expected: list[dict] = []

    async def fail(message, code: str, close: int, **fields) -> None:
        client = await world.client(gateway)
        if isinstance(message, bytes) and message[:1] == b"\x82":
            await client.send(message)
        else:
            await client.connect(message)
        expected.append({"client": local(client), "form": "message", "outcome": code, "closed_by": "gateway", "close_code": close, **fields})
        await client.expect_error(code, close)
        await wait_for(gateway, len(expected))

    known, upstream = {"key": f"id-{KEY}"}, {"upstream": f"127.0.0.1:{target.port}"}
    await fail(b"{", "invalid_connect_message", 1008)
    await fail(masked(frames.BINARY, b"{}"), "invalid_connect_message", 1008)
    await fail({"apiKey": "nobody", "url": target.url()}, "invalid_key", 1008)
    await fail({"url": target.url()}, "invalid_key", 1008)
    await fail({"apiKey": "old", "url": target.url()}, "invalid_key", 1008, key="id-old")
    await fail({"apiKey": KEY, "url": "http://x/"}, "invalid_connect_message", 1008, **known)
    await fail({"apiKey": KEY, "url": target.url(), "agent": "us1"}, "no_agent", 1011, **known, **upstream)
    await fail({"apiKey": KEY, "url": f"ws://127.0.0.1:{closed.port}/"}, "target_unreachable", 1011, **known, agent="de1", upstream=f"127.0.0.1:{closed.port}")
    await fail({"apiKey": KEY, "url": "wss://user:pass@10.0.0.1/x?y"}, "target_not_allowed", 1008, **known, agent="de1", upstream="10.0.0.1:443")
    await fail({"apiKey": KEY, "url": target.url()}, "rate_limited", 1008, **known, **upstream)
    holder = await world.client(gateway)
    await holder.connect({"apiKey": "crowded", "url": target.url()})
    await (await target.accept()).open()
    await holder.expect_connected()
    await fail({"apiKey": "crowded", "url": target.url()}, "too_many_sessions", 1008, key="id-crowded", **upstream)
    got = lines(gateway)
    assert len({line.pop("session") for line in got}) == len(got)
    for line, want in zip(got, expected, strict=True):
        assert line.pop("duration_ms") >= 0
        assert {name: value for name, value in line.items() if name in FIELDS} == want


async def test_a_client_that_leaves_while_the_target_is_dialled(world):
    """one line too; no answer of section 3 fits"""
    gateway, target = await world.gateway(env=JSON), world.target()
    client, _ = await world.dialling(gateway, target)
    await client.send_close(1000)
    await client.expect_close(1000)
    client.close()
    line = (await wait_for(gateway, 1))[0]
    assert (line["outcome"], line["closed_by"], line["close_code"], line["agent"]) == ("client_gone", "client", 1000, "de1")
    assert "connect_ms" not in line and "frames_in" not in line, line
    client, _ = await world.dialling(gateway, target)
    client.close()
    line = (await wait_for(gateway, 2))[1]
    assert (line["outcome"], line["closed_by"]) == ("client_gone", "client") and "close_code" not in line, line


async def test_no_line_without_a_connect_message(world):
    """a connection that sent none has no line"""
    gateway = await world.gateway(env=JSON, limits={"connect_timeout": "300ms"})
    silent = await world.client(gateway)
    await silent.expect_close(1008, "Connect timeout")
    await silent.finish(1008)
    left = await world.client(gateway)
    await left.send_close(1000)
    await left.expect_close(1000)
    left.close()
    broken = await world.client(gateway)
    await broken.send(frames.frame(TEXT, b"x"))
    await broken.expect_close(1002)
    broken.close()
    http = await world.tcp(gateway)
    await http.send(b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    await http.read_to_end()
    await world.refused(gateway, "x", "invalid_connect_message", 1008)
    await the_line(gateway)  # of the last, and of it alone


async def test_sessions_that_a_shutdown_ends(world):
    """at its end, also where that is the gateway's own; those in a dial too"""
    gateway, target = await world.gateway(env=JSON, limits={"drain": "3s"}), world.target()
    client, connection = await world.session(gateway, target)
    stuck, other = await world.session(gateway, target)
    half = masked(TEXT, b"x" * 1000)[:500]
    await stuck.send(half)
    await other.expect_raw(half)
    gateway.signal(signal.SIGTERM)
    await client.expect_close(1012)
    await client.send_close(1012)
    await connection.expect_close(1001)
    await connection.send_close(1001)
    client.close()
    connection.close()
    await gateway.exit_code()
    got = lines(gateway)
    assert len(got) == 2, got
    assert all((line["closed_by"], line["close_code"], line["outcome"]) == ("gateway", 1012, "connected") for line in got), got
    assert sorted(line["bytes_in"] for line in got)[-1] == 500, got


async def test_a_refusal_that_a_shutdown_cuts(world):
    """one line a connection that sent a usable or unusable connect message: also where its client still reads when the process ends"""
    gateway = await world.gateway(env=JSON, limits={"drain": "0s"})
    client = await world.client(gateway)
    await client.connect("x")
    await client.read_json()
    await client.expect_close(1008)  # and no answer to it
    gateway.signal(signal.SIGTERM)
    assert await gateway.exit_code() == 0
    [line] = lines(gateway)
    assert (line["outcome"], line["closed_by"], line["close_code"]) == ("invalid_connect_message", "gateway", 1008)


async def test_the_lines_of_a_crowd_that_a_shutdown_ends(world):
    """one line each, also when the process comes late to its end and must write all of them then"""
    gateway, target = await world.gateway(env=JSON, limits={"drain": "1s"}), world.target()
    sessions = [await world.session(gateway, target) for _ in range(200)]
    gateway.signal(signal.SIGTERM)
    await gateway.line("draining:")
    gateway.signal(signal.SIGSTOP)
    await asyncio.sleep(1.2)
    gateway.signal(signal.SIGCONT)
    assert await gateway.exit_code() == 0
    got = lines(gateway)
    assert len(got) == len(sessions)
    assert all((line["outcome"], line["closed_by"]) == ("connected", "gateway") for line in got), got


async def test_text_format(world):
    """the same in text"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.session(gateway, target)
    await client.part(connection)
    line = (await gateway.line(r"^.* INFO access: (.*)$"))[1]
    names = re.findall(r"(?:^| )([a-z_]+)=", line)
    assert names == FIELDS, line
    assert f'key="id-{KEY}"' in line and 'outcome="connected"' in line and "close_code=1000" in line, line


async def test_it_can_be_turned_off(world):
    """`RINGWAY_LOG` sets log levels: `access=off`"""
    gateway = await world.gateway(env={"RINGWAY_LOG": "info,access=off"}, admin=True)
    await world.refused(gateway, "x", "invalid_connect_message", 1008)
    gateway.signal(signal.SIGTERM)
    assert await gateway.exit_code() == 0
    assert "access" not in gateway.err and gateway.lines, gateway.err


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_secret_in_any_line(world, log_format):
    """No key, query or credential in any log line, at RINGWAY_LOG=trace"""
    authority = Authority(world.folder())
    secrets = {name: f"s3cr3t{number:02}xyzzy" for number, name in enumerate(["key", "wrong", "user", "pass", "query", "path", "header", "cookie", "cookiehdr", "auth", "payload", "upgrade", "wskey", "target", "reason", "name", "cname", "proxy"])}
    gateway = await world.gateway(
        admin=True, env={"RINGWAY_LOG": "trace", "RINGWAY_LOG_FORMAT": log_format}, keys=[key_entry(KEY), {**key_entry(secrets["key"]), "id": "known"}],
        egress={"ca_file": str(authority.file), "allow": ["127.0.0.0/8", "localhost"]},
    )
    plain, secret, closed = world.target(), world.target(tls=authority.server("localhost")), world.target()
    closed.sock.close()
    rest = f"{secrets['path']}?q={secrets['query']}"

    def message(base: str, **fields) -> dict:
        address = base.replace("://", f"://{secrets['user']}:{secrets['pass']}@")
        return {
            "apiKey": secrets["key"], "url": address + rest, "headers": {"X-Token": secrets["header"], "Cookie": f"a={secrets['cookiehdr']}", "Sec-WebSocket-Key": secrets["wskey"]},
            "cookies": {"session": secrets["cookie"]}, **fields,
        }

    async def refused(sent, code: str, headers: dict | None = None) -> None:
        client = await world.client(gateway, headers={"Cookie": f"up={secrets['upgrade']}", "X-Custom": secrets["upgrade"], **(headers or {})}, path=f"/ws?token={secrets['query']}")
        await client.connect(sent)
        got = await client.read_json()
        assert got["code"] == code, got
        client.close()

    for target, base in ((plain, plain.url()), (secret, secret.url(host="localhost"))):
        for number in range(10):
            client = await world.client(gateway)
            await client.connect(message(base, headers={"Authorization": f"Bearer {secrets['auth']}"} if number % 2 else {"X": secrets["header"]}))
            connection = await target.accept()
            await connection.open(f"Set-Cookie: t={secrets['target']}\r\nX-Target: {secrets['target']}\r\n")
            assert secrets["query"] in connection.request_line
            await client.expect_connected()
            await connection.expect_raw(await client.send_text(secrets["payload"]))
            await client.expect_raw(await connection.send_text(secrets["payload"]))
            await client.send_close(1000, secrets["reason"])
            await connection.expect_close(1000)
            await connection.send_close(1000, secrets["reason"])
            await client.expect_close(1000)
            client.close()
            connection.close()
    await refused({**message(plain.url()), "apiKey": secrets["wrong"]}, "invalid_key")
    await refused({"url": plain.url()}, "invalid_key", {"X-API-Key": secrets["wrong"]})
    await refused(message(f"ws://127.0.0.1:{closed.port}/"), "target_unreachable")
    await refused(message("ws://10.0.0.1/"), "target_not_allowed")
    await refused({**message(plain.url()), "url": f"http://{secrets['user']}:{secrets['pass']}@x/?{secrets['query']}"}, "invalid_connect_message")
    await refused({**message(plain.url()), "url": plain.url() + "?" + secrets["query"] + "#" + secrets["path"]}, "invalid_connect_message")
    await refused(message(plain.url(), proxy=f"socks4://u:{secrets['proxy']}@127.0.0.1:1"), "invalid_connect_message")
    await refused(message(plain.url(), headers={secrets["name"] + " x": "v"}), "invalid_connect_message")
    await refused(message(plain.url(), cookies={secrets["cname"] + ";": "v"}), "invalid_connect_message")
    await refused(message(plain.url(), headers={"X": secrets["header"] + "\r\nY: z"}), "invalid_connect_message")
    await refused('{"apiKey":"' + secrets["key"] + '","url":' + secrets["query"], "invalid_connect_message")
    # A target that answers with what it was sent, and one whose handshake is wrong.
    for answer, code in ((f"HTTP/1.1 403 {secrets['target']}\r\nX: {secrets['target']}\r\n\r\n", "target_rejected"), (f"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {secrets['target']}\r\n\r\n", "target_rejected"), (f"{secrets['target']} is no HTTP\r\n\r\n", "target_unreachable")):
        client = await world.client(gateway)
        await client.connect(message(plain.url()))
        connection = await plain.accept()
        await connection.read_request()
        await connection.send(answer.encode())
        assert (await client.read_json())["code"] == code
        client.close()
    for port, path in ((gateway.port, f"/usage?key={secrets['key']}"), (gateway.port, f"/{secrets['path']}?{secrets['query']}"), (gateway.admin_port, f"/sessions?{secrets['query']}"), (gateway.admin_port, "/metrics"), (gateway.admin_port, f"/{secrets['path']}")):
        from harness.http import fetch

        got = await fetch(port, path, headers={"X-API-Key": secrets["key"], "Authorization": f"Bearer {secrets['auth']}", "Cookie": secrets["cookie"]})
        if port == gateway.admin_port:
            assert not [name for name, value in secrets.items() if value in got.text]
    gateway.signal(signal.SIGTERM)
    assert await gateway.exit_code() == 0
    assert len(re.findall(r'"target":"access"' if log_format == "json" else r" INFO access: ", gateway.err)) == 34, gateway.err
    found = {name for name, value in secrets.items() if value in gateway.err}
    assert not found, (found, [line for line in gateway.lines if any(secrets[name] in line for name in found)][:5])
