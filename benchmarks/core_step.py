"""How many messages a second go through a core's `step`, and where the time goes.

    python -m benchmarks.core_step --out benchmarks/results/core_step.json

Three cores in one process, without disk, network or clock: every batch is durable at once, every message arrives at
once, so nothing is measured but the protocol. A row is a load: `entries` commands proposed at a time, `pipelined` of
such rounds before messages are delivered, payloads of `bytes`. `messages_per_s` counts calls of `step` alone and the
time within them; `all_messages_per_s` takes the time of everything that a host must do with a core beside it (propose,
tick, ready, persisted, applied). The profile is cProfile's of one more run of the first row: it slows calls down, so
its shares count, its seconds do not.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import machine, results
from consensus.core.interface import AnyMessage, Configuration, HardState, Ready, Role, SnapshotMeta
from consensus.core.raft import RaftCore
from consensus.core.raft.config import RaftConfig
from consensus.storage.checksum import crc32c

LOADS = ((1, 1, 100), (1, 32, 100), (32, 1, 100), (32, 8, 100), (1, 1, 4096))
"""(entries proposed at a time, rounds on their way, bytes of a command)."""
REPLICAS = (1, 2, 3)
COMPACT_ENTRIES = 10_000
PROFILE_LINES = 15
PROFILE_SHARE_MIN = 0.01


class Cores:
    """Three replicas of a group, and the messages between them."""

    def __init__(self) -> None:
        configuration = Configuration(REPLICAS)
        self.cores = {
            replica: RaftCore(
                group=1,
                replica=replica,
                configuration=configuration,
                hard_state=HardState(),
                entries=(),
                snapshot=None,
                incarnation=1,
                config=RaftConfig(),
                random=random.Random(replica),
                forgetful=False,
            )
            for replica in REPLICAS
        }
        self.configuration = configuration
        self.queue: deque[AnyMessage] = deque()
        self.messages = 0
        self.step_ns = 0
        self.committed = 0
        self.timed: Callable[[], int] = time.perf_counter_ns

    def elect(self) -> RaftCore:
        while True:
            for core in self.cores.values():
                core.tick(10)
                self.take(core)
            self.deliver()
            for core in self.cores.values():
                if core.status().role is Role.LEADER and core.status().ready_to_serve:
                    return core

    def take(self, core: RaftCore) -> None:
        """What a host does with a core that has something ready; its disk is done at once."""
        while core.has_ready():
            ready: Ready = core.ready()
            self.queue.extend(ready.messages)
            if ready.persist_number:
                core.persisted(ready.persist_number)
            if ready.committed:
                core.applied(ready.committed[-1].index)
                if core.replica == REPLICAS[0]:
                    self.committed += len(ready.committed)

    def deliver(self) -> None:
        """Until nobody has anything to say."""
        while self.queue:
            batch, self.queue = self.queue, deque()
            touched = set()
            for message in batch:
                core = self.cores[message.to]
                began = self.timed()
                core.step(message)
                self.step_ns += self.timed() - began
                touched.add(message.to)
            self.messages += len(batch)
            for replica in sorted(touched):
                self.take(self.cores[replica])

    def compact(self) -> None:
        for core in self.cores.values():
            status = core.status()
            index = status.applied_index
            entry = core.entry(index)
            if entry is not None and index - status.first_index > COMPACT_ENTRIES:
                core.compact(SnapshotMeta(index, entry.term, self.configuration, f"s{index}"), keep_from=index)


def run(entries: int, pipelined: int, size: int, seconds: float) -> dict[str, Any]:
    cores = Cores()
    leader = cores.elect()
    payload = bytes(size)
    crc = crc32c(payload)
    cores.messages = cores.step_ns = cores.committed = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(pipelined):
            for _ in range(entries):
                leader.propose(payload, crc)
            cores.take(leader)
        cores.deliver()
        cores.compact()
    wall_s = time.perf_counter() - began
    return {
        "entries_at_a_time": entries,
        "pipelined": pipelined,
        "bytes": size,
        "seconds": round(wall_s, 2),
        "messages": cores.messages,
        "messages_per_s": round(cores.messages / (cores.step_ns / 1e9)),
        "all_messages_per_s": round(cores.messages / wall_s),
        "step_us": round(cores.step_ns / 1000 / max(cores.messages, 1), 2),
        "commits_per_s": round(cores.committed / wall_s),
    }


def profiled(seconds: float) -> list[dict[str, Any]]:
    """Functions by their own time, busiest first."""
    profiler = cProfile.Profile()
    profiler.runcall(run, *LOADS[0], seconds)
    stats = pstats.Stats(profiler)
    table: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = stats.stats  # type: ignore[attr-defined]
    total = sum(row[2] for row in table.values()) or 1.0
    found = []
    for (file, line, name), (_, calls, own_s, _, _) in sorted(table.items(), key=lambda item: -item[1][2]):
        if own_s / total < PROFILE_SHARE_MIN or len(found) >= PROFILE_LINES:
            break
        where = f"{Path(file).name}:{line} {name}" if line else name
        found.append({"share": round(own_s / total, 4), "calls": calls, "where": where})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", default=3.0, type=float, help="measured, a row")
    parser.add_argument("--out", metavar="FILE", help="write the JSON here too")
    options = parser.parse_args()
    rows = []
    for load in LOADS:
        rows.append(run(*load, options.seconds))
        print(f"{rows[-1]}", file=sys.stderr, flush=True)
    results.write(
        {
            "benchmark": "core_step",
            "command": machine.command("core_step"),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "rows": rows,
            "profile": profiled(options.seconds),
        },
        options.out,
    )


if __name__ == "__main__":
    main()
