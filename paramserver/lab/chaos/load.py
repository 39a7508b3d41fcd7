"""The checked load of a stage: its processes, and what they wrote down so far.

Owns starting and restarting workers, and reading their records while they run. Invariant: what is counted was written
by the workers themselves. Must not know: faults.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from paramserver.lab.chaos import counting
from paramserver.lab.chaos.lines import LineTail
from paramserver.lab.chaos.observed import Digests, ErrorSeen, Observed, Read, Refusal, Worker
from paramserver.lab.chaos.plan import Plan
from paramserver.lab.cluster import Cluster, WorkerOptions, record_file
from paramserver.lab.errors import LabError
from paramserver.lab.processes import Child

DIGITS = "digits"
COUNTING = counting.MODEL
READS = "reads"
STEPS_FOR_EVER = 10**9
DIGESTS_MS = 400.0
POLL_S = 0.02
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(slots=True)
class _Rank:
    load: str
    rank: int
    process: Child
    tail: LineTail
    seen: Worker


@dataclass(slots=True)
class Load:
    """`seed`: of the digits."""

    cluster: Cluster
    plan: Plan
    seed: int
    ranks: list[_Rank] = field(default_factory=list)
    reader: Child | None = None
    seen: Observed = field(default_factory=Observed)
    _reads: LineTail | None = None

    # --- processes

    def start(self) -> None:
        for rank in range(self.plan.digits_ranks):
            process = self._start_digits(rank)
            self._add(DIGITS, rank, process, record_file(self.cluster.folder, rank))
        for rank in range(counting.RANKS):
            self._add(COUNTING, rank, self._start_counting(rank), self._counted(rank))
        self.tell_nodes()
        self.reader = self.cluster.start_child(
            "reader",
            [
                *_module("reader"), "--servers", self.cluster.endpoints, "--nodes", str(self._nodes),
                "--record", str(self._reader_record), "--counted", *map(str, map(self._counted, range(counting.RANKS))),
                "--digits", DIGITS, "--pace-ms", str(self.plan.reads_pace_ms),
                "--raw-pace-ms", str(self.plan.node_reads_pace_ms), "--digests-ms", str(DIGESTS_MS),
            ],
            ONE_THREAD,
        )  # fmt: skip
        self._reads = LineTail(self._reader_record)

    def restart(self, load: str, rank: int) -> None:
        """After a kill: the same session and record, and the nodes there are now."""
        found = self.find(load, rank)
        found.process = self._start_digits(rank) if load == DIGITS else self._start_counting(rank)

    def find(self, load: str, rank: int) -> _Rank:
        return next(one for one in self.ranks if (one.load, one.rank) == (load, rank))

    def stop(self) -> None:
        for one in self.ranks:
            one.process.kill()
        if self.reader is not None:
            self.reader.kill()
        self.look()

    def tell_nodes(self) -> None:
        """The reader asks each of them."""
        new = self._nodes.with_suffix(".new")
        new.write_text(json.dumps(self.cluster.addresses))
        new.rename(self._nodes)

    def _start_digits(self, rank: int) -> Child:
        return self.cluster.start_worker(
            WorkerOptions(
                rank=rank, ranks=self.plan.digits_ranks, steps=STEPS_FOR_EVER, model_name=DIGITS, seed=self.seed,
                device="numpy",
            )
        )  # fmt: skip

    def _start_counting(self, rank: int) -> Child:
        line = [*_module("counter"), "--servers", self.cluster.endpoints, "--rank", str(rank)]
        line += ["--session", str(self.cluster.folder / f"counting-{rank}.session")]
        line += ["--record", str(self._counted(rank)), "--pace-ms", str(self.plan.counting_pace_ms)]
        return self.cluster.start_child(f"counting {rank}", line, ONE_THREAD)

    def _add(self, load: str, rank: int, process: Child, record: Path) -> None:
        self.ranks.append(_Rank(load, rank, process, LineTail(record), self.seen.worker(load, rank)))

    def _counted(self, rank: int) -> Path:
        return self.cluster.folder / f"counting-{rank}.record"

    @property
    def _nodes(self) -> Path:
        return self.cluster.folder / "nodes.json"

    @property
    def _reader_record(self) -> Path:
        return self.cluster.folder / "reader.record"

    # --- what was written

    def look(self) -> Observed:
        """Everything until now."""
        for one in self.ranks:
            for line in one.tail.read():
                match line["event"]:
                    case "step":
                        one.seen.completed(
                            line["step"], line["time"], line.get("missing", 0), line.get("extra", 0)
                        )  # fmt: skip
                    case "push":
                        one.seen.pushed = max(one.seen.pushed, line["step"] + 1)
                    case "error":
                        one.seen.errors.append(ErrorSeen(line["time"], line["name"], line["cause"]))
        for line in self._reads.read() if self._reads is not None else ():
            match line["event"]:
                case "read":
                    self.seen.reads.append(
                        Read(line["begun"], line["time"], line["node"], line["behind"], line["missing"], line["extra"])
                    )
                case "refused":
                    self.seen.refusals.append(Refusal(line["begun"], line["time"], line["node"], line["name"]))
                case "digests":
                    self.seen.digests.append(Digests(line["time"], tuple(line["versions"]), tuple(line["digests"])))
        return self.seen

    def await_steps(self, count: int, since_s: float, timeout_s: float) -> bool:
        """Until every rank has completed so many steps since then; False when that took too long. Raises as `check`."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.check()
            self.look()
            if all(one.seen.count(since_s) >= count for one in self.ranks):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)

    def check(self) -> None:
        """Raises LabError for a process that ended and was not killed."""
        for one in self.ranks:
            if not one.process.running and one.process.code != -9:
                raise LabError(
                    f"{one.load} rank {one.rank} ended with {one.process.code}",
                    f"log {one.process.log}; its last words:\n{one.process.last_words()}",
                )
        if self.reader is not None and not self.reader.running and self.reader.code != -9:
            raise LabError(f"the reader ended with {self.reader.code}", self.reader.last_words())


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"paramserver.lab.chaos.{name}"]
