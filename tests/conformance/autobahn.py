"""Runs Autobahn's fuzzing peers against an echo server and an echo client, direct and through ringway, and compares.

What is compared of each case is all that the fuzzing peer saw and thought of the other end. A case that differs is run
again, both ways, before it counts: with some cases the peers themselves race, and differ from run to run.
"""
from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import shutil
import ssl
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from harness.client import KEY  # noqa: E402
from harness.process import Gateway, binary  # noqa: E402
from harness.transparent import address  # noqa: E402
from harness.world import World  # noqa: E402

DOCUMENT = ROOT / "docs" / "conformance.md"
QUICK = ["1.1.1", "1.2.8", "2.*", "3.*", "4.*", "5.*", "6.1.*", "6.3.*", "6.4.*", "7.*", "9.1.1", "9.5.1", "10.*", "12.1.1", "12.2.1", "13.1.1", "13.4.1"]
AGAIN = 3
"""How often a case that differs is run again, each way."""
SEEN = ["behavior", "behaviorClose", "result", "resultClose", "received", "wasClean", "localCloseCode", "remoteCloseCode", "remoteCloseReason", "failedByMe", "rxFrameStats"]
RUN_S, CASE_S = 3 * 3600, 600


@dataclass(frozen=True)
class Variant:
    name: str
    title: str
    tls: bool
    remote: bool


VARIANTS = [
    Variant("plain", "one hop", False, False),
    Variant("tls", "one hop, TLS on both sides", True, False),
    Variant("plain2", "two hops", False, True),
    Variant("tls2", "two hops, TLS throughout", True, True),
]


class Suite:
    """Autobahn's programs, which are of Python 2.7."""

    def __init__(self, python: str, folder: Path):
        self.python, self.folder = python, folder

    async def start(self, mode: str, spec: dict, env: dict | None = None) -> asyncio.subprocess.Process:
        folder = Path(spec["outdir"])
        file = folder / "spec.json"
        file.write_text(json.dumps(spec))
        log = (folder / f"{mode}.log").open("wb")
        return await asyncio.create_subprocess_exec(
            self.python, "-m", "autobahntestsuite.wstest", "--mode", mode, "--spec", str(file), "--webport", "0",
            stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL, env=env,
        )

    def results(self, folder: Path) -> dict[str, dict]:
        """What was seen in each case, by its name."""
        found = {}
        for file in folder.glob("*_case_*.json"):
            case = json.loads(file.read_text())
            found[case["id"]] = {name: case[name] for name in SEEN}
        return found


async def stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


# --- the two directions -----------------------------------------------------------------------------------------------
class FuzzingClient:
    """Autobahn is the client, and an echo server of Python's websockets the target."""

    name = "Autobahn's client, and a server"

    def __init__(self, suite: Suite):
        self.suite = suite

    async def run(self, cases: list[str], variant: Variant | None) -> dict[str, dict]:
        world = new_world(variant)
        try:
            tls = world.authority.server("localhost", "127.0.0.1") if variant and variant.tls else None
            async with serve(echo, "127.0.0.1", 0, max_size=None, ping_interval=None, close_timeout=5, ssl=tls) as server:
                port = server.sockets[0].getsockname()[1]
                url, env = f"{'wss' if tls else 'ws'}://localhost:{port}/", None
                if variant:
                    gateway = await new_gateway(world)
                    url = f"{'wss' if tls else 'ws'}://localhost:{gateway.port}{address(url, KEY)}"
                if tls:
                    env = {"SSL_CERT_FILE": str(world.authority.file), "PATH": "/usr/bin:/bin"}
                out = Path(tempfile.mkdtemp(dir=self.suite.folder))
                spec = {"outdir": str(out), "servers": [{"agent": "peer", "url": url}], "cases": cases, "exclude-cases": [], "exclude-agent-cases": {}, "options": {"failByDrop": False}}
                process = await self.suite.start("fuzzingclient", spec, env)
                try:
                    await asyncio.wait_for(process.wait(), RUN_S)
                finally:
                    await stop(process)
                return self.suite.results(out)
        finally:
            await world.close()


class FuzzingServer:
    """Autobahn is the target, and an echo client of Python's websockets the client."""

    name = "A client, and Autobahn's server"

    def __init__(self, suite: Suite):
        self.suite = suite

    async def run(self, cases: list[str], variant: Variant | None) -> dict[str, dict]:
        world = new_world(variant)
        try:
            port, tls = free_port(), variant is not None and variant.tls
            base = f"{'wss' if tls else 'ws'}://localhost:{port}"
            out = Path(tempfile.mkdtemp(dir=self.suite.folder))
            spec = {"outdir": str(out), "url": base, "cases": cases, "exclude-cases": [], "exclude-agent-cases": {}, "options": {"failByDrop": False}}
            if tls:
                pem = str(world.authority.identity("localhost", "127.0.0.1"))
                spec.update(key=pem, cert=pem)
            process = await self.suite.start("fuzzingserver", spec)
            try:
                gateway = await new_gateway(world) if variant else None

                async def one(path: str) -> list:
                    url, context, headers = base + path, None, {}
                    if gateway is not None:
                        url = f"{'wss' if tls else 'ws'}://localhost:{gateway.port}{address(url)}"
                        headers = {"X-API-Key": KEY}
                        context = world.authority.client() if tls else None
                    return await asyncio.wait_for(echo_client(url, context, headers), CASE_S)

                count = await until_it_answers(lambda: one("/getCaseCount"), process)
                for number in range(1, int(json.loads(count[0])) + 1):
                    await one(f"/runCase?case={number}&agent=peer")
                await one("/updateReports?agent=peer")
                return self.suite.results(out)
            finally:
                await stop(process)
        finally:
            await world.close()


async def echo(connection) -> None:
    try:
        async for message in connection:
            await connection.send(message)
    except websockets.ConnectionClosed:
        pass


async def echo_client(url: str, context: ssl.SSLContext | None, headers: dict) -> list:
    """Sends everything back until the server closes; what came."""
    came = []
    try:
        async with connect(url, max_size=None, ping_interval=None, proxy=None, ssl=context, additional_headers=headers, close_timeout=5, open_timeout=20) as connection:
            async for message in connection:
                came.append(message if len(message) < 100 else None)
                if "/runCase" in url or "%2FrunCase" in url:
                    await connection.send(message)
    except websockets.ConnectionClosed:
        pass
    return came


async def until_it_answers(ask, process: asyncio.subprocess.Process):
    for _ in range(150):
        try:
            return await ask()
        except (OSError, websockets.InvalidHandshake):
            assert process.returncode is None, "Autobahn's server has ended"
            await asyncio.sleep(0.2)
    raise AssertionError("Autobahn's server does not answer")


def new_world(variant: Variant | None) -> World:
    tls, remote = (variant.tls, variant.remote) if variant else (False, False)
    return World(front_tls=tls, target_tls=tls, remote=remote)


async def new_gateway(world: World) -> Gateway:
    return await world.gateway(driver="auto", egress={"allow": ["127.0.0.0/8", "::1/128", "localhost"]})


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# --- comparing --------------------------------------------------------------------------------------------------------
@dataclass
class Outcome:
    cases: int
    same: int = 0
    races: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    different: dict[str, tuple[dict, dict]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def is_allowed(direct: dict, relayed: dict) -> bool:
    """A TCP connection that ends without a Close: the other end gets a Close 1001 or 1011 of ringway's."""
    return direct["remoteCloseCode"] is None and relayed["remoteCloseCode"] in (1001, 1011) and direct["received"] == relayed["received"]


@dataclass(frozen=True)
class Runs:
    """Runs of one direction, each in a process of its own: Autobahn's and the peer's side are one thread each."""

    pool: ProcessPoolExecutor
    kind: type
    suite: Suite

    async def run(self, cases: list[str], variant: Variant | None) -> dict[str, dict]:
        return await asyncio.get_running_loop().run_in_executor(self.pool, run_alone, self.kind, self.suite, cases, variant)


def run_alone(kind: type, suite: Suite, cases: list[str], variant: Variant | None) -> dict[str, dict]:
    return asyncio.run(kind(suite).run(cases, variant))


async def compare(runs: Runs, variant: Variant, direct: dict[str, dict], relayed: dict[str, dict]) -> Outcome:
    outcome = Outcome(len(direct))
    outcome.missing = sorted(set(direct) ^ set(relayed), key=in_order)
    differs = [case for case in direct if case in relayed and direct[case] != relayed[case]]
    outcome.same = sum(case in relayed and direct[case] == relayed[case] for case in direct)
    seen = {case: ([direct[case]], [relayed[case]]) for case in differs}
    for _ in range(AGAIN if differs else 0):
        for ways, found in zip((0, 1), await asyncio.gather(runs.run(differs, None), runs.run(differs, variant))):
            for case in differs:
                if case in found:
                    seen[case][ways].append(found[case])
    for case in sorted(differs, key=in_order):
        without, through = seen[case]
        if any(one in without for one in through):
            outcome.races.append(case)
        elif all(is_allowed(one, other) for one in without for other in through):
            outcome.allowed.append(case)
        else:
            outcome.different[case] = (without[0], through[0])
    return outcome


def in_order(case: str) -> list[int]:
    return [int(part) for part in case.split(".")]


def verdicts(found: dict[str, dict]) -> str:
    counts = Counter(case["behavior"] for case in found.values())
    return ", ".join(f"{count} {name.lower()}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


# --- the document -----------------------------------------------------------------------------------------------------
def document(rows: list[tuple[str, str, Variant, Outcome]]) -> str:
    import importlib.metadata

    suite = next(line for line in (ROOT / "tests" / "conformance" / "requirements.txt").read_text().splitlines() if line.startswith("autobahntestsuite"))
    lines = [
        "# Conformance, shown from outside",
        "",
        "Autobahn's test suite sees no difference between a peer and the same peer behind ringway. Each case was run direct and",
        "through ringway, in both directions, and all that the suite saw was compared: its verdicts, messages, frames, the",
        "Close with its code and reason, and how the connection ended.",
        "",
        f"Made by `tests/conformance/run` on {datetime.date.today()}: {suite.replace('==', ' ')}, and websockets {importlib.metadata.version('websockets')} with Python {platform.python_version()} as the peer under test. [tests/conformance](../tests/conformance/README.md) says how.",
        "",
        "| direction | through ringway | cases | same | races of the peers | allowed | different |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for direction, _, variant, outcome in rows:
        lines.append(f"| {direction} | {variant.title} | {outcome.cases} | {outcome.same} | {len(outcome.races)} | {len(outcome.allowed)} | {len(outcome.different) + len(outcome.missing)} |")
    lines += [
        "",
        "- **Races of the peers**: the case differs from run to run without ringway too, and what was seen through it was seen",
        "  without it.",
        "- **Allowed**: a TCP connection that ends without a Close becomes a Close 1001 or 1011 of ringway's",
        "  ([how sessions end](protocol.md#how-sessions-end)).",
        "",
        "What the suite makes of the peers themselves:",
        "",
    ]
    for direction in dict.fromkeys(row[0] for row in rows):
        lines.append(f"- {direction}: {next(row[1] for row in rows if row[0] == direction)}")
    named = [(direction, variant, outcome) for direction, _, variant, outcome in rows if outcome.races or outcome.allowed or outcome.different or outcome.missing]
    if named:
        lines += ["", "By name:", ""]
    for direction, variant, outcome in named:
        parts = [("races", outcome.races), ("allowed", outcome.allowed), ("different", list(outcome.different)), ("only one way", outcome.missing)]
        told = "; ".join(f"{name}: {', '.join(cases)}" for name, cases in parts if cases)
        lines.append(f"- {direction}, {variant.title}: {told}")
    return "\n".join(lines) + "\n"


async def main() -> int:
    parser = argparse.ArgumentParser(prog="tests/conformance/run", description="Autobahn's test suite through ringway and without it, and what differs.")
    parser.add_argument("--suite", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--cases", help="these cases, with commas between them; * for all that begin so")
    parser.add_argument("--quick", action="store_true", help="a few cases of each section")
    parser.add_argument("--variants", default=",".join(variant.name for variant in VARIANTS), help="ways through ringway: plain, tls, plain2, tls2")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--directions", default="client,server", help="which of the two Autobahn is: client, server")
    arguments = parser.parse_args()
    chosen = arguments.variants.split(",")
    if unknown := [name for name in chosen if name not in [variant.name for variant in VARIANTS]]:
        parser.error(f"there is no variant {unknown[0]!r}")
    directions = {"client": FuzzingClient, "server": FuzzingServer}
    if unknown := [name for name in arguments.directions.split(",") if name not in directions]:
        parser.error(f"there is no direction {unknown[0]!r}: client, server")
    cases = arguments.cases.split(",") if arguments.cases else QUICK if arguments.quick else ["*"]
    folder = Path(tempfile.mkdtemp(prefix="ringway-autobahn-"))
    print(f"ringway: {binary()}", flush=True)
    try:
        suite = Suite(arguments.suite, folder)
        variants = [variant for variant in VARIANTS if variant.name in chosen]
        with ProcessPoolExecutor(arguments.jobs) as pool:
            async with asyncio.TaskGroup() as group:
                runs = [group.create_task(both_ways(Runs(pool, directions[name], suite), cases, variants)) for name in arguments.directions.split(",")]
            rows = [row for run in runs for row in run.result()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if cases == ["*"] and len(rows) == 2 * len(VARIANTS):
        DOCUMENT.write_text(document(rows))
        print(f"written: {DOCUMENT.relative_to(ROOT)}")
    return 1 if any(outcome.different or outcome.missing for *_, outcome in rows) else 0


async def both_ways(runs: Runs, cases: list[str], variants: list[Variant]) -> list[tuple[str, str, Variant, Outcome]]:
    rows = []
    direct, *relayed = await asyncio.gather(*(runs.run(cases, variant) for variant in (None, *variants)))
    assert direct, "Autobahn has run no case"
    print(f"{runs.kind.name}: {len(direct)} cases direct: {verdicts(direct)}", flush=True)
    for variant, through in zip(variants, relayed):
        outcome = await compare(runs, variant, direct, through)
        rows.append((runs.kind.name, verdicts(direct), variant, outcome))
        print(f"{runs.kind.name}, {variant.title}: {outcome.same} the same, {len(outcome.races)} races, {len(outcome.allowed)} allowed, {len(outcome.different) + len(outcome.missing)} different", flush=True)
        for case, (without, through) in outcome.different.items():
            print(f"    {case}:")
            for what in SEEN:
                if without[what] != through[what]:
                    print(f"      {what}: {str(without[what])[:300]} direct, {str(through[what])[:300]} through ringway")
        for case in outcome.missing:
            print(f"    {case}: has a result one way only")
    return rows


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
