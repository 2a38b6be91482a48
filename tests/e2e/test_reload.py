"""CONTRACT 6, Reload: what SIGHUP takes over, what it leaves alone, and what it says."""
from __future__ import annotations

import asyncio
import os
import signal
import ssl
from pathlib import Path

import pytest

from harness.client import KEY, open_tcp
from harness.files import Fifo
from harness.frames import BINARY, TEXT, masked
from harness.http import fetch, until
from harness.process import gateway_config, key_entry, toml
from harness.secure import SecurePipe
from harness.tls import Authority


class Reloading:
    """A gateway whose keys file a test rewrites."""

    def __init__(self, gateway, folder: Path):
        self.gateway, self.folder, self.reloads = gateway, folder, 0

    @classmethod
    async def run(cls, world, folder: Path | None = None, **config) -> "Reloading":
        folder = folder or world.folder()
        return cls(await world.gateway(folder=folder, **config), folder)

    async def keys(self, *entries: dict, text: str | None = None) -> list[str]:
        (self.folder / "keys.toml").write_text(toml({"key": list(entries)}) if text is None else text)
        return await self.reload()

    async def reload(self) -> list[str]:
        """SIGHUP, and what the gateway says of it."""
        before = len(self.gateway.lines)
        self.reloads += 1
        self.gateway.signal(signal.SIGHUP)
        await self.gateway.wait_until(lambda: sum("reload done" in line or "reload failed" in line for line in self.gateway.lines) >= self.reloads, "the end of the reload")
        return self.gateway.lines[before:]


async def opens(world, gateway, target, key: str = KEY):
    client = await world.client(gateway)
    await client.connect({"apiKey": key, "url": target.url()})
    connection = await (await target.accept()).open()
    await client.expect_connected()
    return client, connection


async def is_refused(world, gateway, target, code: str, key: str = KEY) -> dict:
    return await world.refused(gateway, {"apiKey": key, "url": target.url()}, code, 1008)


async def passes(client, connection) -> None:
    await connection.expect_raw(await client.send_frame(BINARY, os.urandom(70_000)))
    await client.expect_raw(await connection.send_frame(BINARY, os.urandom(70_000)))


# --- keys --------------------------------------------------------------------------------------------------------------
async def test_keys_are_added_and_removed(world):
    """Live sessions survive every reload: a key that is removed … takes no new sessions"""
    it, target = await Reloading.run(world), world.target()
    session = await opens(world, it.gateway, target)
    await is_refused(world, it.gateway, target, "invalid_key", "another")
    await it.keys(key_entry("another"))
    await is_refused(world, it.gateway, target, "invalid_key")
    await passes(*session)
    await passes(*await opens(world, it.gateway, target, "another"))
    await it.keys(key_entry("another"), key_entry())
    await passes(*await opens(world, it.gateway, target))
    await passes(*session)


async def test_a_key_that_expires(world):
    """a key that … expires takes no new sessions"""
    it, target = await Reloading.run(world), world.target()
    session = await opens(world, it.gateway, target)
    await it.keys(key_entry(rate=1000.0, burst=1000, expires="2020-01-01T00:00:00Z"))
    await is_refused(world, it.gateway, target, "invalid_key")
    await passes(*session)


async def test_a_client_that_is_setting_up_meets_the_new_keys(world):
    """the key is looked up with the connect message, whenever the upgrade was"""
    it, target = await Reloading.run(world), world.target()
    client = await world.client(it.gateway)
    await it.keys(key_entry("another"))
    await client.connect({"apiKey": KEY, "url": target.url()})
    await client.expect_error("invalid_key", 1008)


BROKEN = {
    "no TOML": ("[[key]]\nid = \n", 2),
    "an unknown key": ('[[key]]\nid = "a"\nsha256 = "%s"\nrat = 5\n' % ("ab" * 32), 4),
    "no hash": ('\n\n[[key]]\nid = "a"\nsha256 = "secret"\n', 5),
    "half a file": (toml({"key": [key_entry("another")]})[:40], 4),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_file_keeps_the_old_keys(world, name):
    """A broken file keeps the old ones and says so."""
    text, line = BROKEN[name]
    it, target = await Reloading.run(world), world.target()
    session = await opens(world, it.gateway, target)
    said = await it.keys(text=text)
    assert any(f"{it.folder}/keys.toml:{line}:" in line_ and "not reloaded" in line_ for line_ in said), said
    assert "secret" not in it.gateway.err
    await passes(*session)
    await passes(*await opens(world, it.gateway, target))
    said = await it.keys(key_entry("another"))
    assert any("keys.toml" in line and "1 added" in line and "1 removed" in line for line in said), said
    await is_refused(world, it.gateway, target, "invalid_key")
    await passes(*session)


async def test_a_missing_file_keeps_the_old_keys(world):
    """A broken file keeps the old ones and says so."""
    it, target = await Reloading.run(world), world.target()
    (it.folder / "keys.toml").unlink()
    said = await it.reload()
    assert any("keys.toml" in line and "cannot be read" in line for line in said), said
    await passes(*await opens(world, it.gateway, target))


async def test_the_bucket_keeps_its_level_cut_to_the_new_burst(world):
    """a reload keeps the level, cut to the new burst"""
    it, target = await Reloading.run(world, keys=[key_entry(rate=1e-6, burst=6)]), world.target()
    await opens(world, it.gateway, target)
    await it.keys(key_entry(rate=1e-6, burst=4))
    for _ in range(2):
        await opens(world, it.gateway, target)
    await it.keys(key_entry(rate=1e-6, burst=50))
    for _ in range(2):
        await opens(world, it.gateway, target)
    await is_refused(world, it.gateway, target, "rate_limited")
    await it.keys(key_entry(rate=1e-6, burst=50))
    await is_refused(world, it.gateway, target, "rate_limited")


async def test_a_new_rate_holds_at_once(world):
    """rate changes apply"""
    it, target = await Reloading.run(world, keys=[key_entry(rate=1e-6, burst=1)]), world.target()
    await opens(world, it.gateway, target)
    error = await is_refused(world, it.gateway, target, "rate_limited")
    assert error["retry_after_ms"] > 3_600_000
    await it.keys(key_entry(rate=5.0, burst=1))
    await asyncio.sleep(0.5)
    await opens(world, it.gateway, target)


async def test_sessions_stay_counted(world):
    """`max_sessions` counts … until both connections are closed: a reload forgets none, a new bound holds at once"""
    limits = {"rate": 1000.0, "burst": 1000}
    it, target = await Reloading.run(world, keys=[key_entry(**limits, max_sessions=2)]), world.target()
    sessions = [await opens(world, it.gateway, target) for _ in range(2)]
    await it.keys(key_entry(**limits, max_sessions=2))
    await is_refused(world, it.gateway, target, "too_many_sessions")
    await it.keys(key_entry(**limits, max_sessions=3))
    sessions.append(await opens(world, it.gateway, target))
    await is_refused(world, it.gateway, target, "too_many_sessions")
    # Gone and back, with its sessions alive; and fewer than it has.
    await it.keys(key_entry("another"))
    await it.keys(key_entry(**limits, max_sessions=1))
    await is_refused(world, it.gateway, target, "too_many_sessions")
    for session in sessions:
        await passes(*session)


# --- the rest ------------------------------------------------------------------------------------------------------------
async def test_the_log_says_what_was_reloaded_and_what_was_not(world):
    """gateway.toml itself is not re-read: other changes need a restart"""
    it, target = await Reloading.run(world), world.target()
    (it.folder / "gateway.toml").write_text("this is no TOML\n")
    said = await it.keys(key_entry(), key_entry("another"))
    assert any(f"{it.folder}/keys.toml" in line and "2 in all" in line for line in said), said
    assert any("gateway.toml" in line and "restart" in line for line in said), said
    assert not any("ERROR" in line for line in said), said
    await passes(*await opens(world, it.gateway, target, "another"))


async def test_roots_for_targets_are_reloaded(world, tmp_path):
    """egress.ca_file is read again: new connections trust what it says then"""
    one, other = Authority(tmp_path, "one"), Authority(tmp_path, "other")
    roots = tmp_path / "roots.pem"
    roots.write_bytes(one.file.read_bytes())
    it = await Reloading.run(world, egress={"ca_file": str(roots)})

    async def reached(authority: Authority) -> bool:
        target = world.target(tls=authority.server("localhost"))
        client = await world.client(it.gateway)
        await client.connect({"apiKey": KEY, "url": target.url(host="localhost")})
        try:
            await (await target.accept()).open()
        except (ssl.SSLError, ConnectionError):
            await client.expect_error("target_unreachable", 1011)
            return False
        await client.expect_connected()
        return True

    assert (await reached(one), await reached(other)) == (True, False)
    roots.write_bytes(other.file.read_bytes())
    await it.reload()
    assert (await reached(one), await reached(other)) == (False, True)
    roots.write_text("no PEM")
    said = await it.reload()
    assert any(str(roots) in line and "not reloaded" in line for line in said), said
    assert (await reached(one), await reached(other)) == (False, True)


async def test_the_certificate_is_reloaded(world):
    """new certificates serve new connections; a broken file keeps the old ones and says so; live sessions survive"""
    folder, (one, other) = world.folder(), [Authority(world.folder(), name) for name in ("one", "other")]
    write = lambda authority: (folder / "cert.pem").write_bytes(authority.identity("localhost").read_bytes())
    write(one)
    it, target = await Reloading.run(world, folder=folder, listen={"addr": []}, tls={"cert": "cert.pem", "key": "cert.pem"}), world.target()

    async def trusts(authority: Authority) -> bool:
        wire = await open_tcp(it.gateway.port)
        world.stack.callback(wire.close)
        try:
            await SecurePipe.connect(wire.sock, authority.client())
        except ssl.SSLCertVerificationError:
            return False
        return True

    client = await world.client(it.gateway, tls=one.client())
    await client.connect({"apiKey": KEY, "url": target.url()})
    connection = await (await target.accept()).open()
    await client.expect_connected()
    assert (await trusts(one), await trusts(other)) == (True, False)
    write(other)
    await it.reload()
    assert (await trusts(one), await trusts(other)) == (False, True)
    (folder / "cert.pem").write_text("no PEM")
    said = await it.reload()
    assert any("cert.pem" in line and "not reloaded" in line for line in said), said
    assert (await trusts(one), await trusts(other)) == (False, True)
    await passes(client, connection)


async def test_many_reloads_while_a_session_is_inside_a_frame(world):
    """Live sessions survive every reload"""
    it, target = await Reloading.run(world), world.target()
    client, connection = await opens(world, it.gateway, target)
    made = masked(TEXT, os.urandom(50_000))
    await client.send(made[:20_000])
    for turn in range(5):
        await it.keys(key_entry(f"key-{turn}"))
    await client.send(made[20_000:])
    await connection.expect_raw(made)
    await passes(client, connection)


async def test_reload_of_dev_and_echo_is_not_there(world):
    """they have no files to read again: SIGHUP ends them, as a terminal that is closed wants it"""
    process = await world.process("echo", "--listen", "127.0.0.1:0")
    await process.ready()
    process.signal(signal.SIGHUP)
    assert await process.exit_code(5) == -signal.SIGHUP


# --- files that keep it waiting ----------------------------------------------------------------------------------------------
async def test_a_file_that_keeps_it_waiting_holds_up_nothing(world):
    """Sessions never notice; a SIGHUP meanwhile is for one more reload, however many there were"""
    it, target = await Reloading.run(world), world.target()
    session = await opens(world, it.gateway, target)
    file = Fifo(world, it.folder / "keys.toml")
    it.gateway.signal(signal.SIGHUP)
    await file.is_read()
    await passes(*session)
    await passes(*await opens(world, it.gateway, target))
    for _ in range(3):
        it.gateway.signal(signal.SIGHUP)
    await it.gateway.line("another one follows")
    file.replace(toml({"key": [key_entry("last")]}))
    file.write(toml({"key": [key_entry("first")]}))
    await it.gateway.wait_until(lambda: sum("reload done" in line for line in it.gateway.lines) == 2, "two reloads")
    await is_refused(world, it.gateway, target, "invalid_key", "first")
    await passes(*await opens(world, it.gateway, target, "last"))
    await passes(*session)


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_file_that_keeps_it_waiting_does_not_keep_it_from_ending(world, signals):
    """SIGTERM drains, and exits 0; a second one exits 1 at once"""
    it, target = await Reloading.run(world, limits={"drain": "60s"}), world.target()
    client, connection = await opens(world, it.gateway, target)
    file = Fifo(world, it.folder / "keys.toml")
    it.gateway.signal(signal.SIGHUP)
    await file.is_read()
    it.gateway.signal(signal.SIGTERM)
    await client.expect_close(1012)
    if signals == 2:
        it.gateway.signal(signal.SIGTERM)
        assert await it.gateway.exit_code() == 1
        return
    await client.send_close(1012)
    await connection.expect_close(1001)
    connection.close()
    assert await it.gateway.exit_code() == 0


async def test_a_start_that_waits_for_a_file_can_be_given_up(world):
    """SIGHUP does not end it, SIGTERM does"""
    folder = world.folder()
    file = Fifo(world, folder / "keys.toml")
    (folder / "gateway.toml").write_text(toml(gateway_config()))
    gateway = await world.process("gateway", "-c", str(folder / "gateway.toml"))
    await file.is_read()
    gateway.signal(signal.SIGHUP)
    gateway.signal(signal.SIGTERM)
    assert await gateway.exit_code(5) == -signal.SIGTERM


async def test_a_failed_reload_is_not_done(world):
    """A broken file keeps the old ones and says so: as an error that names what stays in use, and as no other end"""
    it = await Reloading.run(world)
    said = await it.keys(text="broken")
    assert any("ERROR" in line and "reload failed" in line and "in use as before: API keys" in line for line in said), said
    assert not any("reload done" in line for line in said), said


# --- keys that come back -----------------------------------------------------------------------------------------------------
async def usage(gateway) -> dict:
    return (await fetch(gateway.port, "/usage", headers={"X-API-Key": KEY})).json()


@pytest.mark.parametrize("lives", [True, False])
async def test_a_key_that_comes_back(world, lives):
    """With a session alive it goes on with its bucket's level and its usage; with none it begins anew"""
    entry = key_entry(rate=1e-6, burst=2)
    it, target = await Reloading.run(world, keys=[entry]), world.target()
    sessions = [await opens(world, it.gateway, target) for _ in range(2)]
    for client, connection in sessions[lives:]:
        await client.part(connection)
    await until(lambda: usage(it.gateway), lambda got: got["sessions_active"] == lives, "end of the session")
    await it.keys()
    await it.keys(entry)
    got = await usage(it.gateway)
    assert (got["sessions_active"], got["sessions_total"], int(got["tokens"])) == ((1, 2, 0) if lives else (0, 0, 2)), got
    if lives:
        await is_refused(world, it.gateway, target, "rate_limited")
        await passes(*sessions[0])
    else:
        await passes(*await opens(world, it.gateway, target))
