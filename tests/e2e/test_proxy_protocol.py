"""CONTRACT 6, `[listen] proxy_protocol`: headers of both versions, from raw sockets and from the proxies that people run."""
from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import shutil
import socket
import struct
import time

import pytest

from harness.client import KEY, Client, connect_frame, upgrade_request
from harness.frames import BINARY, CLOSE, TEXT, close_payload, masked
from harness.programs import Program
from harness.secure import SecurePipe
from harness.wire import PlainPipe
from harness.world import World

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
DEBUG = {"RINGWAY_LOG": "ringway=debug"}


def v1(source: str, port: int) -> bytes:
    family, own = ("TCP6", "2001:db8::1") if ":" in source else ("TCP4", "192.0.2.1")
    return f"PROXY {family} {source} {own} {port} 443\r\n".encode()


def v2(source: str, port: int, *, command: int = 0x21, tlvs: bytes = b"") -> bytes:
    address = ipaddress.ip_address(source).packed
    body = address + bytes(len(address)) + struct.pack("!HH", port, 443) + tlvs
    return SIGNATURE + bytes([command, 0x21 if ":" in source else 0x11]) + struct.pack("!H", len(body)) + body


@pytest.fixture(params=[False, True], ids=["plain", "TLS"])
def world(request) -> World:
    return World(front_tls=request.param)


async def gateway(world, **options):
    listen = {"proxy_protocol": True, **options.pop("listen", {})}
    return await world.gateway(listen=listen, env=DEBUG, **options)


async def raw(world, made, source: str = "127.0.0.1") -> Client:
    """A TCP connection to the gateway, without TLS whatever the world."""
    sock = socket.create_connection(("127.0.0.1", made.port), 5, (source, 0))
    client = Client(PlainPipe(sock))
    world.stack.callback(client.close)
    return client


async def behind(world, made, header: bytes, source: str = "127.0.0.1") -> Client:
    """A client whose connection began with `header`; TLS follows where the world has it."""
    client = await raw(world, made, source)
    await client.send(header)
    if world.front_tls:
        client.pipe = await asyncio.wait_for(SecurePipe.connect(client.pipe.sock, world.authority.client()), 15)
    return client


async def relays(world, client: Client) -> None:
    target = world.target()
    await client.upgrade()
    await client.connect({"apiKey": KEY, "url": target.url()})
    connection = await (await target.accept()).open()
    await client.expect_connected()
    for size in (0, 10, 200_000):
        await connection.expect_raw(await client.send_frame(BINARY, os.urandom(size)))
        await client.expect_raw(await connection.send_frame(BINARY, os.urandom(size)))
    await client.send_close(1000)
    await connection.expect_frame(CLOSE, close_payload(1000))
    await connection.send_close(1000)
    await client.expect_close(1000)
    await client.expect_end()


async def says_client(made, address: str, port: int) -> None:
    shown = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    await made.line(rf"through a proxy.* client=\"?{re.escape(shown)}\b")


# --- headers that count -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("source", ["203.0.113.7", "2001:db8::7"])
@pytest.mark.parametrize("make", [v1, v2])
async def test_the_client_is_who_the_header_says(world, make, source):
    """expect PROXY protocol v1 or v2 in front of each connection (before the TLS handshake too)"""
    made = await gateway(world)
    await relays(world, await behind(world, made, make(source, 4711)))
    await says_client(made, source, 4711)


LOCAL = {
    "v1 UNKNOWN": b"PROXY UNKNOWN\r\n",
    "v1 UNKNOWN with addresses": b"PROXY UNKNOWN 203.0.113.7 192.0.2.1 1 2\r\n",
    "v2 LOCAL": SIGNATURE + b"\x20\x00\x00\x00",
    "v2 LOCAL with addresses": v2("203.0.113.7", 1, command=0x20),
    "v2 unix": SIGNATURE + b"\x21\x31" + struct.pack("!H", 216) + bytes(216),
}


@pytest.mark.parametrize("name", LOCAL)
async def test_the_proxy_that_speaks_for_itself(world, name):
    """LOCAL and UNKNOWN: the connection's own address counts"""
    made = await gateway(world)
    client = await behind(world, made, LOCAL[name])
    await says_client(made, *client.pipe.sock.getsockname())
    await relays(world, client)


async def test_extensions_are_skipped(world):
    """version 2 may carry TLVs"""
    made = await gateway(world)
    tlvs = b"\x02" + struct.pack("!H", 17) + b"relay.example.com" + b"\x04" + struct.pack("!H", 2000) + bytes(2000)
    await relays(world, await behind(world, made, v2("203.0.113.7", 4711, tlvs=tlvs)))
    await says_client(made, "203.0.113.7", 4711)


@pytest.mark.parametrize("make", [v1, v2])
async def test_header_byte_by_byte(world, make):
    made = await gateway(world)
    client, header = await raw(world, made), make("203.0.113.7", 4711)
    for at in range(len(header)):
        await client.send(header[at : at + 1])
        await asyncio.sleep(0.005)
    if world.front_tls:
        client.pipe = await SecurePipe.connect(client.pipe.sock, world.authority.client())
    await relays(world, client)


@pytest.mark.parametrize("make", [v1, v2])
async def test_bytes_right_behind_the_header(world, make):
    """what follows the header in the same segment is not lost: the ClientHello, or the request and all that may follow it"""
    made, target = await gateway(world), world.target()
    client, header = await raw(world, made), make("203.0.113.7", 4711)
    if world.front_tls:
        pipe = SecurePipe(client.pipe.sock, world.authority.client(), server=False)
        original = pipe.flush

        async def flush_with_header(sent=[]) -> None:
            if not sent:
                sent.append(True)
                return await PlainPipe.send(pipe, header + pipe.outgoing.read())
            await original()

        pipe.flush = flush_with_header
        await asyncio.wait_for(pipe.handshake(), 15)
        client.pipe, header = pipe, b""
    frame = masked(TEXT, b"first")
    await client.send(header + upgrade_request() + connect_frame({"apiKey": KEY, "url": target.url()}) + frame)
    await client.read_until(b"\r\n\r\n")
    connection = await (await target.accept()).open()
    await client.expect_connected()
    await connection.expect_raw(frame)


# --- refusals -----------------------------------------------------------------------------------------------------------------
BROKEN = {
    "no header": upgrade_request(),
    "a ClientHello": b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(200),
    "v1 of nonsense": b"PROXY TCP4 nonsense\r\n",
    "v1 without an end": b"PROXY TCP4 " + b"1" * 200,
    "v1 that is too long": b"PROXY UNKNOWN " + b"x" * 120 + b"\r\n",
    "v1 of another family": b"PROXY TCP4 ::1 ::1 1 2\r\n",
    "v2 of version 3": SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
    "v2 with half an address": SIGNATURE + b"\x21\x11\x00\x06" + bytes(6),
    "v2 that is too long": SIGNATURE + b"\x21\x11\xff\xff" + bytes(2000),
    "nearly a signature": b"\r\n\r\n\0\r\nQUIX\n" + bytes(20),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_connections_that_are_refused(world, name):
    """one without is refused; so is one that is broken"""
    made = await gateway(world)
    client = await raw(world, made)
    await client.send(BROKEN[name])
    assert await client.read_to_end(5) == b""
    await made.line("DEBUG.*connection refused: ")
    await relays(world, await behind(world, made, v1("203.0.113.7", 4711)))


@pytest.mark.parametrize("sent", [b"", b"PROXY TCP4 203.0", SIGNATURE[:5], v2("203.0.113.7", 1)[:-1], v1("203.0.113.7", 1)], ids=["nothing", "half of v1", "half a signature", "nearly v2", "only the header"])
async def test_it_must_come_in_time(world, sent):
    """The TLS handshake and the request head must be complete within `limits.header_timeout` after accept; so must the header"""
    made = await gateway(world, limits={"header_timeout": "1s"})
    client = await raw(world, made)
    start = time.monotonic()
    await client.send(sent)
    assert await client.read_to_end(10) == b""
    assert 0.8 < time.monotonic() - start < 4


@pytest.mark.parametrize("networks, source, allowed", [
    (["127.0.0.2/32", "10.0.0.0/8"], "127.0.0.2", True),
    (["127.0.0.2/32", "10.0.0.0/8"], "127.0.0.3", False),
    (["127.0.0.0/8"], "127.9.9.9", True),
    (["::/0"], "127.0.0.1", False),
])
async def test_who_may_send_it(world, networks, source, allowed):
    """`proxy_protocol_from`: CIDRs that may send it, others are refused"""
    made = await gateway(world, listen={"proxy_protocol_from": networks})
    if allowed:
        return await relays(world, await behind(world, made, v2("203.0.113.7", 4711), source))
    client = await raw(world, made, source)
    try:
        await client.send(v2("203.0.113.7", 4711))
    except ConnectionError:
        pass
    assert await client.read_to_end(5) == b""
    await made.line("DEBUG.*connection refused: .*proxy_protocol_from")


# --- real senders ---------------------------------------------------------------------------------------------------------------
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not found:
        pytest.skip(f"{name} is not installed (Debian: apt-get install haproxy nginx libnginx-mod-stream)")
    return found


async def haproxy(world, port: int, upstream: int, options: str) -> Program:
    file = world.folder() / "haproxy.cfg"
    file.write_text(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        f"listen l\n bind 127.0.0.1:{port}\n server s 127.0.0.1:{upstream} {options}\n"
    )
    return await Program.start(program("haproxy"), "-db", "-f", str(file))


async def nginx(world, port: int, upstream: int, _: str) -> Program:
    binary, folder = program("nginx"), world.folder()
    module = "/usr/lib/nginx/modules/ngx_stream_module.so"
    load = f"load_module {module};\n" if os.path.exists(module) else ""
    file = folder / "nginx.conf"
    file.write_text(
        f"{load}daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        f"stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass 127.0.0.1:{upstream}; proxy_protocol on; }} }}\n"
    )
    return await Program.start(binary, "-e", "stderr", "-p", str(folder), "-c", str(file))


SENDERS = {
    "haproxy, version 1": (haproxy, "send-proxy"),
    "haproxy, version 2": (haproxy, "send-proxy-v2 proxy-v2-options unique-id,crc32c"),
    "haproxy, version 2, with checks": (haproxy, "send-proxy-v2 check inter 100ms"),
    "nginx": (nginx, ""),
}


@pytest.mark.parametrize("name", SENDERS)
async def test_real_senders(world, name):
    """HAProxy's `send-proxy` and `send-proxy-v2`, and nginx's `proxy_protocol on`"""
    start, options = SENDERS[name]
    made = await gateway(world, listen={"proxy_protocol_from": ["127.0.0.1/32"]})
    port = free_port()
    sender = await start(world, port, made.port, options)
    world.stack.push_async_callback(sender.kill)
    for _ in range(200):
        try:
            sock = socket.create_connection(("127.0.0.1", port), 5, ("127.0.0.9", 0))
            break
        except ConnectionRefusedError:
            assert sender.child.returncode is None, sender.text
            await asyncio.sleep(0.05)
    else:
        raise AssertionError(sender.text)
    client, (address, source_port) = Client(PlainPipe(sock)), sock.getsockname()
    world.stack.callback(client.close)
    if world.front_tls:
        client.pipe = await asyncio.wait_for(SecurePipe.connect(sock, world.authority.client()), 15)
    await relays(world, client)
    await says_client(made, address, source_port)
    if "checks" in name:
        # A check speaks for the proxy itself: LOCAL.
        await made.line(r"through a proxy proxy=(127\.0\.0\.1:\d+) client=\1")


@pytest.mark.parametrize("world", [False], indirect=True)
async def test_without_proxy_protocol_a_header_is_a_broken_request(world):
    """`proxy_protocol = false`: nobody can say who he is"""
    made = await world.gateway(env=DEBUG)
    client = await raw(world, made)
    await client.send(v1("203.0.113.7", 4711) + upgrade_request())
    assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    assert "203.0.113.7" not in made.err
