"""From what a stage's load wrote down to what each fault cost, and whether the run passed.

Owns the arithmetic. Invariants: pure, so that a test can hand it a history with a lost update in it; what is missing
counts against the run; a fault without enough load around it is invalid, never fine; an update that is lost counts
once, at the fault after which it was first missed. Must not know: processes, files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paramserver.lab.chaos import figures
from paramserver.lab.chaos.kinds import During
from paramserver.lab.chaos.observed import Digests, Observed
from paramserver.lab.chaos.result import NO_ERROR, Around, Distribution, FaultResult, Growth, Stage, Summary

DURING_STEPS_MIN = 3
"""Of every worker while a fault is there that training goes on through."""
FLAT_MB_PER_MINUTE = 10.0
FLAT_DESCRIPTORS_PER_MINUTE = 2.0
PROBLEMS_SHOWN_MAX = 20

Reference = Mapping[int, Sequence[str]]
"""Version -> digest of each of the digits' blocks, without faults."""


@dataclass(slots=True, kw_only=True)
class Struck:
    """What the nemesis did and saw itself. Times are seconds of CLOCK_MONOTONIC; see `FaultResult` for their meaning.
    `commits` and `terms`: sums over all groups, at `before_s`, `start_s`, `end_s` and `until_s`."""

    kind: str
    repetition: int
    during: During
    follower: bool
    target: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    before_s: float
    start_s: float
    end_s: float
    healed_s: float
    until_s: float
    commits: tuple[int, int, int, int] = (0, 0, 0, 0)
    terms: tuple[int, int, int, int] = (0, 0, 0, 0)
    hang: bool = False
    problem: str = ""
    """It could not be injected or taken back as it should, or did not become whole again."""
    unseen: list[str] = field(default_factory=list)
    """Replicas that could not be looked at after it."""
    notes: list[str] = field(default_factory=list)
    acts: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Of a stage. `origin_s`: when the run began."""

    stage: str
    origin_s: float
    margin: int
    proxied: bool


def versions_wanted(observed: Observed) -> set[int]:
    return {version for look in observed.digests for version in look.versions}


def differing(looks: Iterable[Digests], reference: Reference) -> list[str]:
    """What differs from the faultless run; empty when every bit is the same."""
    found = []
    for look in looks:
        for block, version, digest in look.each():
            right = reference.get(version)
            if right is None or block >= len(right) or right[block] != digest:
                where = f" on node {look.node}" if look.node else ""
                found.append(f"block {block} of the digits at version {version}{where}: other bits than without faults")
    return found


def judge(
    struck: Sequence[Struck], observed: Observed, reference: Reference, conditions: Conditions
) -> tuple[FaultResult, ...]:
    """In the order in which they were injected. What is wrong between a fault and the next, such as while the next is
    prepared, counts at the next: nothing that was seen stays unjudged."""
    usual = undisturbed(struck, observed)
    found = []
    known = _Known()
    since_s = float("-inf")
    for one in struck:
        lost, duplicated = known.more(observed, one.until_s)
        found.append(_judge(one, observed, reference, conditions, usual, lost, duplicated, since_s))
        since_s = one.until_s
    return tuple(found)


def beyond(struck: Sequence[Struck], observed: Observed) -> tuple[int, int]:
    """Lost and doubled updates that were first seen after the last fault's time. What the last linearizable read of all
    still lacked counts, too: a stage that ended early has no last look at the replicas."""
    known = _Known()
    for one in struck:
        known.more(observed, one.until_s)
    last = max((read for read in observed.reads if read.node == 0), key=lambda read: read.ended_s, default=None)
    return known.more(observed, float("inf"), lacking=last.missing if last is not None else 0)


def stale_beyond(struck: Sequence[Struck], observed: Observed) -> int:
    """Stale reads after the last fault's time."""
    since_s = struck[-1].until_s if struck else float("-inf")
    return sum(read.stale for read in observed.reads if read.ended_s >= since_s)


def undisturbed(struck: Sequence[Struck], observed: Observed) -> dict[str, Distribution]:
    """Step times by load outside of all faults: what ended before the first, or between one that was healed and the
    next."""
    calm: list[tuple[float, float]] = []
    since = float("-inf")
    for one in struck:
        calm.append((since, one.start_s))
        since = one.healed_s
    calm.append((since, struck[-1].until_s if struck else float("inf")))
    found = {}
    for load in observed.loads():
        lengths = []
        for worker in observed.workers:
            if worker.load == load:
                pairs = figures.gaps(worker.times)
                lengths += [
                    (end - begin) * 1000
                    for begin, end in pairs
                    if any(start <= begin and end < limit for start, limit in calm)
                ]
        found[load] = figures.distribution(lengths)
    return found


class _Known:
    """Lost and doubled updates so far: each counts where it is first seen."""

    def __init__(self) -> None:
        self._lost = self._duplicated = 0

    def more(self, observed: Observed, until_s: float, *, lacking: int = 0) -> tuple[int, int]:
        looks = [*observed.replicas, *(look for worker in observed.workers for look in worker.counted)]
        missing = [look.missing for look in looks if look.time_s < until_s]
        extra = [look.extra for look in looks if look.time_s < until_s]
        extra += [read.extra for read in observed.reads if read.ended_s < until_s]
        lost, duplicated = max([lacking, *missing]), max(extra, default=0)
        new = max(0, lost - self._lost), max(0, duplicated - self._duplicated)
        self._lost, self._duplicated = max(lost, self._lost), max(duplicated, self._duplicated)
        return new


def _judge(
    one: Struck,
    observed: Observed,
    reference: Reference,
    conditions: Conditions,
    usual: Mapping[str, Distribution],
    lost: int,
    duplicated: int,
    since_s: float,
) -> FaultResult:
    workers = [worker.times for worker in observed.workers]
    reads = [read for read in observed.reads if one.start_s <= read.ended_s < one.until_s]
    looks = [look for look in observed.digests if one.start_s <= look.time_s < one.until_s]
    answered = [read.ended_s for read in observed.reads if read.node == 0]
    errors = [
        error.name
        for worker in observed.workers
        for error in worker.errors
        if one.start_s <= error.time_s < one.until_s
    ]
    steps = Around(
        before=_slowest(observed, one.before_s, one.start_s),
        during=_slowest(observed, one.start_s, one.end_s),
        after=_slowest(observed, one.healed_s, one.until_s),
    )
    p99_ms, ratio = _slower(one, observed, usual)
    parameters = dict(one.parameters)
    if one.acts:
        limits = [*one.acts[1:], one.end_s]
        stalls = [figures.stall_ms(workers, at, limit) for at, limit in zip(one.acts, limits, strict=True)]
        parameters["stalls_ms"] = [round(stall, 2) for stall in stalls if stall is not None]
    different = differing((look for look in observed.digests if since_s <= look.time_s < one.until_s), reference)
    stale = sum(read.stale for read in observed.reads if since_s <= read.ended_s < one.until_s)
    return FaultResult(
        kind=one.kind,
        repetition=one.repetition,
        stage=conditions.stage,
        target=one.target,
        parameters=parameters,
        start_ms=_ms(one.start_s, conditions),
        end_ms=_ms(one.end_s, conditions),
        healed_ms=_ms(one.healed_s, conditions),
        until_ms=_ms(one.until_s, conditions),
        invalid=_invalid(one, steps, reads=len(reads), looks=len(looks), margin=conditions.margin),
        error=errors[0] if errors else NO_ERROR,
        hang=one.hang,
        stall_ms=None if one.hang else _rounded(figures.stall_ms(workers, one.start_s, one.end_s)),
        recovery_stall_ms=_rounded(figures.stall_ms(workers, one.end_s, one.until_s, until_s=one.until_s)),
        steps=steps,
        commits=Around(
            before=one.commits[1] - one.commits[0],
            during=one.commits[2] - one.commits[1],
            after=one.commits[3] - one.commits[2],
        ),
        reads_unavailable_ms=round(
            figures.without_answer_ms(answered, one.start_s, one.until_s, figures.READS_LEAST_S), 1
        ),
        writes_unavailable_ms=round(
            max(
                (
                    figures.without_answer_ms(times, one.start_s, one.until_s, figures.WRITES_LEAST_S)
                    for times in workers
                ),
                default=0.0,
            ),
            1,
        ),
        lost=lost,
        duplicated=duplicated,
        stale_reads=stale,
        bit_identical=not different,
        leader_changes=one.terms[3] - one.terms[1],
        step_p99_ms=_rounded(p99_ms),
        step_p99_ratio=_rounded(ratio),
        proxied=conditions.proxied,
        notes=(*one.notes, *([one.problem] if one.problem else []), *different[:3]),
    )


def _invalid(one: Struck, steps: Around, *, reads: int, looks: int, margin: int) -> str:
    """Why it proves nothing. A hang proves enough."""
    if one.hang:
        return ""
    if one.problem:
        return f"not injected, or not taken back as it should be: {one.problem.splitlines()[0]}"
    reasons = [f"not seen: {what}" for what in one.unseen]
    if steps.before < margin:
        reasons.append(f"{steps.before} steps before it, not {margin}")
    if one.during is During.STEPS and steps.during < DURING_STEPS_MIN:
        reasons.append(f"{steps.during} steps while it was there, not {DURING_STEPS_MIN}")
    if steps.after < margin:
        reasons.append(f"{steps.after} steps after it, not {margin}")
    if not reads:
        reasons.append("no linearizable read ended well")
    if not looks:
        reasons.append("nobody looked at the digits' bits")
    return "; ".join(reasons)


def _slowest(observed: Observed, start_s: float, end_s: float) -> int:
    return min((worker.count(start_s, end_s) for worker in observed.workers), default=0)


def _slower(
    one: Struck, observed: Observed, usual: Mapping[str, Distribution]
) -> tuple[float | None, float | None]:  # fmt: skip
    """p99 of the steps around the fault, and its ratio to the undisturbed p99, both of the load that suffered most."""
    worst: tuple[float | None, float | None] = (None, None)
    for load in observed.loads():
        lengths = [
            length * 1000
            for worker in observed.workers
            if worker.load == load
            for length in figures.around(worker.times, one.start_s, one.healed_s)
        ]
        p99, known = figures.percentile(lengths, 0.99), usual[load].p99
        if p99 is not None and known and (worst[1] is None or p99 / known > worst[1]):
            worst = (p99, p99 / known)
    return worst


def _ms(time_s: float, conditions: Conditions) -> float:
    return round((time_s - conditions.origin_s) * 1000, 1)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


# --- the whole run


def summary(faults: Sequence[FaultResult], stages: Sequence[Stage]) -> Summary:
    valid = [one for one in faults if one.valid]
    stalls: dict[str, list[float]] = {}
    for one in valid:
        stalls.setdefault(one.kind, []).extend([one.stall_ms] if one.stall_ms is not None else [])
        if "stalls_ms" in one.parameters:
            stalls.setdefault("transfer", []).extend(one.parameters["stalls_ms"])
    return Summary(
        faults=len(valid),
        invalid=len(faults) - len(valid),
        lost=sum(one.lost for one in faults) + sum(stage.lost for stage in stages),
        duplicated=sum(one.duplicated for one in faults) + sum(stage.duplicated for stage in stages),
        stale_reads=sum(one.stale_reads for one in faults) + sum(stage.stale_reads for stage in stages),
        not_identical=sum(not one.bit_identical for one in faults) + sum(not stage.bit_identical for stage in stages),
        hangs=sum(one.hang for one in faults),
        stall_ms={kind: figures.distribution(values) for kind, values in sorted(stalls.items())},
    )


def problems(
    faults: Sequence[FaultResult],
    stages: Sequence[Stage],
    *,
    planned: int,
    growth: Sequence[Growth] = (),
    failed: Sequence[str] = (),
) -> tuple[str, ...]:
    """Why a check failed. `failed`: what the nemesis could not do or had to give up. An invalid fault is one, too."""
    found = list(failed)
    for one in faults:
        name = f"{one.kind} {one.repetition} ({one.target})"
        for wrong, said in (
            (one.invalid, f"invalid: {one.invalid}"),
            (one.hang, "hang: no progress after it was taken back"),
            (one.lost, f"{one.lost} acknowledged updates are lost"),
            (one.duplicated, f"{one.duplicated} updates were applied twice"),
            (one.stale_reads, f"{one.stale_reads} linearizable reads were stale"),
            (not one.bit_identical, "other bits than without faults"),
        ):
            if wrong:
                found.append(f"{name}: {said}")
    found += [f"end of stage {stage.name}: {what}" for stage in stages for what in stage.final]
    if len(faults) < planned:
        found.append(f"{planned - len(faults)} of {planned} faults were not injected")
    for one_growth in growth:
        found += grows(one_growth)
    return tuple(found)


def grows(one: Growth) -> list[str]:
    name = f"node {one.node}, start {one.incarnation}"
    found = []
    if one.rss_mb_per_minute is not None and one.rss_mb_per_minute > FLAT_MB_PER_MINUTE:
        found.append(f"{name}: memory grew by {one.rss_mb_per_minute} MB a minute")
    if one.descriptors_per_minute is not None and one.descriptors_per_minute > FLAT_DESCRIPTORS_PER_MINUTE:
        found.append(f"{name}: descriptors grew by {one.descriptors_per_minute} a minute")
    return found
