"""CONTRACT 5 and 6, `[listen.tls]`: clients over wss://, handshakes that fail or never end, certificates that are wrong."""
from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import ssl
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import websockets
from cryptography.hazmat.primitives import serialization
from websockets.asyncio.server import serve

from harness import frames
from harness.client import KEY, Client, open_tcp, upgrade_request
from harness.frames import BINARY
from harness.process import gateway_config, key_entry, toml
from harness.programs import CLIENTS, Program, node
from harness.secure import SecurePipe
from harness.wire import PlainPipe
from harness.world import World


@pytest.fixture
def world(request) -> World:
    return World(**getattr(request, "param", {"front_tls": True}))


@pytest.fixture
def echo(world):
    async def start() -> str:
        async def handler(connection) -> None:
            async for message in connection:
                await connection.send(message)

        server = await world.stack.enter_async_context(serve(handler, "127.0.0.1", 0, max_size=None))
        return f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    return start


def message(url: str) -> str:
    return json.dumps({"apiKey": KEY, "url": url})


async def plain(world, gateway) -> Client:
    """A TCP connection to the TLS listener, its handshake not begun."""
    client = Client(await open_tcp(gateway.port))
    world.stack.callback(client.close)
    return client


async def secured(world, gateway, context: ssl.SSLContext | None = None, **options) -> Client:
    client = await plain(world, gateway)
    client.pipe = await asyncio.wait_for(SecurePipe.connect(client.pipe.sock, context or world.authority.client(), **options), 15)
    return client


async def healthy(client: Client) -> None:
    await client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await client.read_until(b'{"ok":true}')).startswith(b"HTTP/1.1 200 ")


# --- clients of other makes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", [None, "TLSv1_2", "TLSv1_3"])
async def test_python_websockets(world, echo, version):
    """wss://, TLS 1.2/1.3"""
    gateway, url = await world.gateway(), await echo()
    context = world.authority.client()
    if version:
        context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    async with websockets.connect(f"wss://localhost:{gateway.port}/ws", ssl=context, max_size=None) as ws:
        assert ws.transport.get_extra_info("ssl_object").version() == ("TLSv1.2" if version == "TLSv1_2" else "TLSv1.3")
        await ws.send(message(url))
        assert json.loads(await ws.recv()) == {"type": "connected", "status": 101, "node_id": "scraping-de1"}
        for payload in ("text", "", "ünïcode ✓", b"", bytes(range(256)) * 1000, os.urandom(2_000_000)):
            await ws.send(payload)
            assert await ws.recv() == payload


async def test_npm_ws(world, echo):
    """npm `ws`"""
    gateway, url = await world.gateway(), await echo()
    ws = await world.program(await Program.start("env", f"NODE_EXTRA_CA_CERTS={world.authority.file}", node(), str(CLIENTS / "ws_session.mjs"), f"wss://localhost:{gateway.port}/ws", message(url)))
    assert await ws.ends(30) == 0, ws.text
    assert [json.loads(line)["event"] for line in ws.text.splitlines()] == ["open", "answer", "echoed", "pong", "close"], ws.text


@pytest.mark.parametrize("how", ["--ca", "-n"])
async def test_wscat(world, echo, how):
    """wscat, with our authority and without checking"""
    gateway, url = await world.gateway(), await echo()
    trust = ["--ca", str(world.authority.file)] if how == "--ca" else ["-n"]
    wscat = await world.program(await Program.wscat("-c", f"wss://localhost:{gateway.port}/ws", *trust))
    await wscat.converse(message(url), "hello over TLS")


async def test_docs_with_curl(world):
    """`/ws/docs`: the address is made from the Host header, `wss://` on a TLS one; a client that offers HTTP/2 gets HTTP/1.1"""
    gateway = await world.gateway()
    curl = await world.program(await Program.start("curl", "-sS", "--http2", "--cacert", str(world.authority.file), f"https://localhost:{gateway.port}/ws/docs"))
    assert await curl.ends() == 0, curl.text
    assert json.loads(curl.text) == {
        "type": "connected", "status": 101, "node_id": "scraping-de1",
        "message": f"This is a documentation endpoint. Connect via WebSocket at wss://localhost:{gateway.port}/ws",
    }


PAGE = '''<!doctype html><script>
const say = (text) => fetch("/said?" + encodeURIComponent(text));
const ws = new WebSocket("wss://localhost:{port}/ws");
ws.onopen = () => ws.send({message});
ws.onmessage = (event) => {{
  say(event.data);
  if (event.data.includes('"connected"')) ws.send("from a browser");
  else ws.close(1000, "done");
}};
ws.onclose = (event) => say(`closed ${{event.code}} ${{event.reason}}`);
</script>'''


async def test_chromium(world, echo):
    """a browser over wss://"""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")
    gateway, url = await world.gateway(), await echo()
    said: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/said?"):
                said.append(self.path)
            body = PAGE.format(port=gateway.port, message=json.dumps(message(url))).encode() if self.path == "/" else b""
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    world.stack.callback(server.shutdown)
    browser = await world.program(await Program.start(
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--ignore-certificate-errors", "--no-first-run",
        "--remote-debugging-port=0", f"--user-data-dir={world.folder()}", f"http://127.0.0.1:{server.server_port}/",
    ))
    async with asyncio.timeout(45):
        while len(said) < 3:
            await asyncio.sleep(0.1)
            assert browser.child.returncode is None, browser.text
    # Each is a request of its own, so they may overtake each other.
    assert "/said?from%20a%20browser" in said and "/said?closed%201000%20done" in said, said
    assert sum("%22connected%22" in line for line in said) == 1, said


# --- TLS itself -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_sessions_are_resumed_on_any_worker(world, version):
    """TLS session resumption by tickets, whichever worker thread takes the connection"""
    gateway = await world.gateway(workers=3)
    context = world.authority.client()
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    client = await secured(world, gateway, context)
    await healthy(client)
    assert not client.pipe.tls.session_reused
    for _ in range(10):
        session = client.pipe.tls.session
        client = await secured(world, gateway, context, session=session)
        await healthy(client)
        assert client.pipe.tls.session_reused


async def test_openssl_reconnects(world):
    """resumption as `openssl s_client -reconnect` sees it"""
    if not shutil.which("openssl"):
        pytest.skip("no openssl here")
    gateway = await world.gateway()
    openssl = await world.program(await Program.start("openssl", "s_client", "-connect", f"127.0.0.1:{gateway.port}", "-reconnect", "-tls1_2", "-CAfile", str(world.authority.file)))
    await openssl.type("Q")
    await openssl.ends()
    assert openssl.text.count("Reused, TLSv1.2") == 5, openssl.text


@pytest.mark.parametrize("offered, chosen", [(None, None), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "http/1.1")])
async def test_alpn(world, offered, chosen):
    """no client needs ALPN, and none gets HTTP/2"""
    gateway, context = await world.gateway(), world.authority.client()
    if offered:
        context.set_alpn_protocols(offered)
    client = await secured(world, gateway, context)
    assert client.pipe.tls.selected_alpn_protocol() == chosen
    await healthy(client)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_handshakes_that_fail_are_told_why(world):
    """a TLS alert, then the end; others go on"""
    gateway = await world.gateway(env={"RINGWAY_LOG": "ringway=debug"})
    only_h2 = world.authority.client()
    only_h2.set_alpn_protocols(["h2"])
    old = world.authority.client()
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    for context, alert in ((only_h2, "NO_APPLICATION_PROTOCOL|ALERT"), (old, "PROTOCOL_VERSION|ALERT")):
        with pytest.raises(ssl.SSLError, match=f"(?i){alert}"):
            await secured(world, gateway, context)
        await gateway.line("DEBUG.*TLS handshake failed: ")
    with pytest.raises(ssl.SSLCertVerificationError):
        await secured(world, gateway, ssl.create_default_context())
    await healthy(await secured(world, gateway))
    assert "ERROR" not in gateway.err and "WARN" not in gateway.err, gateway.err


async def test_http_on_the_tls_port(world):
    """plain HTTP to the TLS port gets an answer that says what to do"""
    gateway = await world.gateway()
    for request in (upgrade_request(), b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)):
        client = await plain(world, gateway)
        await client.send(request)
        head = await client.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ") and b"Connection: close" in head
        body = json.loads(await client.read_to_end())
        assert body["type"] == "error" and body["code"] == "tls_required" and "wss://" in body["message"]


async def test_garbage_on_the_tls_port(world):
    """closed, at debug level, and nobody else notices"""
    gateway = await world.gateway(env={"RINGWAY_LOG": "ringway=debug"})
    for garbage in (bytes(100), b"\x16\x03\x01\xff\xff" + bytes(70_000), b"\x80\x2e\x01\x00\x02", os.urandom(1) + bytes(10)):
        client = await plain(world, gateway)
        try:
            await client.send(garbage)
            client.half_close()
        except OSError:
            pass
        await client.read_to_end(5)
    await gateway.line("DEBUG.*TLS handshake failed: ")
    await healthy(await secured(world, gateway))
    assert "ERROR" not in gateway.err and "WARN" not in gateway.err, gateway.err


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


@pytest.mark.parametrize("sent", [b"", b"\x16", client_hello()[:100], client_hello()[:-1], client_hello()], ids=["nothing", "a byte", "half a ClientHello", "nearly a ClientHello", "a ClientHello"])
async def test_the_handshake_must_be_complete_in_time(world, sent):
    """The TLS handshake and the request head must be complete within `limits.header_timeout` after accept, else the connection is closed."""
    gateway = await world.gateway(limits={"header_timeout": "1s"})
    client = await plain(world, gateway)
    start = time.monotonic()
    await client.send(sent)
    await client.read_to_end(10)
    assert 0.8 < time.monotonic() - start < 4


async def test_handshake_and_request_head_have_one_time_together(world):
    """… within `limits.header_timeout` after accept: a slow handshake leaves less for the head"""
    gateway = await world.gateway(limits={"header_timeout": "2s"})
    client = await plain(world, gateway)
    start = time.monotonic()
    await asyncio.sleep(1.4)
    client.pipe = await SecurePipe.connect(client.pipe.sock, world.authority.client())
    await client.send(b"GET /healthz HT")
    await client.expect_end()
    assert client.pipe.close_notified
    assert 1.6 < time.monotonic() - start < 3.2


async def test_a_handshake_that_trickles_is_late(world):
    """Slow handshakes are closed at that deadline"""
    gateway = await world.gateway(limits={"header_timeout": "1s"})
    client = await plain(world, gateway)
    start = time.monotonic()
    try:
        for byte in client_hello() * 5:
            await client.send(bytes([byte]))
            await asyncio.sleep(0.01)
    except ConnectionError:
        pass
    assert time.monotonic() - start < 4


async def test_client_hello_byte_by_byte(world):
    gateway = await world.gateway()
    client = await plain(world, gateway)
    pipe = SecurePipe(client.pipe.sock, world.authority.client(), server=False)

    async def flush() -> None:
        for byte in pipe.outgoing.read():
            await PlainPipe.send(pipe, bytes([byte]))

    pipe.flush = flush
    await asyncio.wait_for(pipe.handshake(), 15)
    client.pipe = pipe
    await healthy(client)


async def test_max_pending_beyond_it_closed(world):
    """`max_pending`: connections not so far yet (TLS, …); beyond it 503, or closed"""
    gateway = await world.gateway(limits={"max_pending": 2})
    held = [await plain(world, gateway) for _ in range(2)]
    await asyncio.sleep(0.2)
    refused = await plain(world, gateway)
    assert await refused.read_to_end(5) == b""
    for client in held:
        client.close()
    for _ in range(50):
        try:
            return await healthy(await secured(world, gateway))
        except (ConnectionError, ssl.SSLError):
            await asyncio.sleep(0.1)
    raise AssertionError("those who left still count")


# --- sessions over TLS --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("world", [{"front_tls": True}, {"front_tls": True, "target_tls": True}], indirect=True, ids=["TLS in front", "TLS on both sides"])
@pytest.mark.parametrize("direction", ["client_to_target", "target_to_client"])
async def test_frame_of_16_mib(world, direction):
    """frames of any size pass, through TLS too"""
    _, _, client, connection = await world.pair()
    sender, receiver = (client, connection) if direction == "client_to_target" else (connection, client)
    made = frames.frame(BINARY, os.urandom(16 << 20), mask=os.urandom(4) if sender is client else None)
    sending = asyncio.create_task(sender.send(made, 60))
    got = await receiver.read_exactly(len(made), 30)
    await sending
    assert hashlib.sha256(got).digest() == hashlib.sha256(made).digest()


async def test_close_notify_is_sent_at_the_end(world):
    """close_notify is sent at our end of write, and the server side closes TCP first"""
    _, _, client, connection = await world.pair()
    await connection.send_close(1000, "bye")
    await client.expect_close(1000, "bye")
    await client.send_close(1000)
    await connection.expect_close(1000)
    connection.close()
    await client.expect_fin()
    assert client.pipe.close_notified, "a FIN without close_notify could be an attacker's"
    assert await asyncio.wait_for(PlainPipe.recv(client.pipe, 10), 5) == b"", "and then the FIN"


async def test_close_notify_without_a_close_is_the_clients_end(world):
    """The client's FIN without a Close: the target gets 1001, and what the target still sends goes to the client"""
    _, _, client, connection = await world.pair()
    made = await client.send_text("the last")
    await client.pipe.say_goodbye()
    await connection.expect_raw(made)
    await connection.expect_close(1001, "Client disconnected")
    await connection.send_close(1001)
    await connection.expect_end()


@pytest.mark.parametrize("together", [False, True])
async def test_a_broken_record_is_the_clients_end(world, together):
    """what is no TLS record cannot be read on: the client is lost, and what came before counts"""
    gateway, _, client, connection = await world.pair()
    made = await client.send_text("before")
    if together:
        # One receive brings both records: what was sent waits in the kernel while the gateway stands still.
        gateway.signal(signal.SIGSTOP)
        made += await client.send_text("and this")
    await PlainPipe.send(client.pipe, b"\x17\x03\x03\x00\x40" + os.urandom(64))
    if together:
        gateway.signal(signal.SIGCONT)
    await connection.expect_raw(made)
    await connection.expect_close(1001, "Client disconnected")
    await connection.send_close(1001)
    await healthy(await secured(world, gateway))


async def test_drain(world):
    """drain: client 1012, target 1001, `Service restart`; connections without a connect message get 1012; exit 0"""
    gateway, _, client, connection = await world.pair(limits={"drain": "2s"})
    waiting = await world.client(gateway)
    silent, shaken = await plain(world, gateway), await secured(world, gateway)
    gateway.signal(signal.SIGTERM)
    for one in (client, waiting):
        await one.expect_close(1012, "Service restart")
    await connection.expect_close(1001, "Service restart")
    await connection.send_close(1001)
    for one in (client, waiting):
        await one.finish(1012)
    await silent.expect_end()
    await shaken.expect_end()
    assert await gateway.exit_code() == 0


async def test_idle_sessions_own_no_buffer(world):
    """An idle TLS session keeps the TLS state only: no buffers of ours, which have 64 KiB"""
    gateway, target = await world.gateway(workers=1), world.target()

    async def sessions(count: int) -> list:
        made = [await world.session(gateway, target) for _ in range(count)]
        for client, connection in made:
            await connection.expect_raw(await client.send_frame(BINARY, bytes(100_000)))
            await client.expect_raw(await connection.send_frame(BINARY, bytes(100_000)))
        return made

    kept = await sessions(30)
    before = gateway.rss()
    kept += await sessions(100)
    assert (gateway.rss() - before) / 100 < 40 * 1024


# --- listeners -------------------------------------------------------------------------------------------------------------------
async def test_plain_and_tls_listeners_together(world):
    """`listening on ADDR (public, tls)`; each listener names its own scheme"""
    pem = str(world.authority.identity("localhost", "127.0.0.1"))
    gateway = await world.gateway(listen={"addr": ["127.0.0.1:0"]}, tls={"addr": ["127.0.0.1:0", "[::1]:0"], "cert": pem, "key": pem})
    assert sum(line.startswith("listening on ") for line in gateway.lines) == 3, gateway.err
    assert await gateway.line(r"^listening on \[::1\]:\d+ \(public, tls\)$")
    for port, tls, scheme in ((gateway.port, None, "ws"), (gateway.tls_port, world.authority.client(), "wss")):
        client = await Client.tcp(port, tls=tls)
        world.stack.callback(client.close)
        await client.send(b"GET /ws/docs HTTP/1.1\r\nHost: relay.example.com\r\n\r\n")
        await client.read_until(f"at {scheme}://relay.example.com/ws".encode())


async def test_public_url_comes_first(world):
    """the address is `public_url`, or else made from the Host header"""
    gateway = await world.gateway(top={"public_url": "wss://relay.example.com:8443"})
    client = await world.tcp(gateway)
    await client.send(b"GET /ws/docs HTTP/1.1\r\nHost: other.example.com\r\n\r\n")
    await client.read_until(b"at wss://relay.example.com:8443/ws")


# --- certificates that are wrong ---------------------------------------------------------------------------------------------------
def split(pem: Path) -> tuple[bytes, bytes]:
    """(certificate, key) of a PEM file that holds both."""
    text = pem.read_bytes()
    at = text.index(b"-----BEGIN PRIVATE KEY-----")
    return text[:at], text[at:]


def encrypted(key: bytes) -> bytes:
    loaded = serialization.load_pem_private_key(key, None)
    return loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret"))


WRONG_FILES = ["no certificate file", "no key file", "no certificate in it", "no key in it", "another key", "encrypted key", "wrong order", "cut certificate", "not PEM"]


def wrong_files(world) -> dict[str, tuple[bytes | None, bytes | None, str, str]]:
    """(cert.pem, key.pem, the file that is named, what is said)"""
    cert, key = split(world.authority.identity("localhost"))
    other = split(world.authority.identity("localhost"))[1]
    authority = world.authority.file.read_bytes()
    return {
        "no certificate file": (None, key, "cert.pem", "cannot be read"),
        "no key file": (cert, None, "key.pem", "cannot be read"),
        "no certificate in it": (key, key, "cert.pem", "holds no certificate"),
        "no key in it": (cert, cert, "key.pem", "holds no private key"),
        "another key": (cert, other, "key.pem", "is not the key of the certificate"),
        "encrypted key": (cert, encrypted(key), "key.pem", "encrypted"),
        "wrong order": (authority + cert, key, "cert.pem", "must come first"),
        "cut certificate": (cert[: len(cert) // 2], key, "cert.pem", "damaged"),
        "not PEM": (b"\x30\x82\x01\x00" + bytes(100), key, "cert.pem", "holds no certificate"),
    }


async def started_with(world, command: str, cert: bytes | None, key: bytes | None):
    folder = world.folder()
    for name, content in (("cert.pem", cert), ("key.pem", key)):
        if content is not None:
            (folder / name).write_bytes(content)
    (folder / "keys.toml").write_text(toml({"key": [key_entry()]}))
    (folder / "gateway.toml").write_text(toml(gateway_config(tls={})))
    return await world.process(command, "-c", str(folder / "gateway.toml"), ready=command == "gateway")


@pytest.mark.parametrize("command", ["check", "gateway"])
@pytest.mark.parametrize("name", WRONG_FILES)
async def test_certificates_that_cannot_be_served(world, name, command):
    """Certificate and key errors at start and in `ringway check` say what is wrong in words and which file; exit 2"""
    cert, key, file, said = wrong_files(world)[name]
    process = await started_with(world, command, cert, key)
    assert await process.exit_code() == 2, process.err
    line = next((line for line in process.lines if said in line), None)
    assert line and re.match(rf"\S*/{file}: ", line), process.err
    assert "panicked" not in process.err and not any(line.startswith("listening on") for line in process.lines)
    for secret in re.findall(rb"[\w+/]{40,}", key or b""):
        assert secret.decode() not in process.err + process.out


@pytest.mark.parametrize("days, said", [((-9, -1), "the certificate expired on "), ((1, 9), "the certificate is not valid before ")])
async def test_certificates_out_of_their_time_are_a_warning(world, days, said):
    """expired or not yet valid certificate is a warning in the log and in `check`"""
    cert, key = split(world.authority.identity("localhost", days=days))
    check = await started_with(world, "check", cert, key)
    assert await check.exit_code() == 0, check.err
    assert re.search(rf"/cert\.pem: {said}\d{{4}}-", check.err), check.err
    gateway = await started_with(world, "gateway", cert, key)
    await gateway.ready()
    await gateway.line(rf"WARN.*/cert\.pem: {said}")
