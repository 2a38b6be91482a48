"""What a process holds besides its sessions: looked at before them and again behind them."""
from __future__ import annotations

from .http import samples, until
from .process import Gateway, Process

KEPT = 64
"""The most buffers, and the most pipes, that a worker keeps although nobody needs them."""


def lent(found: dict[str, float]) -> float:
    """Buffers and pipes that are in sessions' hands."""
    return found['ringway_relay_buffers{state="lent"}'] + found['ringway_relay_pipes{state="lent"}']


class Ledger:
    """Of a gateway, and of its agent where that is a process of its own."""

    def __init__(self, gateway: Gateway):
        agent = getattr(gateway, "agent", None)
        self.processes: list[Process] = [gateway] if agent is None else [gateway, agent]
        self.files: list[int] = []

    @classmethod
    async def open(cls, gateway: Gateway) -> "Ledger":
        """Taken when no session is there, but one was, so that all that is made once has been made."""
        ledger = cls(gateway)
        for process in ledger.processes:
            await until(lambda: samples(process), lambda found: found["ringway_sessions_active"] == 0, "end of sessions")
            # The fewest of some looks: one of the admin listener's own connections may still be among them.
            ledger.files.append(min([await files(process) for _ in range(5)]))
        return ledger

    async def lent(self) -> float:
        """Of all processes together."""
        return sum([lent(await samples(process)) for process in self.processes])

    async def balanced(self, workers: int = 2, patience: float = 30.0) -> None:
        """No session is left, no buffer or pipe is lent, as many files are open as before, and what is kept is bounded."""
        for process, before in zip(self.processes, self.files):
            what = f"process {process.pid}"
            found = await until(lambda: samples(process), lambda found: found["ringway_sessions_active"] == 0, f"end of sessions in {what}", patience)
            await until(lambda: files(process), lambda count: count <= before, f"end of files in {what}, {before} of them before", patience)
            found = await until(lambda: samples(process), lambda found: lent(found) == 0, f"return of what is lent in {what}", patience)
            for kind in ("buffers", "pipes"):
                assert found[f'ringway_relay_{kind}{{state="free"}}'] <= KEPT * workers, found


async def files(process: Process) -> int:
    """Files that are open, but for the pipes of the pool: those are counted by themselves."""
    found = await samples(process)
    pipes = sum(value for series, value in found.items() if series.startswith("ringway_relay_pipes{"))
    return process.fds() - 2 * int(pipes)
