"""A bit of a replica's memory is another, and nobody was told (FAULTS 31).

Owns when that happens, to whom, and what may follow from it until the replica is rebuilt: workers are given wrong
values, and there are alarms. Invariants: of a group at most one replica is wrong at a time, and all others run, since
nobody can tell who is right among two. What is hit stays wrong whatever is computed from it. Must not know: how it is
noticed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from consensus.core.interface import GroupId
from consensus.simulation.cluster import Cluster
from consensus.simulation.schedule import MS, stream
from paramserver.shard.machine import ShardMachine
from paramserver.shard.state import Shard
from paramserver.wire.layout import Flat

AFTERMATH_MS = 2000
"""What was sent before the replica was rebuilt may arrive so much later."""
TOP_BIT = 1 << 30
"""Of the exponent: no rounding of what is computed from it gives the right value again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFlip:
    """`leads`: the group's leader is hit, otherwise one of its followers."""

    at_ms: int
    group: GroupId
    leads: bool


@dataclass(slots=True)
class Hit:
    machine: ShardMachine
    shards: Mapping[int, Shard]
    over_us: int | None = None

    @property
    def rebuilt(self) -> bool:
        """The state is another replica's now; a snapshot that a follower behind was sent anyway is one, too."""
        return self.machine.shards is not self.shards


class WrongMemory:
    def __init__(self, flips: Sequence[MemoryFlip], seed: int) -> None:
        self._flips = tuple(flips)
        self._seed = seed
        self._hits: dict[GroupId, Hit] = {}

    def begin(self, cluster: Cluster) -> None:
        self._cluster = cluster
        for number, flip in enumerate(self._flips):
            source = stream(self._seed, f"memory {number}")
            cluster.scheduler.at(flip.at_ms * MS, partial(self._come, flip, source))

    def end(self) -> None:
        self._flips = ()

    @property
    def unnoticed(self) -> list[GroupId]:
        """Groups in which a replica is wrong, or not yet rebuilt."""
        return [group for group, hit in self._hits.items() if not hit.rebuilt]

    def may_be_wrong(self, group: GroupId) -> bool:
        """Whether values of the group, and alarms, may come from a replica that was hit."""
        hit, now_us = self._hits.get(group), self._cluster.scheduler.now_us
        if hit is None or not hit.rebuilt:
            return hit is not None
        if hit.over_us is None:
            hit.over_us = now_us + AFTERMATH_MS * MS
        return now_us < hit.over_us

    def _come(self, flip: MemoryFlip, source: random.Random) -> None:
        if flip not in self._flips:
            return
        cluster, group = self._cluster, flip.group
        leads = cluster.leader_of(group)
        homes = next(sorted(spec.nodes.values()) for spec in cluster.groups if spec.group == group)
        hosts = [cluster.nodes[node] for node in homes]
        able = leads in homes and all(
            host.running and not cluster.roster.impaired and not host.handles[group].distrusted for host in hosts
        )
        target = leads if flip.leads else source.choice([node for node in homes if node != leads])
        machine = cluster.nodes[target].machines[group].inner if able and target is not None else None
        parts = _parts(machine) if isinstance(machine, ShardMachine) and not self.may_be_wrong(group) else []
        if not isinstance(machine, ShardMachine) or not parts:
            cluster.counts["spared memory flip"] += 1
            return
        what, values = source.choice(parts)
        element = source.randrange(values.size)
        _flip(values, element)
        cluster.faults["memory flip"] += 1
        cluster.trace.add("fault", f"n{target}: group {group}, element {element} of the {what} is another")
        self._hits[group] = Hit(machine, machine.shards)


def _parts(machine: ShardMachine) -> list[tuple[str, Flat]]:
    """Of open models: what the next version is computed from."""
    found: list[tuple[str, Flat]] = []
    for shard in machine.shards.values():
        for index, block in enumerate(shard.published):
            if shard.info.is_open and block.weights is not None:
                name = f"block {shard.info.create.first_block + index}"
                found.append((f"weights of {name}", block.weights))
                found += [(f"optimizer state of {name}", slot) for slot in shard.private[index].slots]
    return found


def _flip(values: Flat, element: int) -> None:
    locked = not values.flags.writeable
    values.flags.writeable = True
    values.view(np.uint32)[element] ^= np.uint32(TOP_BIT)
    values.flags.writeable = not locked
