"""Runs Autobahn's fuzzing peers against an echo server and an echo client, direct and through ringway, and compares.

What is compared of each case is all that the fuzzing peer saw and thought of the other end. A case that differs is run
again, both ways, before it counts: with some cases the peers themselves race, and differ from run to run. Then all that
was seen through ringway must have been seen without it. What such a race hangs on is how TCP cuts the bytes, so they are
cut at random there.
"""
from __future__ import annotations

import argparse
import asyncio
import ctypes
import datetime
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import ssl
import sys
import tempfile
from collections import Counter
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
AGAIN = 16
"""How often at most a case that differs is run again, each way; without ringway every other time over `Cuts`."""
SEEN = [
    "behavior", "behaviorClose", "result", "resultClose", "received", "wasClean", "wasNotCleanReason", "closedByMe", "failedByMe", "droppedByMe",
    "localCloseCode", "localCloseReason", "remoteCloseCode", "remoteCloseReason", "rxFrameStats", "txFrameStats",
    "wasOpenHandshakeTimeout", "wasCloseHandshakeTimeout", "wasServerConnectionDropTimeout",
]
"""What a report says of a case, as it stands there. Left out is what a clock, a random number or TCP's segments decide."""
OF_THE_END = {
    "behaviorClose", "resultClose", "wasClean", "wasNotCleanReason", "closedByMe", "failedByMe", "droppedByMe", "localCloseCode", "localCloseReason",
    "remoteCloseCode", "remoteCloseReason", "wasCloseHandshakeTimeout", "wasServerConnectionDropTimeout",
}
OURS = [(1001, "Client disconnected"), (1011, "Target connection lost")]
"""What an end gets where the other one's TCP ends without a Close (docs/protocol.md, "How sessions end")."""
RUN_S, CASE_S, END_S = 3 * 3600, 600, 30


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
        with (folder / f"{mode}.log").open("wb") as log:
            return await asyncio.create_subprocess_exec(
                self.python, "-u", "-m", "autobahntestsuite.wstest", "--mode", mode, "--spec", str(file), "--webport", "0",
                stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL, env=env,
            )

    def results(self, folder: Path, mode: str) -> dict[str, dict]:
        """What was seen in each case, by its name; nothing of a case without a result."""
        chosen = re.search(r"^Cases = (\[.*\])$", (folder / f"{mode}.log").read_text(errors="replace"), re.MULTILINE)
        assert chosen, f"Autobahn has not begun:\n{log_of(folder, mode)}"
        found = {name: {} for name in re.findall(r"'([\d.]+)'", chosen[1])}
        assert found, "Autobahn has no such cases"
        for file in folder.glob("*_case_*.json"):
            case = json.loads(file.read_text())
            found[case["id"]] = seen(case)
        return found


def log_of(folder: Path, mode: str) -> str:
    return (folder / f"{mode}.log").read_text(errors="replace")[-2000:]


LATE = {"late": True}


def seen(case: dict) -> dict:
    """What of a report is compared."""
    if re.match(r"(Case did not finish|Did not receive message) within \d+ seconds", case["result"] or ""):
        # How far it had come by the suite's own time limit is a matter of the machine.
        return LATE
    traffic = case["trafficStats"] or {}
    return {
        **{name: case[name] for name in SEEN},
        # Extensions are agreed on end to end, and compressed messages are of as many bytes.
        "offered": extensions(case["httpRequest"]),
        "agreed": extensions(case["httpResponse"]),
        "traffic": {name: traffic[name] for name in sorted(traffic) if re.search("AppLevel|OctetsWebSocketLevel|Frames$|Messages$", name)},
    }


def extensions(head: str | None) -> list[str]:
    return re.findall(r"^sec-websocket-extensions: *(.*?)\r?$", head or "", re.IGNORECASE | re.MULTILINE)


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

    async def run(self, cases: list[str], variant: Variant | None, cuts: bool) -> dict[str, dict]:
        world = new_world(variant)
        try:
            tls = world.authority.server("localhost", "127.0.0.1") if variant and variant.tls else None
            async with serve(echo, "127.0.0.1", 0, max_size=None, ping_interval=None, close_timeout=5, ssl=tls) as server:
                port = server.sockets[0].getsockname()[1]
                if cuts:
                    port = await world.stack.enter_async_context(Cuts(port))
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
                assert process.returncode == 0, f"Autobahn's client has failed:\n{log_of(out, 'fuzzingclient')}"
                return self.suite.results(out, "fuzzingclient")
        finally:
            await world.close()


class FuzzingServer:
    """Autobahn is the target, and an echo client of Python's websockets the client."""

    name = "A client, and Autobahn's server"

    def __init__(self, suite: Suite):
        self.suite = suite

    async def run(self, cases: list[str], variant: Variant | None, cuts: bool) -> dict[str, dict]:
        world = new_world(variant)
        try:
            port, tls = world.stack.enter_context(reserved_port()).getsockname()[1], variant is not None and variant.tls
            base = f"{'wss' if tls else 'ws'}://localhost:{port}"
            # Autobahn's server insists on its own port in Host.
            over = {"host": "127.0.0.1", "port": await world.stack.enter_async_context(Cuts(port))} if cuts else {}
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
                    return await asyncio.wait_for(echo_client(url, context, headers, over), CASE_S)

                count = await until_it_answers(lambda: one("/getCaseCount"), process)
                for number in range(1, int(json.loads(count[0])) + 1):
                    try:
                        await one(f"/runCase?case={number}&agent=peer")
                    except (OSError, TimeoutError, websockets.InvalidHandshake) as error:
                        # Its result is compared like any other, and none counts too.
                        print(f"{self.name}, {variant.title if variant else 'direct'}: case {number} of {cases}: {error or 'took too long'}", file=sys.stderr, flush=True)
                await one("/updateReports?agent=peer")
                return self.suite.results(out, "fuzzingserver")
            finally:
                await stop(process)
        finally:
            await world.close()


class Cuts:
    """A TCP connection in the place of one, which knows no WebSocket: the same bytes, cut elsewhere and a moment apart."""

    def __init__(self, port: int):
        self.there = port

    async def __aenter__(self) -> int:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def __aexit__(self, *_) -> None:
        self.server.close()

    async def serve(self, reader, writer) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.there)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(self.copy(reader, back), self.copy(there, writer))
        for end in writer, back:
            end.close()

    async def copy(self, source, sink) -> None:
        try:
            while data := await source.read(1 << 16):
                # Often near the end, between a large message and the small frames behind it.
                at = sorted(len(data) - 1 - random.randrange(random.choice([len(data), min(len(data), 64)])) for _ in range(random.choice([0, 1, 4])))
                for begin, end in zip([0, *at], [*at, len(data)]):
                    sink.write(data[begin:end])
                    await sink.drain()
                    await asyncio.sleep(random.choice([0, 0.0005, 0.003]))
            sink.write_eof()
        except OSError:
            sink.transport.abort()


async def echo(connection) -> None:
    try:
        async for message in connection:
            await connection.send(message)
    except websockets.ConnectionClosed:
        pass


async def echo_client(url: str, context: ssl.SSLContext | None, headers: dict, over: dict) -> list:
    """Sends everything back until the server closes; what came. `over`: the address to dial in place of that in `url`."""
    came = []
    try:
        async with connect(url, max_size=None, ping_interval=None, proxy=None, ssl=context, additional_headers=headers, close_timeout=5, open_timeout=20, **over) as connection:
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


def reserved_port() -> socket.socket:
    """A port of Autobahn's, which cannot be told to take any. As long as this is open nobody else is given it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock


# --- comparing --------------------------------------------------------------------------------------------------------
@dataclass
class Outcome:
    cases: int
    same: int = 0
    races: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    """The suite's own time limit passed, both ways and each time: nothing was compared."""
    different: dict[str, tuple[list[dict], dict]] = field(default_factory=dict)
    """What was seen without ringway, and what was seen only through it."""


def is_allowed(direct: dict, relayed: dict) -> bool:
    """A TCP connection that ends without a Close: the other end gets ringway's Close 1001 or 1011. Nothing else differs."""
    if not direct or not relayed or LATE in (direct, relayed) or direct["remoteCloseCode"] is not None or (relayed["remoteCloseCode"], relayed["remoteCloseReason"]) not in OURS:
        return False
    return without_end(direct) == without_end(relayed)


def without_end(case: dict) -> dict:
    kept = {name: value for name, value in case.items() if name not in OF_THE_END}
    for stats in "rxFrameStats", "txFrameStats":
        kept[stats] = {opcode: count for opcode, count in (case[stats] or {}).items() if opcode != "8"}
    return kept


def only_relayed(direct: list[dict], relayed: list[dict]) -> dict | None:
    """What was seen through ringway, not without it, and is not allowed. That time ran out says nothing if it did not
    each time."""
    in_time = [one for one in relayed if one != LATE] or relayed
    return next((one for one in in_time if not any(one == other or is_allowed(other, one) for other in direct)), None)


@dataclass(frozen=True)
class Runs:
    """Runs of one direction, each a process of its own: Autobahn's and the peer's side are one thread each."""

    gate: asyncio.Semaphore
    direction: str
    suite: Suite

    async def run(self, cases: list[str], variant: Variant | None, cuts: bool = False) -> dict[str, dict]:
        asked = {"cuts": cuts, "direction": self.direction, "cases": cases, "variant": variant and variant.name, "suite": self.suite.python, "folder": str(self.suite.folder)}
        async with self.gate:
            return await in_a_process([sys.executable, __file__, "--one-run", json.dumps(asked)], RUN_S + 2 * END_S)


async def in_a_process(words: list[str], seconds: float) -> dict:
    """The JSON that a program of ours prints. It leads a process group, of which nothing is left behind."""
    child = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True)
    try:
        output, _ = await asyncio.wait_for(child.communicate(), seconds)
    finally:
        if child.returncode is None:
            child.terminate()
            try:
                await asyncio.wait_for(child.wait(), END_S)
            except TimeoutError:
                pass
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        await child.wait()
    assert child.returncode == 0, f"a run has failed, with {child.returncode}"
    return json.loads(output)


async def one_run(asked: dict) -> None:
    """The other side of `Runs.run`."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: whoever asked is killed, and nobody waits for this one
    if os.getppid() == 1:
        return
    suite = Suite(asked["suite"], Path(asked["folder"]))
    variant = next((variant for variant in VARIANTS if variant.name == asked["variant"]), None)
    async with asyncio.timeout(RUN_S):
        found = await DIRECTIONS[asked["direction"]](suite).run(asked["cases"], variant, asked["cuts"])
    print(json.dumps(found))


async def compare(runs: Runs, variant: Variant, direct: dict[str, dict], relayed: dict[str, dict]) -> Outcome:
    outcome = Outcome(len(direct))
    assert set(direct) == set(relayed), "Autobahn has chosen other cases"
    differs = sorted((case for case in direct if direct[case] != relayed[case] or direct[case] in ({}, LATE)), key=in_order)
    outcome.same = len(direct) - len(differs)
    found = {case: ([direct[case]], [relayed[case]]) for case in differs}

    def unsolved() -> list[str]:
        # A case without a result counts as nothing else than a difference.
        return [case for case, (without, through) in found.items() if only_relayed(without, through) is not None or {} in through or through[-1] == LATE]

    for turn in range(AGAIN):
        if not (again := unsolved()):
            break
        more = await asyncio.gather(runs.run(again, None, cuts=turn % 2 == 0), runs.run(again, variant))
        for case in again:
            for known, new in zip(found[case], more):
                known.append(new[case])
    left = unsolved()
    for case, (without, through) in found.items():
        if all(one == LATE for one in without + through):
            outcome.late.append(case)
        elif case in left:
            outcome.different[case] = (without, only_relayed(without, through) or {})
        elif all(one in without or one == LATE for one in through):
            outcome.races.append(case)
        else:
            outcome.allowed.append(case)
    return outcome


def in_order(case: str) -> list[int]:
    return [int(part) for part in case.split(".")]


def verdicts(found: dict[str, dict]) -> str:
    counts = Counter("out of time" if case == LATE else case.get("behavior", "without a result") for case in found.values())
    return ", ".join(f"{count} {name.lower()}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


# --- the document -----------------------------------------------------------------------------------------------------
def document(rows: list[tuple[str, str, Variant, Outcome]], cases: list[str]) -> str:
    import importlib.metadata

    suite = next(line for line in (ROOT / "tests" / "conformance" / "requirements.txt").read_text().splitlines() if line.startswith("autobahntestsuite"))
    different = sum(len(outcome.different) for *_, outcome in rows)
    chosen = [] if cases == ["*"] else ["", f"Not all cases: {', '.join(cases)}."]
    lines = [
        "# Conformance, shown from outside",
        "",
        f"Autobahn's test suite sees {'no difference' if not different else f'{different} differences'} between a peer and the same peer behind ringway. Each case was run direct and",
        "through ringway, in both directions, and all that the suite saw was compared: its verdicts, messages, frames, the",
        "extensions that were agreed on, the bytes of compressed messages, the Close with its code and reason, and how the",
        "connection ended.",
        *chosen,
        "",
        f"Made by `tests/conformance/run` on {datetime.date.today()}: {suite.replace('==', ' ')}, and websockets {importlib.metadata.version('websockets')} with Python {platform.python_version()} as the peer under test. [tests/conformance](../tests/conformance/README.md) says how.",
        "",
        "| direction | through ringway | cases | same | races of the peers | allowed | out of time | different |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for direction, _, variant, outcome in rows:
        lines.append(f"| {direction} | {variant.title} | {outcome.cases} | {outcome.same} | {len(outcome.races)} | {len(outcome.allowed)} | {len(outcome.late)} | {len(outcome.different)} |")
    if left := [variant.title for variant in VARIANTS if variant not in [row[2] for row in rows]]:
        lines += ["", f"Not run: {'; '.join(left)}."]
    lines += [
        "",
        "- **Races of the peers**: the case differs from run to run without ringway too, and all that was seen through it was",
        "  seen without it.",
        "- **Allowed**: a TCP connection that ends without a Close becomes a Close 1001 or 1011 of ringway's",
        "  ([how sessions end](protocol.md#how-sessions-end)).",
        "- **Out of time**: the suite's own time limit passed in each run, with ringway and without it, so nothing was compared.",
        "",
        "What the suite makes of the peers themselves:",
        "",
    ]
    for direction in dict.fromkeys(row[0] for row in rows):
        lines.append(f"- {direction}: {next(row[1] for row in rows if row[0] == direction)}")
    named = [(direction, variant, outcome) for direction, _, variant, outcome in rows if outcome.races or outcome.allowed or outcome.late or outcome.different]
    if named:
        lines += ["", "By name:", ""]
    for direction, variant, outcome in named:
        parts = [("races", outcome.races), ("allowed", outcome.allowed), ("out of time", outcome.late), ("different", list(outcome.different))]
        told = "; ".join(f"{name}: {', '.join(cases)}" for name, cases in parts if cases)
        lines.append(f"- {direction}, {variant.title}: {told}")
    return "\n".join(lines) + "\n"


DIRECTIONS = {"client": FuzzingClient, "server": FuzzingServer}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/conformance/run", description="Autobahn's test suite through ringway and without it, and what differs.")
    parser.add_argument("--suite", help=argparse.SUPPRESS)
    parser.add_argument("--one-run", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--cases", help="these cases, with commas between them; * for all that begin so")
    parser.add_argument("--quick", action="store_true", help="a few cases of each section")
    parser.add_argument("--variants", default=",".join(variant.name for variant in VARIANTS), help="ways through ringway: plain, tls, plain2, tls2")
    parser.add_argument("--directions", default=",".join(DIRECTIONS), help="which of the two Autobahn is: client, server")
    parser.add_argument("--document", type=Path, help="where to write the outcome; without it docs/conformance.md, and only if all cases ran all ways")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    got = parser.parse_args()
    got.variants, got.directions = got.variants.split(","), got.directions.split(",")
    if unknown := [name for name in got.variants if name not in [variant.name for variant in VARIANTS]]:
        parser.error(f"there is no variant {unknown[0]!r}")
    if unknown := [name for name in got.directions if name not in DIRECTIONS]:
        parser.error(f"there is no direction {unknown[0]!r}: client, server")
    if got.jobs < 1:
        parser.error(f"--jobs {got.jobs}: at least 1")
    return got


async def main(asked: argparse.Namespace) -> int:
    # What is ended by a signal ends what it has started.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    if asked.one_run:
        await one_run(asked.one_run)
        return 0
    cases = asked.cases.split(",") if asked.cases else QUICK if asked.quick else ["*"]
    folder = Path(tempfile.mkdtemp(prefix="ringway-autobahn-"))
    print(f"ringway: {binary()}", flush=True)
    try:
        suite, gate = Suite(asked.suite, folder), asyncio.Semaphore(asked.jobs)
        variants = [variant for variant in VARIANTS if variant.name in asked.variants]
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(both_ways(Runs(gate, name, suite), cases, variants)) for name in asked.directions]
        rows = [row for run in runs for row in run.result()]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    everything = cases == ["*"] and len(rows) == len(DIRECTIONS) * len(VARIANTS)
    if file := asked.document or (DOCUMENT if everything else None):
        file.write_text(document(rows, cases))
        print(f"written: {file}")
    return 1 if any(outcome.different for *_, outcome in rows) else 0


async def both_ways(runs: Runs, cases: list[str], variants: list[Variant]) -> list[tuple[str, str, Variant, Outcome]]:
    rows, name = [], DIRECTIONS[runs.direction].name
    direct, *relayed = await asyncio.gather(*(runs.run(cases, variant) for variant in (None, *variants)))
    print(f"{name}: {len(direct)} cases direct: {verdicts(direct)}", flush=True)
    for variant, through in zip(variants, relayed):
        outcome = await compare(runs, variant, direct, through)
        rows.append((name, verdicts(direct), variant, outcome))
        print(f"{name}, {variant.title}: {outcome.same} the same, {len(outcome.races)} races, {len(outcome.allowed)} allowed, {len(outcome.late)} out of time, {len(outcome.different)} different", flush=True)
        for kind, named in ("races", outcome.races), ("allowed", outcome.allowed), ("out of time", outcome.late):
            if named:
                print(f"    {kind}: {', '.join(named)}")
        for case, (without, through) in outcome.different.items():
            print(f"    {case}:" if through else f"    {case}: has no result")
            for what, got in through.items():
                if got not in (known := [one.get(what) for one in without]):
                    print(f"      {what}: {str(known[0])[:300]} direct, {str(got)[:300]} through ringway")
    return rows


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(arguments())))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"{Path(__file__).name}: ended by a signal", file=sys.stderr)
        sys.exit(130)
