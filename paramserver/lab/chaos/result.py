"""What a chaos run found out: frozen values, and their JSON.

Owns the shape and its version. Invariants: a file of another format, with a key missing or unknown, is refused with the
path to it; what there is no figure for is null, never 0; times are milliseconds since the run began. Must not know:
clusters, how anything is measured, how it is shown.

    run = from_json(json.loads(Path("chaos.json").read_text()))
    for fault in run.faults: ...

A run goes through stages, a cluster each (a proxy between the nodes or not, disk and clock that can fail or not), and
in each through faults, one after the other under the same load.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1
BIN_MS = 20
"""Times of completed steps are rounded down to so much in the timeline."""
NO_ERROR = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """A count before, during and after a fault."""

    before: int
    during: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultResult:
    """One fault, one repetition. `start_ms` when it was injected, `end_ms` when it was taken back (a process started, a
    link healed), `healed_ms` when every replica was up and caught up again; `until_ms` the beginning of the next one.

    A figure of a fault is taken from `start_ms` to `until_ms`; `before` counts from `healed_ms` of the one before it,
    and what is lost, doubled, stale or differs counts from its `until_ms`, so that no look goes unjudged.
    """

    kind: str
    repetition: int
    stage: str
    target: str
    """Such as "node 2, leads group 1"."""
    parameters: Mapping[str, Any]
    """What the seed drew, and what became of it."""
    start_ms: float
    end_ms: float
    healed_ms: float
    until_ms: float
    invalid: str
    """Why it proves nothing; empty when it counts."""
    error: str
    """Name of the exception that a client saw, or "none"."""
    hang: bool
    """No progress within the bound after it was taken back."""
    stall_ms: float | None
    """RULES F1, of the worst worker."""
    steps: Around
    """Completed by the slowest worker of all loads."""
    commits: Around
    """Entries committed, all groups together."""
    reads_unavailable_ms: float
    writes_unavailable_ms: float
    lost: int
    duplicated: int
    stale_reads: int
    bit_identical: bool
    leader_changes: int
    step_p99_ms: float | None
    """Of steps that ended between `start_ms` and `until_ms`."""
    step_p99_ratio: float | None
    """To the same load's p99 while nothing was disturbed."""
    proxied: bool
    """Traffic between nodes went through our proxy."""
    recovery_stall_ms: float | None = None
    """The same from `end_ms` on: a process that starts, replicas that catch up. `stall_ms` ends there."""
    notes: tuple[str, ...] = ()

    @property
    def valid(self) -> bool:
        return not self.invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """In milliseconds. None without a value."""

    p50: float | None
    p99: float | None
    max: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerTimeline:
    """Of one rank of one load in one stage: when its steps were completed, binned, ascending; `errors_ms` when its
    client raised."""

    stage: str
    load: str
    rank: int
    steps_ms: tuple[int, ...]
    errors_ms: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A fault on the timeline. `end_ms`: taken back."""

    stage: str
    kind: str
    target: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    bin_ms: int
    workers: tuple[WorkerTimeline, ...]
    reads_ms: tuple[int, ...]
    """When linearizable reads through the public client ended well."""
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A cluster, and what its loads did before the first fault."""

    name: str
    nodes: int
    proxied: bool
    seams: bool
    """Its servers were started with disk and clock that can be made to fail."""
    start_ms: float
    end_ms: float
    undisturbed: Mapping[str, Distribution]
    """Step times by load, while no fault was there."""
    final: tuple[str, ...]
    """What was wrong at its end; empty when every replica holds what it should."""
    lost: int = 0
    duplicated: int = 0
    """First seen at the end."""
    stale_reads: int = 0
    """After the last fault."""
    bit_identical: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Of one server process over a soak. `per_minute`: slope over the second half of its life; None when that was too
    short to say."""

    node: int
    incarnation: int
    minutes: float
    rss_mb_begin: float
    rss_mb_end: float
    rss_mb_max: float
    rss_mb_per_minute: float | None
    descriptors_begin: int
    descriptors_end: int
    descriptors_max: int
    descriptors_per_minute: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the last line of standard output says."""

    faults: int
    """Injected, valid ones."""
    invalid: int
    lost: int
    duplicated: int
    stale_reads: int
    not_identical: int
    hangs: int
    stall_ms: Mapping[str, Distribution]
    """By kind, of valid faults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosResult:
    """All of one run. `command` as it was given, `replay` the one that makes the same plan again."""

    mode: str
    """"run" or "soak"."""
    command: str
    replay: str
    suite: str
    seed: int
    plan: Mapping[str, Any]
    """As a plan file has it."""
    begun: str
    """UTC, ISO 8601."""
    seconds: float
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    durability: str
    loads: Mapping[str, Mapping[str, Any]]
    """Name -> what it is: ranks, size, pace."""
    stages: tuple[Stage, ...]
    faults: tuple[FaultResult, ...]
    timeline: Timeline
    summary: Summary
    problems: tuple[str, ...]
    """Why a check failed; empty when all is well."""
    skipped: Mapping[str, str]
    """Kinds that were asked for and could not be run, and why."""
    growth: tuple[Growth, ...] = ()
    kept: str = ""
    """Where logs and data folders lie, when they were kept."""
    format: int = field(default=FORMAT)

    @property
    def passed(self) -> bool:
        return not self.problems


class ResultError(ValueError):
    """Not a result of this format; names the place."""


def to_json(result: Any) -> Any:
    """Plain values for `json.dumps`: dataclasses as objects, tuples as lists."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {one.name: to_json(getattr(result, one.name)) for one in dataclasses.fields(result)}
    if isinstance(result, Mapping):
        return {str(name): to_json(value) for name, value in result.items()}
    if isinstance(result, list | tuple):
        return [to_json(value) for value in result]
    return result


def from_json(data: Any) -> ChaosResult:
    """Raises ResultError."""
    if not isinstance(data, dict):
        raise ResultError("expected an object")
    if data.get("format") != FORMAT:
        raise ResultError(f"format: expected {FORMAT}, received {data.get('format')!r}")
    result: ChaosResult = _value(ChaosResult, data, "")
    return result


def _value(wanted: Any, data: Any, path: str) -> Any:
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        return _object(wanted, data, path)
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is types.UnionType:
        inner = next(one for one in arguments if one is not type(None))
        return None if data is None else _value(inner, data, path)
    if origin is tuple:
        if not isinstance(data, list):
            raise ResultError(f"{path}: expected a list, received {type(data).__name__}")
        return tuple(_value(arguments[0], one, f"{path}[{at}]") for at, one in enumerate(data))
    if origin is Mapping:
        if not isinstance(data, dict):
            raise ResultError(f"{path}: expected an object, received {type(data).__name__}")
        return {name: _value(arguments[1], one, f"{path}.{name}") for name, one in data.items()}
    if wanted is Any:
        return data
    if wanted is float and type(data) is int:
        return float(data)
    if type(data) is not wanted:
        raise ResultError(f"{path}: expected {wanted.__name__}, received {data!r}")
    return data


def _object(wanted: type, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise ResultError(f"{path}: expected an object, received {type(data).__name__}")
    known = typing.get_type_hints(wanted)
    fields = {one.name: one for one in dataclasses.fields(wanted)}
    unknown = sorted(data.keys() - fields.keys())
    missing = sorted(
        name
        for name, one in fields.items()
        if name not in data
        and one.default is dataclasses.MISSING
        and one.default_factory is dataclasses.MISSING
    )  # fmt: skip
    if unknown or missing:
        said = [f"unknown {', '.join(unknown)}"] * bool(unknown) + [f"missing {', '.join(missing)}"] * bool(missing)
        raise ResultError(f"{path or 'the result'}: {'; '.join(said)}")
    return wanted(**{name: _value(known[name], value, f"{path}.{name}".lstrip(".")) for name, value in data.items()})
