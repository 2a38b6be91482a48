"""The contract, section 6 `[egress]`: what the embedded agent may reach. Addresses that are not loopback
are asked for inside a network namespace only, so that even a broken policy reaches nobody."""
from __future__ import annotations

import pytest

from harness.client import KEY
from harness.netns import in_namespace

FORBIDDEN = [
    # loopback and "this host"
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "[::1]", "[::]", "localhost", "LOCALHOST",
    # private, link-local, carrier NAT, metadata
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255",
    # documentation, benchmarking, protocol assignments, multicast, reserved, broadcast
    "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "192.0.0.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    # IPv6: unique local, link-local, multicast, documentation, discard, site-local
    "[fc00::1]", "[fd00:ec2::254]", "[fe80::1]", "[ff02::1]", "[2001:db8::1]", "[3fff::1]", "[100::1]", "[fec0::1]", "[2001:2::1]",
    # IPv4 inside IPv6: mapped, compatible, NAT64, 6to4, local NAT64
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:10.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::a00:1]", "[2002:7f00:1::1]", "[2002:a00:1::1]", "[64:ff9b:1::7f00:1]",
]
NUMERIC = ["2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "127.1", "127.0.1", "0", "017700000001", "0x7f.1", "127.0.0.1.", "localhost.", "%31%32%37.0.0.1", "127%2e0.0.1", "１２７.0.0.1", "①②⑦.0.0.1", "[0:0:0:0:0:ffff:127.0.0.1]"]


async def ask(world, gateway, url: str) -> dict:
    client = await world.client(gateway)
    await client.connect({"apiKey": KEY, "url": url})
    got = await client.read_json()
    got["client"] = client
    return got


async def expect_refused(world, gateway, url: str) -> None:
    got = await ask(world, gateway, url)
    assert (got.get("code"), got.get("message")) == ("target_not_allowed", "Target not allowed"), (url, got)
    await got["client"].expect_close(1008)
    await got["client"].finish(1008)


@in_namespace
async def test_default_policy_refuses_what_is_not_global_unicast(world):
    """default: every address that is not global unicast is refused (loopback, RFC 1918, link-local, CGNAT, ULA, metadata, mapped forms): `Target not allowed`, 1008"""
    gateway, target, six = await world.gateway(egress={"allow": []}), world.target(), world.target("::1")
    wrong = {}
    for host in FORBIDDEN:
        for scheme, port in (("ws", six.port if host == "[::1]" else target.port), ("wss", target.port)):
            got = await ask(world, gateway, f"{scheme}://{host}:{port}/")
            if (got.get("code"), got.get("message")) != ("target_not_allowed", "Target not allowed"):
                wrong[f"{scheme}://{host}"] = {k: v for k, v in got.items() if k != "client"}
            else:
                await got["client"].expect_close(1008)
            got["client"].close()
    assert not wrong, wrong
    await target.expect_no_dial(0.2)
    await six.expect_no_dial(0.2)


@pytest.mark.parametrize("host", NUMERIC)
async def test_other_spellings_of_loopback_are_refused(world, host):
    """numeric host spellings: the same addresses"""
    gateway, target = await world.gateway(egress={"allow": []}), world.target()
    got = await ask(world, gateway, f"ws://{host}:{target.port}/")
    assert got["type"] == "error" and got["code"] in ("target_not_allowed", "invalid_connect_message"), got
    await got["client"].expect_close(1008)
    await target.expect_no_dial(0.2)


async def test_names_that_resolve_to_loopback_are_refused(world):
    """resolve once, vet every address"""
    gateway, target = await world.gateway(egress={"allow": []}), world.target()
    await expect_refused(world, gateway, f"ws://localhost:{target.port}/")
    await target.expect_no_dial(0.2)


async def connects(world, gateway, target, url: str) -> None:
    client = await world.client(gateway)
    await client.connect({"apiKey": KEY, "url": url})
    await (await target.accept()).open()
    await client.expect_connected()


@in_namespace
async def test_allow_by_address(world):
    """allow: CIDRs or host names allowed though private"""
    gateway, target, six = await world.gateway(egress={"allow": ["127.0.0.1/32"]}), world.target(), world.target("::1")
    await connects(world, gateway, target, target.url())
    await connects(world, gateway, target, f"ws://localhost:{target.port}/")
    await expect_refused(world, gateway, f"ws://127.0.0.2:{target.port}/")
    await expect_refused(world, gateway, six.url())
    await expect_refused(world, gateway, "ws://10.0.0.1/")


async def test_allow_by_host_name(world):
    """allow: CIDRs or host names allowed though private"""
    gateway, target = await world.gateway(egress={"allow": ["localhost"]}), world.target()
    await connects(world, gateway, target, f"ws://localhost:{target.port}/")
    await connects(world, gateway, target, f"ws://LocalHost:{target.port}/")
    await expect_refused(world, gateway, target.url())
    await target.expect_no_dial(0.2)


async def test_deny_comes_before_allow(world):
    """deny: CIDRs or host names (and their subdomains) refused, before allow"""
    gateway, target = await world.gateway(egress={"allow": ["127.0.0.0/8", "localhost"], "deny": ["127.0.0.1/32"]}), world.target(host="127.0.0.2")
    await expect_refused(world, gateway, f"ws://127.0.0.1:{target.port}/")
    await expect_refused(world, gateway, f"ws://[::ffff:127.0.0.1]:{target.port}/")
    await connects(world, gateway, target, target.url())


async def test_deny_by_host_name_and_subdomain(world):
    """deny: CIDRs or host names (and their subdomains)"""
    gateway, target = await world.gateway(egress={"deny": ["localhost", "denied.invalid"]}), world.target()
    for host in ("localhost", "LOCALHOST", "localhost.", "denied.invalid", "sub.denied.invalid", "a.b.Denied.Invalid", "denied.invalid."):
        await expect_refused(world, gateway, f"ws://{host}:{target.port}/")
    got = await ask(world, gateway, f"ws://notdenied.invalid:{target.port}/")
    assert got["code"] in ("target_unreachable", "target_timeout"), got
    await connects(world, gateway, target, target.url())


@in_namespace
async def test_deny_of_global_addresses(world):
    """deny refuses what the default would allow"""
    gateway = await world.gateway(egress={"deny": ["1.2.3.0/24", "2606:4700::/32"]})
    await expect_refused(world, gateway, "ws://1.2.3.4/")
    await expect_refused(world, gateway, "ws://[2606:4700::1]/")
