"""The demo: train on real digits, kill a leader and a worker in the middle, and compare the bits with an undisturbed
run.

Owns the order of events. Invariants: a fault is injected when training has come to a stated step, never after a stated
time; what is judged is read from the servers and from what workers wrote down, never from what this module believes.
Must not know how it is shown: a `Reporter` does.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from paramserver.lab import records, status
from paramserver.lab.cluster import CATALOGUE_GROUP, Cluster, ServerOptions, WorkerOptions, WorkerProcess
from paramserver.lab.errors import DeadlinePassed, LabError
from paramserver.lab.final import find_model, read_final
from paramserver.lab.records import Step, Tail, Wait
from paramserver.lab.verdict import KILL_LEADER, KILL_WORKER, Fault, Requirements, RunResult, Verdict, judge

SERVERS = 3
WORKERS = 2
POLL_S = 0.02
LEADERS_EVERY_S = 0.5
MODEL_NAME = "digits"


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`model`: the network of `paramserver worker --model`. `margin`: steps that must lie before and after each fault.
    `timeout_s`: of one of the two runs. `codec`: of gradients, of weights that come back, and of sums in the log.
    `folder`: where logs, records and data folders stay (None: temporary, removed when all is well)."""

    steps: int = 600
    margin: int = 100
    seed: int = 1
    accuracy_min: float = 0.95
    timeout_s: float = 120.0
    folder: Path | None = None
    model: str = "mlp"
    codec: str = "fp32"
    worker_flags: tuple[str, ...] = ()
    server_flags: tuple[str, ...] = ()

    def validate(self) -> list[str]:
        problems = []
        if self.margin < 1:
            problems.append(f"--margin {self.margin}: expected at least 1")
        if self.steps < 5 * self.margin:
            problems.append(f"--steps {self.steps}: two faults with {self.margin} steps before and after each need "
                            f"at least {5 * self.margin}")  # fmt: skip
        if not 0 <= self.accuracy_min <= 1:
            problems.append(f"--accuracy-min {self.accuracy_min}: expected a number from 0 to 1")
        return problems

    @property
    def flags_of_workers(self) -> tuple[str, ...]:
        codecs = tuple(f"{flag}={self.codec}" for flag in ("--codec", "--weights-codec", "--log-codec"))
        return (f"--model={self.model}", *codecs, *self.worker_flags)

    @property
    def plan(self) -> Plan:
        """Fault steps in fifths, so that each has a fifth of the run before and after it, and then some."""
        fifth = self.steps // 5
        return Plan(kill_leader=fifth + 2, restart_server=2 * fifth, kill_worker=3 * fifth + 2)


@dataclass(frozen=True, slots=True)
class Plan:
    """Completed steps (of the slowest worker) at which something is done."""

    kill_leader: int
    restart_server: int
    kill_worker: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. `leaders`: group -> node; `down`: servers that were killed."""

    run: str
    step: int
    steps: int
    loss: float | None
    accuracy: float | None
    steps_per_s: float
    leaders: Mapping[int, int]
    down: tuple[int, ...]
    waiting: str = ""


class Reporter(Protocol):
    """How a run is shown."""

    def begins(self, run: str, cluster: Cluster) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def event(self, run: str, text: str) -> None:
        """Something happened: a fault, a new leader, a worker that waits."""

    def ended(self, run: str, result: RunResult) -> None: ...


class Silent:
    """A reporter that shows nothing."""

    def begins(self, run: str, cluster: Cluster) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        pass

    def event(self, run: str, text: str) -> None:
        pass

    def ended(self, run: str, result: RunResult) -> None:
        pass


@dataclass(frozen=True, slots=True)
class DemoOutcome:
    """Both runs and what they prove. `folder` still exists when the verdict is bad or it was asked for."""

    verdict: Verdict
    faulted: RunResult
    reference: RunResult
    folder: Path


def run_demo(
    options: DemoOptions,
    reporter: Reporter | None = None,
    tamper: Callable[[RunResult], RunResult] | None = None,
) -> DemoOutcome:
    """Both runs, one after the other. `tamper` may change the result of the first before it is judged: a test shows
    with it that one wrong bit is noticed."""
    reporter = reporter or Silent()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="paramserver-demo-"))
    try:
        faulted = train(options, options.plan, folder / "faulted", "with faults", reporter)
        reference = train(options, None, folder / "reference", "reference", reporter)
    except LabError as error:
        hint = error.hint or f"logs are in {folder}"
        raise LabError(error.cause, hint) from error
    except KeyboardInterrupt:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    outcome = conclude(options, faulted, reference, folder, tamper)
    if options.folder is None and outcome.verdict.passed:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def conclude(
    options: DemoOptions,
    faulted: RunResult,
    reference: RunResult,
    folder: Path,
    tamper: Callable[[RunResult], RunResult] | None = None,
) -> DemoOutcome:
    """From two results to a verdict; the exit code follows from it alone."""
    if tamper is not None:
        faulted = tamper(faulted)
    requirements = Requirements(
        steps=options.steps, margin=options.margin, accuracy_min=options.accuracy_min, replicas=SERVERS
    )
    return DemoOutcome(judge(faulted, reference, requirements), faulted, reference, folder)


def train(options: DemoOptions, plan: Plan | None, folder: Path, run: str, reporter: Reporter) -> RunResult:
    """One run of three servers and two workers; faults by `plan`."""

    with Cluster(SERVERS, folder=folder, options=ServerOptions(flags=options.server_flags)) as cluster:
        reporter.begins(run, cluster)
        watch = _Watch(cluster, options, run, reporter)
        watch.start_workers()
        faults = _inject(watch, plan) if plan is not None else ()
        watch.until_ended()
        cluster.await_ready(cluster.servers)  # the one that was killed may still be reading its log
        final = read_final(cluster, MODEL_NAME, options.steps)
        some = tuple(records.read(worker.record, rank) for rank, worker in sorted(cluster.workers.items()))
        result = RunResult(some, final, faults)
        reporter.ended(run, result)
        return result


def _inject(watch: _Watch, plan: Plan) -> tuple[Fault, ...]:
    cluster = watch.cluster
    watch.until_step(plan.kill_leader)
    group, leader = watch.data_leader()
    watch.say(f"kill -9 of server {leader}, which leads group {group}")
    killed_s = cluster.kill(leader)
    watch.until_new_leader(group, leader)
    watch.until_step(plan.restart_server)
    watch.say(f"server {leader} is started again")
    restarted_s = time.monotonic()
    cluster.start_server(leader, wait=False)

    watch.until_step(plan.kill_worker)
    rank = WORKERS - 1
    watch.say(f"kill -9 of worker {rank}, and the same command again")
    worker = cluster.workers[rank]
    worker_killed_s = worker.kill()
    worker_restarted_s = time.monotonic()
    worker.start()
    return (
        Fault(KILL_LEADER, leader, group, killed_s, restarted_s, until_s=restarted_s),
        Fault(KILL_WORKER, rank, None, worker_killed_s, worker_restarted_s),
    )


@dataclass(slots=True)
class _Rank:
    process: WorkerProcess
    tail: Tail
    step: int = -1
    loss: float | None = None
    accuracy: float | None = None
    times: list[float] = field(default_factory=list)


class _Watch:
    """Follows the workers' records and the leaders of a run, and tells the reporter."""

    def __init__(self, cluster: Cluster, options: DemoOptions, run: str, reporter: Reporter) -> None:
        self.cluster = cluster
        self._options = options
        self._run = run
        self._reporter = reporter
        self._ranks: dict[int, _Rank] = {}
        self._leaders: dict[int, int] = {}
        self._leaders_asked_s = 0.0
        self._waiting: tuple[float, str] = (0.0, "")
        self._deadline_s = time.monotonic() + options.timeout_s

    def start_workers(self) -> None:
        for rank in range(WORKERS):
            process = self.cluster.start_worker(
                WorkerOptions(
                    rank=rank,
                    ranks=WORKERS,
                    steps=self._options.steps,
                    model_name=MODEL_NAME,
                    seed=self._options.seed,
                    device="numpy",
                    flags=self._options.flags_of_workers,
                )
            )
            self._ranks[rank] = _Rank(process, Tail(process.record))

    def say(self, text: str) -> None:
        self._reporter.event(self._run, f"step {self.step}: {text}")

    @property
    def step(self) -> int:
        """Steps completed by the slowest worker."""
        return min(rank.step + 1 for rank in self._ranks.values())

    def until_step(self, step: int) -> None:
        while self.step < step:
            if not self._look():
                raise LabError(
                    f"training ended at step {self.step}, before step {step}",
                    "was there an earlier run in this folder?",
                )

    def until_ended(self) -> None:
        while self._look():
            pass
        self.cluster.await_workers(1.0)

    def data_leader(self) -> tuple[int, int]:
        """The first group that holds a piece of the model, and who leads it."""
        model = find_model(self.cluster.statuses(), MODEL_NAME)
        group = min(shard.group for shard in model.shards if shard.group != CATALOGUE_GROUP and shard.blocks)
        return group, self.cluster.leader_of(group)

    def until_new_leader(self, group: int, old: int) -> None:
        killed_s = time.monotonic()
        while True:
            leader = status.leader_of(self.cluster.statuses(), group)
            if leader is not None and leader.node != old:
                passed_ms = (time.monotonic() - killed_s) * 1000
                self.say(f"server {leader.node} leads group {group} now (seen after {passed_ms:.0f} ms)")
                return
            self._look()

    # --- one look

    def _look(self) -> bool:
        """Read what came, show it, wait a moment. False when all workers have ended."""
        if time.monotonic() > self._deadline_s:
            raise DeadlinePassed(
                f"training stands at step {self.step} of {self._options.steps} after {self._options.timeout_s:g} s",
                f"logs are in {self.cluster.folder}",
            )
        running = any(rank.process.running for rank in self._ranks.values())
        for number, rank in self._ranks.items():
            self._read(number, rank)
        for rank in self._ranks.values():
            if rank.process.code not in (None, 0):
                raise LabError(
                    f"{rank.process.name} ended with {rank.process.code}",
                    f"log {rank.process.log}; its last words:\n{rank.process.last_words()}",
                )
        now = time.monotonic()
        if now - self._leaders_asked_s > LEADERS_EVERY_S:
            self._leaders_asked_s = now
            self._leaders = status.leaders(self.cluster.statuses(timeout_s=LEADERS_EVERY_S))
        self._reporter.progress(self._progress(now))
        time.sleep(POLL_S)
        return running

    def _read(self, number: int, rank: _Rank) -> None:
        for event in rank.tail.read():
            if isinstance(event, Step):
                rank.step = max(rank.step, event.step)
                rank.loss = event.loss if event.loss is not None else rank.loss
                rank.accuracy = event.accuracy if event.accuracy is not None else rank.accuracy
                rank.times = [*rank.times[-50:], event.time_s]
                self._waiting = (0.0, "")
            elif isinstance(event, Wait):
                self._waiting = (event.time_s, event.why)
                self._reporter.event(self._run, f"worker {number} waits: {event.why}")

    def _progress(self, now: float) -> Progress:
        slowest = min(self._ranks.values(), key=lambda rank: rank.step)
        first = self._ranks[0]
        recent = [at for at in slowest.times if now - at < 5.0]
        rate = (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 and recent[-1] > recent[0] else 0.0
        return Progress(
            run=self._run,
            step=self.step,
            steps=self._options.steps,
            loss=first.loss,
            accuracy=first.accuracy,
            steps_per_s=rate,
            leaders=self._leaders,
            down=tuple(node for node, server in self.cluster.servers.items() if not server.running),
            waiting=self._waiting[1],
        )
