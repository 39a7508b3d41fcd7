"""The register of fault kinds: name, what a kind needs of the cluster, what it may cost, what a seed draws for it.

    @fault("kill_leader", rows=(1,), hold_s=(0.4, 0.8))
    def kill_leader(scene: Scene, draw: Draw) -> Injection:
        group, node = scene.leader(draw)
        scene.cluster.kill(node)
        yield f"node {node}, leads group {group}"      the fault holds
        scene.cluster.start_server(node)               it is taken back

Owns the register. Must not know: plans, loads, verdicts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from paramserver.lab.errors import LabError

if TYPE_CHECKING:
    from paramserver.lab.chaos.scene import Scene

Injection: TypeAlias = Generator[str, None, None]
"""Injects, yields what it struck, and takes it back when it is resumed."""
HOLD = "hold_s"


class Need(StrEnum):
    LINKS = "links"
    """A proxy between the nodes."""
    SEAMS = "seams"
    """Servers whose disk and clock can be made to fail."""


class During(StrEnum):
    """What training may do while the fault is there."""

    STEPS = "steps"
    """It goes on: a run without a step in between is invalid, and one that stands still is a hang."""
    WAITS = "waits"
    """It has to wait for what is missing."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What the seed drew for one fault. `choice`: of targets, the same each time it is asked for."""

    seed: int
    values: Mapping[str, float]

    @property
    def choice(self) -> random.Random:
        return random.Random(self.seed)

    def __getitem__(self, name: str) -> float:
        return self.values[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """`rows` of FAULTS.md that it runs. `ranges`: what is drawn, from and to. `follower`: strikes a node that leads
    nothing, so that steps should take no longer. `recovers_s`: how long it may take to be whole again. `ends_servers`:
    a server process ends by it. `why_not`: it can't be run, and why."""

    name: str
    inject: Callable[[Scene, Draw], Injection]
    rows: tuple[int, ...]
    needs: frozenset[Need]
    during: During
    follower: bool
    ranges: Mapping[str, tuple[float, float]]
    recovers_s: float
    ends_servers: bool
    why_not: str = ""


@dataclass(slots=True)
class Register:
    kinds: dict[str, Kind] = field(default_factory=dict)

    def add(self, kind: Kind) -> None:
        if kind.name in self.kinds:
            raise ValueError(f"fault kind {kind.name!r} is there already")
        self.kinds[kind.name] = kind


_register = Register()


def fault(
    name: str,
    *,
    rows: tuple[int, ...],
    hold_s: tuple[float, float],
    needs: tuple[Need, ...] = (),
    during: During = During.STEPS,
    follower: bool = False,
    recovers_s: float = 30.0,
    ends_servers: bool = False,
    **ranges: tuple[float, float],
) -> Callable[[Callable[[Scene, Draw], Injection]], Callable[[Scene, Draw], Injection]]:
    def register(inject: Callable[[Scene, Draw], Injection]) -> Callable[[Scene, Draw], Injection]:
        _register.add(
            Kind(
                name=name,
                inject=inject,
                rows=rows,
                needs=frozenset(needs),
                during=during,
                follower=follower,
                ranges={HOLD: hold_s, **ranges},
                recovers_s=recovers_s,
                ends_servers=ends_servers,
            )
        )
        return inject

    return register


def absent(name: str, *, rows: tuple[int, ...], why_not: str) -> None:
    """A kind with a name that can't be run yet: plans leave it out and say so, and injecting it is refused."""

    def never(_scene: Scene, _draw: Draw) -> Injection:
        raise LabError(f"{name} cannot be run: {why_not}")
        yield ""  # a generator like the others

    _register.add(
        Kind(
            name=name,
            inject=never,
            rows=rows,
            needs=frozenset(),
            during=During.STEPS,
            follower=False,
            ranges={},
            recovers_s=0.0,
            ends_servers=False,
            why_not=why_not,
        )
    )


def all_kinds() -> Mapping[str, Kind]:
    """By name, in the order in which they are told of."""
    from paramserver.lab.chaos import faults  # registers them

    assert faults.MODULES
    return _register.kinds
