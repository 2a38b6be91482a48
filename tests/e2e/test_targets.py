"""The contract, section 1 and 3: the opening handshake with the target, and every way in which it fails."""
from __future__ import annotations

import asyncio
import base64
import ssl
import time

import pytest

from harness.client import KEY, Client
from harness.frames import BINARY, CLOSE, TEXT, close_payload, frame
from harness.netns import Dns, in_namespace, launcher
from harness.target import Target
from harness.tls import Authority


async def ask(world, gateway, url: str, **fields) -> Client:
    client = await world.client(gateway)
    await client.connect({"apiKey": KEY, "url": url, **fields})
    return client


# --- what goes over the wire --------------------------------------------------------------------------------------------
async def test_the_request_as_the_target_sees_it(world):
    """one line each, never doubled; no extension and no subprotocol are offered; the key never reaches the target"""
    gateway, target = await world.gateway(), world.target()
    _, connection = await world.dialling(gateway, target, "/path?q=1")
    assert connection.request_line == "GET /path?q=1 HTTP/1.1"
    assert connection.header("Host") == f"127.0.0.1:{target.port}"
    assert connection.header("Upgrade").lower() == "websocket"
    assert connection.header("Connection").lower() == "upgrade"
    assert connection.header("Sec-WebSocket-Version") == "13"
    assert len(base64.b64decode(connection.header("Sec-WebSocket-Key"), validate=True)) == 16
    names = [line.partition(":")[0].lower() for line in connection.header_lines]
    assert len(names) == len(set(names)), names
    for absent in ("sec-websocket-extensions", "sec-websocket-protocol", "authorization", "cookie", "x-api-key", "origin", "content-length", "forwarded", "via", "x-forwarded-for"):
        assert absent not in names, names
    assert KEY.encode() not in connection.head
    assert connection.buffer == b"", "nothing behind the head before the answer"


async def test_each_dial_has_its_own_key(world):
    """RFC 6455 4.1: a fresh nonce for each connection"""
    gateway, target = await world.gateway(), world.target()
    keys = {(await world.dialling(gateway, target))[1].header("Sec-WebSocket-Key") for _ in range(5)}
    assert len(keys) == 5


async def test_credentials_cookies_and_headers_together(world):
    """`headers`, `cookies` and `user:pass@` together, one line each"""
    gateway, target = await world.gateway(), world.target()
    client = await ask(
        world, gateway, f"ws://u:p@127.0.0.1:{target.port}/",
        headers={"HOST": "virtual.example.com:81", "cookie": "a=1", "X-Own": "v"}, cookies={"b": "2"},
    )
    connection = await (await target.accept()).open()
    await client.expect_connected()
    assert connection.header("Host") == "virtual.example.com:81"
    assert connection.header("Cookie") == "a=1; b=2"
    assert connection.header("Authorization") == "Basic " + base64.b64encode(b"u:p").decode()
    assert "X-Own: v" in connection.header_lines


# --- TLS --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_wss_target_of_a_private_ca(world, authority, host, version):
    """`ca_file`: extra roots for wss:// targets; SNI and ALPN http/1.1; frames pass byte for byte"""
    context = authority.server("localhost", "127.0.0.1", alpn=["h2", "http/1.1"])
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    seen = []
    context.sni_callback = lambda _, name, __: seen.append(name)
    gateway, target = await world.gateway(egress={"ca_file": str(authority.file)}), world.target(tls=context)
    client = await ask(world, gateway, target.url("/x", host=host))
    connection = await (await target.accept()).open(behind=frame(TEXT, b"first"))
    await client.expect_connected()
    await client.expect_frame(TEXT, b"first")
    assert connection.pipe.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
    assert seen == ["localhost" if host == "localhost" else None]
    assert connection.header("Host") == f"{host}:{target.port}"
    for size in (0, 5, 70_000, 1_000_000):
        made = await client.send_frame(BINARY, bytes(size))
        await connection.expect_raw(made)
        made = await connection.send_frame(BINARY, bytes(size))
        await client.expect_raw(made)
    await connection.send_close(1000, "bye")
    await client.expect_frame(CLOSE, close_payload(1000, "bye"))
    await client.send_close(1000)
    await connection.expect_frame(CLOSE, close_payload(1000))
    connection.close()
    await client.expect_fin()


async def test_wss_ca_file_relative_to_the_configuration(world, authority):
    """6: relative paths count from the file's folder"""
    folder = world.folder()
    (folder / "roots.pem").write_bytes(authority.file.read_bytes())
    gateway, target = await world.gateway(folder=folder, egress={"ca_file": "roots.pem"}), world.target(tls=authority.server("127.0.0.1"))
    client = await ask(world, gateway, target.url())
    await (await target.accept()).open()
    await client.expect_connected()


async def test_wss_targets_tcp_ends_without_a_close(world, authority):
    """target's TCP ends without a Close: client 1011 `Target connection lost`, over TLS too"""
    gateway, target = await world.gateway(egress={"ca_file": str(authority.file)}), world.target(tls=authority.server("127.0.0.1"))
    for how in ("half_close", "reset"):
        client = await ask(world, gateway, target.url())
        connection = await (await target.accept()).open()
        await client.expect_connected()
        made = await connection.send_frame(BINARY, bytes(100_000))
        await client.expect_raw(made)
        getattr(connection, how)()
        await client.expect_close(1011, "Target connection lost")
        await client.finish(1011)


async def test_wss_client_disconnects(world, authority):
    """client's TCP ends without a Close: target 1001 `Client disconnected`, over TLS too"""
    gateway, target = await world.gateway(egress={"ca_file": str(authority.file)}), world.target(tls=authority.server("127.0.0.1"))
    client = await ask(world, gateway, target.url())
    connection = await (await target.accept()).open()
    await client.expect_connected()
    client.half_close()
    await connection.expect_close(1001, "Client disconnected")
    await connection.send_close(1001)
    await client.expect_frame(CLOSE, close_payload(1001))
    await connection.expect_end()


async def refuse_tls(target: Target) -> None:
    """Takes one connection whose handshake is expected to fail."""
    try:
        await target.accept(10)
    except (ssl.SSLError, ConnectionError, OSError):
        pass


@pytest.mark.parametrize("case", ["unknown CA", "wrong name", "expired", "not TLS", "closes in the handshake"])
async def test_wss_that_fails(world, authority, tmp_path, case):
    """target refused, unreachable, DNS, TLS: `Target connection failed: …` the cause in words, `target_unreachable`, 1011"""
    (tmp_path / "other").mkdir()
    context = {
        "unknown CA": lambda: Authority(tmp_path / "other", "another CA").server("127.0.0.1"),
        "wrong name": lambda: authority.server("other.example.com"),
        "expired": lambda: authority.server("127.0.0.1", days=(-5, -1)),
    }.get(case, lambda: authority.server("127.0.0.1"))()
    gateway, target = await world.gateway(egress={"ca_file": str(authority.file)}), world.target(tls=context)
    client = await ask(world, gateway, target.url())
    if case == "not TLS":
        sock = await target.accept_tcp()
        await asyncio.get_running_loop().sock_sendall(sock, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        serving = asyncio.create_task(asyncio.sleep(0))
    elif case == "closes in the handshake":
        (await target.accept_tcp()).close()
        serving = asyncio.create_task(asyncio.sleep(0))
    else:
        serving = asyncio.create_task(refuse_tls(target))
    got = await client.expect_error("target_unreachable", 1011, contains="Target connection failed: ")
    assert "tls" in got["message"].lower() or "certificate" in got["message"].lower(), got
    await serving


async def test_ws_to_a_tls_port(world, authority):
    """or closed or spoke no HTTP before its answer: `target_unreachable`"""
    gateway, target = await world.gateway(), world.target(tls=authority.server("127.0.0.1"))
    client = await ask(world, gateway, target.url().replace("wss:", "ws:"))
    serving = asyncio.create_task(refuse_tls(target))
    await client.expect_error("target_unreachable", 1011, contains="Target connection failed: ")
    await serving


# --- answers other than 101 ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("status", [200, 204, 301, 302, 307, 308, 400, 401, 403, 404, 407, 426, 429, 500, 502, 503, 599])
async def test_target_answers_other_than_101(world, status):
    """target answered other than 101: `Target answered HTTP 403`, `target_rejected` (+ `target_status`), 1011"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    await connection.send(f"HTTP/1.1 {status} Whatever\r\nContent-Length: 4\r\n\r\nbody".encode())
    got = await client.expect_error("target_rejected", 1011, f"Target answered HTTP {status}")
    assert got["target_status"] == status
    await connection.expect_end()


async def test_redirects_are_reported_not_followed(world):
    """redirects reported not followed"""
    gateway, target, elsewhere = await world.gateway(), world.target(), world.target()
    client, connection = await world.dialling(gateway, target)
    await connection.send(f"HTTP/1.1 302 Found\r\nLocation: {elsewhere.url()}\r\n\r\n".encode())
    assert (await client.expect_error("target_rejected", 1011, "Target answered HTTP 302"))["target_status"] == 302
    await elsewhere.expect_no_dial()
    await target.expect_no_dial()


@pytest.mark.parametrize("body", [b"", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello", b"\r\nendless" + b"x" * 100_000], ids=["no reason phrase", "chunked", "long body"])
async def test_rejection_in_other_shapes(world, body):
    """… whatever the body is; it is not awaited"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    await connection.send(b"HTTP/1.1 403\r\n" + (body or b"\r\n"))
    await client.expect_error("target_rejected", 1011, "Target answered HTTP 403")


INVALID = {
    "wrong Accept": "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
    "no Accept": "Upgrade: websocket\r\nConnection: Upgrade\r\n",
    "no Upgrade": "Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n",
    "another Upgrade": "Upgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n",
    "no Connection": "Upgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n",
    "another Connection": "Upgrade: websocket\r\nConnection: close\r\nSec-WebSocket-Accept: {accept}\r\n",
    "an extension": "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
    "a subprotocol": "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n",
}


@pytest.mark.parametrize("name", INVALID)
async def test_targets_101_is_not_valid(world, name):
    """target's 101 is not valid (Accept, an extension or subprotocol not asked for): `Target answered an invalid handshake: …`, `target_rejected`, 1011"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    accept = connection.switching().decode().partition("Accept: ")[2].split("\r\n")[0]
    await connection.send(("HTTP/1.1 101 Switching Protocols\r\n" + INVALID[name].format(accept=accept) + "\r\n").encode())
    got = await client.expect_error("target_rejected", 1011)
    assert got["message"].startswith("Target answered an invalid handshake: "), got
    await connection.expect_end()


async def test_subprotocol_that_was_not_offered(world):
    """a subprotocol not asked for"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target, headers={"Sec-WebSocket-Protocol": "chat, superchat"})
    await connection.send(connection.switching("Sec-WebSocket-Protocol: other\r\n"))
    got = await client.expect_error("target_rejected", 1011)
    assert got["message"].startswith("Target answered an invalid handshake: "), got


@pytest.mark.parametrize("answer", ["HTTP/1.1 101 \r\n", "HTTP/1.1 101\r\n", "HTTP/1.1 101 Web Socket Protocol Handshake\r\n"], ids=["no reason", "no space", "another reason"])
async def test_valid_101_in_other_shapes(world, answer):
    """RFC 6455 4.1: header values compared without case, more headers, any reason phrase"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    accept = connection.switching().decode().partition("Accept: ")[2].split("\r\n")[0]
    await connection.send(f"{answer}server: x\r\nUPGRADE: WebSocket\r\nconnection: keep-alive, uPGRADE\r\nsec-websocket-accept:   {accept}  \r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\r\n".encode())
    await client.expect_connected()


@pytest.mark.parametrize("first", ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"])
async def test_interim_answers_before_the_101(world, first):
    """RFC 9110 15.2: interim answers come before the final one"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    await connection.send(first.encode())
    await asyncio.sleep(0.1)
    await connection.send(connection.switching() + frame(TEXT, b"behind"))
    await client.expect_connected()
    await client.expect_frame(TEXT, b"behind")


# --- no answer ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
async def test_target_refuses(world, host):
    """target refused: `Target connection failed: …` the cause in words, `target_unreachable`, 1011"""
    gateway, target = await world.gateway(), world.target()
    target.close()
    client = await ask(world, gateway, f"ws://{host}:{target.port}/")
    await client.expect_error("target_unreachable", 1011, contains="Target connection failed: ")


async def test_target_name_does_not_exist(world):
    """DNS: `Target connection failed: …`, `target_unreachable`, 1011"""
    gateway = await world.gateway()
    client = await ask(world, gateway, "ws://nosuchhost.invalid/")
    got = await client.read_json(20)
    assert got["code"] == "target_unreachable" and got["message"].startswith("Target connection failed: "), got
    assert "nosuchhost.invalid" in got["message"] or "name" in got["message"].lower() or "dns" in got["message"].lower() or "resolv" in got["message"].lower(), got
    await client.expect_close(1011)


@pytest.mark.parametrize("sent", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 101 Switching", b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\n", b"\x00\x01\x02\xff" * 10 + b"\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"])
@pytest.mark.parametrize("how", ["half_close", "reset"])
async def test_target_closes_or_speaks_no_http(world, sent, how):
    """or closed or spoke no HTTP before its answer: `target_unreachable`, 1011"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    if sent:
        await connection.send(sent)
    getattr(connection, how)()
    await client.expect_error("target_unreachable", 1011, contains="Target connection failed: ")


async def test_target_that_speaks_no_http_is_not_awaited(world):
    """spoke no HTTP before its answer: said at once, the target need not end"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    await connection.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    await client.expect_error("target_unreachable", 1011, contains="Target connection failed: ", patience=4)


async def test_answer_head_without_end(world):
    """a limit on everything: an answer's head too"""
    gateway, target = await world.gateway(), world.target()
    client, connection = await world.dialling(gateway, target)
    before = gateway.rss()

    async def flood() -> None:
        try:
            await connection.send(b"HTTP/1.1 101 X\r\n" + b"X-Y: zzzzzzzzzzzzzzzzzzzzzzzzz\r\n" * 1_000_000, 30)
        except OSError:
            pass

    sending = asyncio.create_task(flood())
    got = await client.read_json(10)
    assert got["type"] == "error" and got["code"] in ("target_unreachable", "target_rejected"), got
    assert gateway.rss() - before < 4 << 20
    await client.expect_close(1011)
    await sending


# --- target_timeout -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["TCP", "TLS", "upgrade", "half a head", "trickle", "interim answers"])
async def test_target_timeout(world, authority, stage):
    """target did not answer in time (15 s for all of DNS, TCP, TLS, upgrade): `Target timed out`, `target_timeout`, 1011"""
    gateway = await world.gateway(limits={"target_timeout": "1s"}, egress={"ca_file": str(authority.file)})
    target = world.target(tls=authority.server("127.0.0.1") if stage == "TLS" else None)
    client = await ask(world, gateway, target.url())
    began = time.monotonic()
    helper = None
    if stage == "TLS":
        sock = await target.accept_tcp()
    elif stage != "TCP":
        connection = await target.accept()
        await connection.read_request()
        if stage == "half a head":
            await connection.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: web")
        elif stage in ("trickle", "interim answers"):
            piece = b"X" if stage == "trickle" else b"HTTP/1.1 100 Continue\r\n\r\n"

            async def trickle() -> None:
                await connection.send(b"" if stage != "trickle" else b"HTTP/1.1 101 X\r\nX-Y: ")
                while True:
                    await connection.send(piece)
                    await asyncio.sleep(0.1)

            helper = asyncio.create_task(trickle())
    await client.expect_error("target_timeout", 1011, "Target timed out", patience=6)
    assert 0.7 < time.monotonic() - began < 5
    if helper:
        helper.cancel()
    if stage == "TLS":
        sock.close()


async def test_target_timeout_by_default_is_15_s(world):
    """15 s for all of DNS, TCP, TLS, upgrade"""
    gateway, target = await world.gateway(), world.target()
    client, _ = await world.dialling(gateway, target)
    began = time.monotonic()
    got = await client.read_json(20)
    assert got["code"] == "target_timeout", got
    assert 13 < time.monotonic() - began < 18


# --- a network of our own: names, IPv6 holes --------------------------------------------------------------------------------
async def with_names(world, hosts: str = "", names: dict | None = None, allow: list | None = None, **options):
    dns = Dns(names or {})
    world.stack.callback(dns.close)
    folder = world.folder()
    gateway = await world.gateway(folder=folder, launcher=launcher(folder, hosts), egress={"allow": allow or ["127.0.0.0/8", "::1/128", "10.77.0.0/24", "fd77::/64"]}, **options)
    return gateway, dns


@in_namespace
async def test_name_that_does_not_exist(world):
    """DNS: `Target connection failed: …`: a server that says NXDOMAIN is believed at once"""
    gateway, _ = await with_names(world)
    client = await ask(world, gateway, "ws://missing.example.com/")
    await client.expect_error("target_unreachable", 1011, contains="Target connection failed: ", patience=5)


@in_namespace
async def test_name_from_dns(world):
    """`url`: host name, resolved by the agent"""
    gateway, _ = await with_names(world, names={"target.example.com": "127.0.0.1"})
    target = world.target()
    client = await ask(world, gateway, f"ws://Target.Example.com:{target.port}/")
    connection = await (await target.accept()).open()
    await client.expect_connected()
    assert connection.header("Host").lower() == f"target.example.com:{target.port}"


@in_namespace
async def test_dns_that_hangs_is_a_target_timeout(world):
    """15 s for all of DNS, TCP, TLS, upgrade"""
    gateway, _ = await with_names(world, limits={"target_timeout": "1s"})
    client = await ask(world, gateway, "ws://hang.example.com/")
    await client.expect_error("target_timeout", 1011, "Target timed out", patience=6)


@in_namespace
async def test_syn_that_is_swallowed_is_a_target_timeout(world):
    """15 s for all of DNS, TCP, TLS, upgrade"""
    gateway, _ = await with_names(world, limits={"target_timeout": "1s"})
    for url in ("ws://10.77.0.9/", "ws://[fd77::9]/"):
        client = await ask(world, gateway, url)
        await client.expect_error("target_timeout", 1011, "Target timed out", patience=6)


@in_namespace
async def test_happy_eyeballs_ipv6_swallows(world):
    """RFC 8305: an IPv6 address that swallows SYNs delays by a moment"""
    gateway, _ = await with_names(world, "fd77::9 dual.example.com\n127.0.0.1 dual.example.com\n")
    target = world.target()
    client = await ask(world, gateway, f"ws://dual.example.com:{target.port}/")
    began = time.monotonic()
    await (await target.accept(3)).open()
    await client.expect_connected()
    assert time.monotonic() - began < 2


@in_namespace
async def test_happy_eyeballs_ipv4_swallows(world):
    """RFC 8305, the other way round"""
    gateway, _ = await with_names(world, "10.77.0.9 dual.example.com\n::1 dual.example.com\n")
    target = world.target("::1")
    client = await ask(world, gateway, f"ws://dual.example.com:{target.port}/")
    await (await target.accept(3)).open()
    await client.expect_connected()


@in_namespace
async def test_a_refusing_address_is_followed_by_the_next_at_once(world):
    """RFC 8305: a failed attempt starts the next"""
    gateway, _ = await with_names(world, "::1 dual.example.com\n127.0.0.1 dual.example.com\n")
    target = world.target()
    client = await ask(world, gateway, f"ws://dual.example.com:{target.port}/")
    await (await target.accept(3)).open()
    await client.expect_connected()


@in_namespace
async def test_forbidden_addresses_are_dropped_from_the_answer(world):
    """vet every address (forbidden ones are dropped from the answer; `Target not allowed` only if none is left)"""
    gateway, _ = await with_names(world, "10.9.9.9 mixed.example.com\n127.0.0.1 mixed.example.com\n10.9.9.9 bad.example.com\nfd01::1 bad.example.com\n", allow=["127.0.0.0/8"])
    target = world.target()
    client = await ask(world, gateway, f"ws://mixed.example.com:{target.port}/")
    await (await target.accept(3)).open()
    await client.expect_connected()
    client = await ask(world, gateway, f"ws://bad.example.com:{target.port}/")
    await client.expect_error("target_not_allowed", 1008, "Target not allowed")


@in_namespace
async def test_200_names_that_hang_delay_nobody(world):
    """200 names that hang delay nobody else"""
    gateway, dns = await with_names(world, names={"quick.example.com": "127.0.0.1"})
    target = world.target()
    hanging = [await ask(world, gateway, f"ws://hang{i}.example.com/") for i in range(200)]
    await asyncio.sleep(0.5)
    for host in ("127.0.0.1", "localhost", "quick.example.com"):
        began = time.monotonic()
        client = await ask(world, gateway, f"ws://{host}:{target.port}/")
        await (await target.accept(5)).open()
        await client.expect_connected()
        assert time.monotonic() - began < 2, host
    assert len({name for name in dns.asked if name.startswith("hang")}) == 200
    for client in hanging:
        client.reset()
