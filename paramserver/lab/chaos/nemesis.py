"""One stage: a cluster, its load, and the plan's faults one after the other.

Owns the order of events. Invariants: a fault is injected after enough steps and taken back after some more, however
long that takes, up to a bound; the next one waits until all is whole and steps were made again; whatever goes wrong
ends the stage and stays written down. Must not know: what the figures are, how anything is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from paramserver.lab import status
from paramserver.lab.chaos.growth import Sampler
from paramserver.lab.chaos.kinds import During, Need
from paramserver.lab.chaos.load import COUNTING, DIGITS, Load
from paramserver.lab.chaos.observed import Observed
from paramserver.lab.chaos.plan import Plan, Planned, StagePlan
from paramserver.lab.chaos.replicas import Replicas
from paramserver.lab.chaos.result import Growth
from paramserver.lab.chaos.scene import Scene
from paramserver.lab.chaos.verdict import DURING_STEPS_MIN, Struck
from paramserver.lab.cluster import Cluster, ServerOptions
from paramserver.lab.errors import LabError

SERVER_FLAGS = ("--snapshot-log-bytes-min", str(1 << 20), "--segment-bytes", str(8 << 20))
"""Snapshots and new segments come within seconds, so that faults meet them."""
FIRST_STEPS_S = 60.0
SETTLE_S = 30.0
Tell = Callable[[str], None]


@dataclass(slots=True)
class StageRun:
    """What came of a stage. `failed`: why it ended early; `final`: what was wrong at its end."""

    plan: StagePlan
    begun_s: float
    folder: Path
    ended_s: float = 0.0
    nodes: int = 0
    struck: list[Struck] = field(default_factory=list)
    seen: Observed = field(default_factory=Observed)
    final: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    growth: tuple[Growth, ...] = ()

    @property
    def proxied(self) -> bool:
        return Need.LINKS in self.plan.needs

    @property
    def seams(self) -> bool:
        return Need.SEAMS in self.plan.needs


def run_stage(
    plan: Plan,
    stage: StagePlan,
    faults: Iterable[Planned],
    *,
    seed: int,
    folder: Path,
    tell: Tell,
    struck: Callable[[Struck, StageRun], None] = lambda _one, _run: None,
    environment: dict[str, str] | None = None,
) -> StageRun:
    """`faults`: usually the stage's; a soak draws them without end. `struck` is told of each. Raises nothing but what
    ends the whole run (Ctrl-C, a defect)."""
    run = StageRun(stage, time.monotonic(), folder)
    options = ServerOptions(flags=SERVER_FLAGS, environment=environment or {})
    try:
        with Cluster(
            plan.nodes, folder=folder, options=options, links=run.proxied, faults=run.seams, seed=seed
        ) as cluster:
            run.nodes = plan.nodes
            tell(f"stage {stage.name}: {plan.nodes} servers{' behind a proxy' if run.proxied else ''}")
            load = Load(cluster, plan, seed)
            run.seen = load.seen
            sampler = Sampler(cluster)
            try:
                load.start()
                _Nemesis(plan, cluster, load, run, struck).go(faults)
            except LabError as error:
                run.failed.append(f"{error.cause} ({error.hint})" if error.hint else error.cause)
            finally:
                run.growth = sampler.stop()
                load.stop()
    except LabError as error:
        run.failed.append(f"{error.cause} ({error.hint})" if error.hint else error.cause)
    run.ended_s = time.monotonic()
    return run


class _Nemesis:
    def __init__(
        self, plan: Plan, cluster: Cluster, load: Load, run: StageRun, told: Callable[[Struck, StageRun], None]
    ) -> None:
        self._plan, self._cluster, self._load, self._run, self._told = plan, cluster, load, run, told
        self._replicas = Replicas(cluster, load)
        self._since_s = 0.0
        """Since when load counts as that before the next fault, and where the groups were then."""
        self._position = (0, 0)

    def go(self, faults: Iterable[Planned]) -> None:
        margin = self._plan.margin
        try:
            if not self._load.await_steps(1, 0.0, FIRST_STEPS_S):
                raise LabError(
                    f"no step within {FIRST_STEPS_S:g} s of the start", f"logs are in {self._cluster.folder}"
                )
            Scene(self._cluster, self._load).await_whole(SETTLE_S)
            self._mark()
            time.sleep(self._plan.baseline_s)
            self._load.await_steps(margin, self._since_s, self._plan.hang_s)
            for planned in faults:
                if not self._strike(planned):
                    return
            self._end()
        finally:
            self._replicas.close()

    def _mark(self) -> None:
        self._since_s = time.monotonic()
        self._position = self._where()

    def _where(self) -> tuple[int, int]:
        """Commits and terms, summed over all groups as far as anybody knows."""
        nodes = status.reached(self._cluster.statuses(timeout_s=1.0))
        commits: dict[int, int] = {}
        terms: dict[int, int] = {}
        for node in nodes:
            for state in node.groups:
                commits[state.group] = max(commits.get(state.group, 0), state.commit_index)
                terms[state.group] = max(terms.get(state.group, 0), state.term)
        return sum(commits.values()), sum(terms.values())

    def _strike(self, planned: Planned) -> bool:
        """Inject it, take it back, wait until all is whole. False: it is no use to go on."""
        kind = planned.kind
        scene = Scene(self._cluster, self._load, links=self._run.proxied, seams=self._run.seams)
        before_s, positions = self._since_s, [self._position]
        one = Struck(
            kind=kind.name, repetition=planned.repetition, during=kind.during, follower=kind.follower,
            parameters=dict(planned.draw.values), before_s=before_s, start_s=0.0, end_s=0.0, healed_s=0.0, until_s=0.0,
            notes=scene.notes, acts=scene.acts,
        )  # fmt: skip
        try:
            positions.append(self._where())
            injection = kind.inject(scene, planned.draw)
            one.start_s = time.monotonic()
            one.target = next(injection)
            one.start_s = scene.began_s or one.start_s
            self._hold(one, planned.hold_s)
            positions.append(self._where())
            one.end_s = time.monotonic()
            for _ in injection:
                raise RuntimeError(f"{kind.name} yields twice")
            if not one.hang:
                scene.await_whole(kind.recovers_s)
            self._mark()
            one.healed_s = self._since_s
            one.hang = one.hang or not self._load.await_steps(1, one.healed_s, self._plan.hang_s)
            if not one.hang:
                self._rest(one, planned.rest_s)
                one.unseen = self._replicas.look()
        except LabError as error:
            one.problem = f"{error.cause} ({error.hint})" if error.hint else error.cause
            self._run.failed.append(f"{kind.name} {planned.repetition} ({one.target or 'not injected'}): {one.problem}")
        self._load.look()
        positions += [self._where()] * (4 - len(positions))
        one.until_s = time.monotonic()
        one.start_s = one.start_s or one.until_s
        one.end_s = one.end_s or one.until_s
        one.healed_s = one.healed_s or one.until_s
        one.commits = tuple(commits for commits, _ in positions)  # type: ignore[assignment]
        one.terms = tuple(terms for _, terms in positions)  # type: ignore[assignment]
        self._run.struck.append(one)
        self._told(one, self._run)
        return not one.hang and (not one.problem or self._recovered(scene))

    def _recovered(self, scene: Scene) -> bool:
        """Whether the faults that are left may go on after one that could not be injected or taken back."""
        try:
            scene.heal_all()
            scene.await_whole(SETTLE_S)
        except LabError as error:
            self._run.failed.append(f"given up: {error.cause}")
            return False
        self._mark()
        return self._load.await_steps(self._plan.margin, self._since_s, self._plan.hang_s)

    def _hold(self, one: Struck, hold_s: float) -> None:
        time.sleep(max(0.0, one.start_s + hold_s - time.monotonic()))
        if one.during is During.STEPS:
            one.hang = not all(
                self._load.await_steps(count + 1, one.start_s, self._plan.hang_s) for count in range(DURING_STEPS_MIN)
            )
        else:
            self._load.check()

    def _rest(self, one: Struck, rest_s: float) -> None:
        """Load after it, which is the load before the next."""
        time.sleep(max(0.0, one.healed_s + rest_s - time.monotonic()))
        self._load.await_steps(self._plan.margin, one.healed_s, self._plan.hang_s)

    def _end(self) -> None:
        """No more load: every replica must come to the same, and hold what was acknowledged."""
        self._load.stop()
        scene = Scene(self._cluster, self._load)
        scene.await_whole(SETTLE_S)
        scene.until(self._equal, "all replicas to be at one version", SETTLE_S)
        self._run.final += self._replicas.look()

    def _equal(self) -> bool:
        answers = self._cluster.statuses(blocks=True)
        nodes = status.reached(answers)
        models = {model.model for node in nodes for model in node.models if model.name in (DIGITS, COUNTING)}
        for model in models:
            for copies in status.block_states(answers, model).values():
                if len({copy.version for copy in copies.values()}) > 1:
                    return False
                if len({copy.digest for copy in copies.values()}) > 1:
                    raise LabError("replicas show one version and different digests", str(copies))
        return bool(models)
