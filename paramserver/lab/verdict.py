"""What a fault run proves, and what it does not: one run with faults against one of the same seed without.

Owns the counting. Invariants: pure (no clock, no process, no network), so that a test can hand it a corrupted result;
whatever is missing counts against the run; a fault without load before, during and after it makes the run invalid.

* lost: acknowledged (block, step) updates that a final version does not cover, on the worst replica.
* duplicated: updates a replica has beyond the steps that were pushed, on the worst replica of each block. An update
  that was applied twice without a version of its own would show as other bits than the reference's.
* bit-identical: every replica of every block of both runs has one version, one digest and the same weights, byte by
  byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paramserver.lab import records
from paramserver.lab.final import FinalState
from paramserver.lab.records import Record

KILL_LEADER = "kill_leader"
KILL_WORKER = "kill_worker"
DIFFERENCES_SHOWN_MAX = 8


@dataclass(frozen=True, slots=True)
class Fault:
    """What was done to the cluster. `node` is a server's number, of a killed worker its rank. `restored_s` is when the
    process was started again, `until_s` when the next thing was done to the cluster (None: nothing after it)."""

    kind: str
    node: int
    group: int | None
    at_s: float
    restored_s: float
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run: what its workers wrote down and what the servers hold at the end."""

    records: tuple[Record, ...]
    final: FinalState
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Requirements:
    """`steps` each rank had to make; `margin` steps before and after each fault; `replicas` of each block."""

    steps: int
    margin: int
    accuracy_min: float
    replicas: int


@dataclass(frozen=True, slots=True)
class FaultFigure:
    kind: str
    node: int
    stall_ms: float


@dataclass(frozen=True, slots=True)
class Verdict:
    accuracy: float
    steps: int
    steps_per_s: float
    faults: tuple[FaultFigure, ...]
    lost: int
    duplicated: int
    bit_identical: bool
    problems: tuple[str, ...]
    """Why the run failed or proves nothing; empty when all is well."""

    @property
    def passed(self) -> bool:
        return not self.problems

    @property
    def exit_code(self) -> int:
        return 0 if self.passed else 1

    def as_json(self) -> dict[str, Any]:
        """Exactly the keys that are documented; a figure there is no value for is null."""
        return {
            "accuracy": _finite(self.accuracy, 4),
            "steps": self.steps,
            "steps_per_s": _finite(self.steps_per_s, 1),
            "faults": [
                {"kind": fault.kind, "node": fault.node, "stall_ms": _finite(fault.stall_ms, 1)}
                for fault in self.faults
            ],
            "lost": self.lost,
            "duplicated": self.duplicated,
            "bit_identical": self.bit_identical,
        }


def judge(faulted: RunResult, reference: RunResult, requirements: Requirements) -> Verdict:
    differences = compare(faulted.final, reference.final, requirements)
    accuracy = _accuracy(faulted.records)
    steps = min((record.last_step + 1 for record in faulted.records), default=0)
    lost = count_lost(faulted)
    duplicated = count_duplicated(faulted)
    figures = tuple(
        FaultFigure(fault.kind, fault.node, records.stall_ms(faulted.records, fault.at_s, fault.until_s))
        for fault in faulted.faults
    )
    problems = [*invalid(faulted, requirements)]
    if steps != requirements.steps:
        problems.append(f"{steps} steps were made, not {requirements.steps}")
    if not accuracy >= requirements.accuracy_min:  # NaN is not enough either
        problems.append(f"accuracy {accuracy:.2%} is below {requirements.accuracy_min:.0%}")
    if lost:
        problems.append(f"{lost} acknowledged updates are lost")
    if duplicated:
        problems.append(f"{duplicated} updates were applied twice")
    if differences:
        shown = differences[:DIFFERENCES_SHOWN_MAX]
        more = [f"... and {len(differences) - len(shown)} more differences"] if len(differences) > len(shown) else []
        problems += ["the final state differs from the run without faults", *shown, *more]
    digests = {record.end.digest for run in (faulted, reference) for record in run.records if record.end is not None}
    if len(digests) > 1:
        problems.append(f"workers ended with {len(digests)} different model digests")
    return Verdict(
        accuracy=accuracy,
        steps=steps,
        steps_per_s=records.steps_per_s(faulted.records),
        faults=figures,
        lost=lost,
        duplicated=duplicated,
        bit_identical=not differences and len(digests) == 1,
        problems=tuple(problems),
    )


def compare(one: FinalState, other: FinalState, requirements: Requirements) -> list[str]:
    """All differences between the replicas of both runs; empty when every bit is the same."""
    differences = []
    if not one.blocks:
        return ["no replica holds any block"]
    for key in sorted({*one.blocks, *other.blocks}, key=lambda key: (key.group, key.block)):
        copies = [
            (run, node, copy)
            for run, state in (("with faults", one), ("without", other))
            for node, copy in state.blocks.get(key, {}).items()
        ]
        name = f"block {key.block} of group {key.group}"
        for run, state in (("with faults", one), ("without", other)):
            if len(state.blocks.get(key, {})) != requirements.replicas:
                differences.append(
                    f"{name}, run {run}: {len(state.blocks.get(key, {}))} replicas of {requirements.replicas}"
                )
        first = copies[-1][2]  # of the reference, where it has one
        for run, node, copy in copies:
            if copy.version != first.version:
                differences.append(f"{name} on node {node}, run {run}: version {copy.version}, not {first.version}")
            elif copy.weights != first.weights or not copy.weights:
                differences.append(f"{name} on node {node}, run {run}: {_unequal(copy.weights, first.weights)}")
            elif copy.digest != first.digest:
                differences.append(f"{name} on node {node}, run {run}: digest {copy.digest}, not {first.digest}")
    return differences


def count_lost(run: RunResult) -> int:
    """A completed step was acknowledged for every block; version v of a block holds the steps below v."""
    acknowledged = {step.step for record in run.records for step in record.steps}
    lost = 0
    for copies in run.final.blocks.values():
        version = min((copy.version for copy in copies.values()), default=0)
        lost += sum(1 for step in acknowledged if step >= version)
    return lost if run.final.blocks else len(acknowledged)


def count_duplicated(run: RunResult) -> int:
    pushed = max((record.last_step + 1 for record in run.records), default=0)
    return sum(
        max(0, max((copy.version for copy in copies.values()), default=0) - pushed)
        for copies in run.final.blocks.values()
    )


def invalid(run: RunResult, requirements: Requirements) -> list[str]:
    """A fault run counts only if enough load ran before, during and after each fault."""
    problems = []
    for number, fault in enumerate(run.faults):
        since = run.faults[number - 1].at_s if number else -math.inf
        following = run.faults[number + 1].at_s if number + 1 < len(run.faults) else math.inf
        before = min((records.steps_between(record, since, fault.at_s) for record in run.records), default=0)
        after = min((records.steps_between(record, fault.at_s, following) for record in run.records), default=0)
        name = f"invalid run: {fault.kind} {fault.node}"
        if before < requirements.margin:
            problems.append(f"{name}: {before} steps before it, not {requirements.margin}")
        if after < requirements.margin:
            problems.append(f"{name}: {after} steps after it, not {requirements.margin}")
        if not _load_during(run, fault):
            problems.append(f"{name}: no load while it lasted")
    return problems


def _load_during(run: RunResult, fault: Fault) -> bool:
    """A dead server: steps were completed while it was down. A dead worker: no step can be completed without it; the
    others were in the middle of training, that is, completed a step after its kill that was not their first."""
    if fault.kind == KILL_LEADER:
        return all(records.steps_between(record, fault.at_s, fault.restored_s) > 0 for record in run.records)
    others = [record for record in run.records if record.rank != fault.node]
    return all(
        records.steps_between(record, -math.inf, fault.at_s) > 0
        and records.steps_between(record, fault.at_s, math.inf) > 0
        for record in others
    )


def _accuracy(some: Sequence[Record]) -> float:
    """The lowest any worker ended with; NaN when one did not end."""
    found = [record.end.accuracy if record.end is not None else None for record in some]
    known = [accuracy for accuracy in found if accuracy is not None]
    return min(known) if found and len(known) == len(found) else math.nan


def _unequal(one: bytes, other: bytes) -> str:
    if len(one) != len(other):
        return f"{len(one)} bytes, not {len(other)}"
    count = sum(1 for at in range(0, len(one), 4) if one[at : at + 4] != other[at : at + 4])
    return f"{count} of {len(one) // 4} weights differ" if one else "no weights were served"


def _finite(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
