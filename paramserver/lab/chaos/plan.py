"""What is to be done to which cluster: a plan file or a built-in suite, and what a seed makes of it.

A plan file, JSON or TOML:

    version = 1
    margin = 10                  # steps before, during and after each fault
    rest_s = [0.6, 1.2]          # of load between two faults, drawn
    [[faults]]
    kind = "kill_leader"
    repetitions = 50
    hold_s = [0.4, 0.8]          # any range of the kind may be narrowed

Owns the file's form and all drawing. Invariants: all problems at once; the same plan and seed draw the same faults in
the same order, whatever happens to them. Must not know: clusters.
"""

from __future__ import annotations

import difflib
import json
import math
import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from paramserver.lab.chaos.kinds import Draw, Kind, Need, all_kinds

VERSION = 1
FAULTS_MAX = 100_000
REPETITIONS_MAX = 10_000
SECONDS_MAX = 3600.0
LIMITS: Mapping[str, tuple[float, float]] = {
    "hold_s": (0.0, SECONDS_MAX),
    "p": (0.0, 1.0),
    "ms": (0.0, 60_000.0),
    "jitter_ms": (0.0, 60_000.0),
    "mb_per_s": (0.001, 100_000.0),
    "slow_ms": (0.0, 60_000.0),
    "stall_s": (0.0, 60.0),
    "hours": (-80_000.0, 80_000.0),
    "transfers": (1.0, 1000.0),
    "moves": (1.0, 7.0),
    "kills": (0.0, 1.0),
}
"""What each range may hold: what servers and links take."""
Range = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """`ranges`: narrower than the kind's own."""

    kind: str
    repetitions: int = 1
    ranges: Mapping[str, Range] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`baseline_s`: load at the beginning of each stage, before the first fault. `digits_ranks`: workers of the digits.
    Paces in ms: of counting, of reads, of reads at each node. `links`: network faults' proxies in every stage (None:
    where they are needed)."""

    name: str = "plan"
    nodes: int = 3
    margin: int = 10
    rest_s: Range = (0.6, 1.2)
    baseline_s: float = 3.0
    digits_ranks: int = 2
    counting_pace_ms: float = 100.0
    reads_pace_ms: float = 100.0
    node_reads_pace_ms: float = 250.0
    links: bool | None = None
    hang_s: float = 15.0
    """Without a step of every worker for so long, though a majority is well: a hang."""
    together: bool = False
    """All kinds on one cluster, mixed; else those that need more of a cluster than others run on one of their own."""
    faults: tuple[Entry, ...] = ()

    def as_file(self) -> dict[str, Any]:
        """As a plan file has it."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        plain["faults"] = [
            {"kind": one.kind, "repetitions": one.repetitions, **{key: list(own) for key, own in one.ranges.items()}}
            for one in self.faults
        ]
        return {"version": VERSION, **{name: value for name, value in plain.items() if value is not None}}


@dataclass(frozen=True, slots=True)
class Planned:
    kind: Kind
    repetition: int
    draw: Draw
    hold_s: float
    rest_s: float


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A cluster and the faults it goes through, in this order."""

    name: str
    needs: frozenset[Need]
    faults: tuple[Planned, ...]


class PlanError(ValueError):
    """`problems`: all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


# --- reading


def load(path: Path) -> Plan:
    """Raises PlanError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise PlanError([f"plan {path}: {error.strerror}"]) from None
    try:
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text.decode())
    except RecursionError:
        raise PlanError([f"plan {path}: nested too deep"]) from None
    except ValueError as error:
        raise PlanError([f"plan {path}: not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}"]) from None
    return parse(data, path.stem)


def parse(data: Any, name: str = "plan") -> Plan:
    """Raises PlanError with everything that is wrong."""
    if not isinstance(data, dict):
        raise PlanError(["a plan is an object with version and faults"])
    problems: list[str] = []
    if data.get("version") != VERSION:
        problems.append(f"version: expected {VERSION}, received {data.get('version')!r}")
    fields: dict[str, Any] = {"name": name}
    known = {"version": None, "faults": None, "name": None, **_FIELDS}
    for key, value in data.items():
        if key not in known:
            problems.append(f"unknown key {key!r}{_did_you_mean(key, known)}")
        elif key == "name":
            fields[key] = str(value)
        elif (check := known[key]) is not None:
            _take(fields, key, value, check, problems)
    entries = data.get("faults")
    if not isinstance(entries, list) or not entries:
        problems.append("faults: expected a list with at least one")
        entries = []
    parsed = [entry for at, one in enumerate(entries) if (entry := _entry(one, f"faults[{at}]", problems)) is not None]
    if sum(entry.repetitions for entry in parsed) > FAULTS_MAX:
        problems.append(f"faults: more than {FAULTS_MAX} in all")
    if problems:
        raise PlanError(problems)
    return Plan(faults=tuple(parsed), **fields)


def _entry(data: Any, path: str, problems: list[str]) -> Entry | None:
    kinds = all_kinds()
    if not isinstance(data, dict):
        problems.append(f"{path}: expected an object with a kind")
        return None
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in kinds:
        problems.append(f"{path}.kind: {kind!r} is no kind of fault{_did_you_mean(str(kind), kinds)}")
        return None
    repetitions: dict[str, Any] = {}
    ranges: dict[str, Range] = {}
    for key, value in data.items():
        where = f"{path}.{key}"
        if key == "kind":
            continue
        if key == "repetitions":
            _take(repetitions, key, value, _Whole(1, REPETITIONS_MAX), problems, where)
        elif key in kinds[kind].ranges:
            _take(ranges, key, value, _Between(*LIMITS[key]), problems, where)
        else:
            near = _did_you_mean(key, ["repetitions", *kinds[kind].ranges])
            problems.append(f"{where}: unknown key{near}; {kind} has {', '.join(kinds[kind].ranges) or 'none'}")
    return Entry(kind=kind, ranges=ranges, **repetitions)


@dataclass(frozen=True, slots=True)
class _Whole:
    low: int
    high: int

    def __call__(self, value: Any) -> Any:
        if type(value) is not int or not self.low <= value <= self.high:
            raise ValueError(f"expected a whole number from {self.low} to {self.high}")
        return value


@dataclass(frozen=True, slots=True)
class _Number:
    low: float
    high: float

    def __call__(self, value: Any) -> Any:
        if type(value) not in (int, float) or not math.isfinite(value) or not self.low <= value <= self.high:
            raise ValueError(f"expected a number from {self.low:g} to {self.high:g}")
        return float(value)


@dataclass(frozen=True, slots=True)
class _Between:
    low: float
    high: float

    def __call__(self, value: Any) -> Any:
        both = value if isinstance(value, list) else [value, value]
        if len(both) != 2:
            raise ValueError("expected a number, or [from, to]")
        number = _Number(self.low, self.high)
        low, high = number(both[0]), number(both[1])
        if low > high:
            raise ValueError(f"expected [from, to], received {low:g} above {high:g}")
        return (low, high)


class _Truth:
    def __call__(self, value: Any) -> Any:
        if type(value) is not bool:
            raise ValueError("expected true or false")
        return value


_FIELDS: Mapping[str, Any] = {
    "nodes": _Whole(3, 7),
    "margin": _Whole(1, 10_000),
    "rest_s": _Between(0.0, SECONDS_MAX),
    "baseline_s": _Number(0.0, SECONDS_MAX),
    "digits_ranks": _Whole(1, 8),
    "counting_pace_ms": _Number(0.0, 10_000.0),
    "reads_pace_ms": _Number(1.0, 10_000.0),
    "node_reads_pace_ms": _Number(1.0, 10_000.0),
    "hang_s": _Number(1.0, SECONDS_MAX),
    "links": _Truth(),
    "together": _Truth(),
}


def _take(
    fields: dict[str, Any], key: str, value: Any, check: Any, problems: list[str], where: str = ""
) -> None:  # fmt: skip
    try:
        fields[key] = check(value)
    except ValueError as error:
        problems.append(f"{where or key}: {error}, received {value!r}")


def _did_you_mean(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


# --- drawing


def narrowed(plan: Plan, kinds: Sequence[str], repetitions: int | None) -> Plan:
    """Only those kinds, so many times each. Raises PlanError for a kind that there is not, in the plan or at all."""
    known = all_kinds()
    unknown = [f"{kind!r} is no kind of fault{_did_you_mean(kind, known)}" for kind in kinds if kind not in known]
    if unknown:
        raise PlanError(unknown)
    entries = plan.faults
    if kinds:
        have = {entry.kind: entry for entry in plan.faults}
        entries = tuple(have.get(kind, Entry(kind=kind)) for kind in dict.fromkeys(kinds))
    if repetitions is not None:
        entries = tuple(replace(entry, repetitions=repetitions) for entry in entries)
    return replace(plan, faults=entries)


def drawn(plan: Plan, seed: int) -> tuple[StagePlan, ...]:
    """Stages in order, those that need least first. Kinds that can't be run are left out."""
    kinds = all_kinds()
    stages: dict[frozenset[Need], list[Planned]] = {}
    everything = frozenset(need for entry in plan.faults for need in kinds[entry.kind].needs)
    for entry in plan.faults:
        kind = kinds[entry.kind]
        if kind.why_not:
            continue
        needs = everything if plan.together else kind.needs
        if plan.links is not None:
            needs = (needs | {Need.LINKS}) if plan.links or Need.LINKS in kind.needs else needs
        for repetition in range(entry.repetitions):
            # Of its own name and number: what else is in the plan changes nothing for it.
            chance = random.Random(f"{seed}/{kind.name}/{repetition}")
            values = {
                name: round(chance.uniform(*entry.ranges.get(name, usual)), 4) for name, usual in kind.ranges.items()
            }
            draw = Draw(chance.getrandbits(32), values)
            rest_s = round(chance.uniform(*plan.rest_s), 4)
            stages.setdefault(needs, []).append(Planned(kind, repetition, draw, values["hold_s"], rest_s))
    found = []
    for needs in sorted(stages, key=lambda some: (len(some), sorted(some))):
        random.Random(f"{seed}/order/{sorted(needs)}").shuffle(stages[needs])
        found.append(StagePlan(_name(needs), needs, tuple(stages[needs])))
    return tuple(found)


def skipped(plan: Plan) -> dict[str, str]:
    kinds = all_kinds()
    return {entry.kind: why for entry in plan.faults if (why := kinds[entry.kind].why_not)}


def _name(needs: frozenset[Need]) -> str:
    return " and ".join({Need.LINKS: "network", Need.SEAMS: "disks"}[need] for need in sorted(needs)) or "processes"
