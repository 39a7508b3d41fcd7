"""How a model's blocks are cut into shards, and which group gets which.

Invariants: shards are contiguous ranges that cover all blocks once, in block order, one a group at most; a pure
function of what group 0's log holds, integers only, so every replica of group 0 finds the same. A command names the
rule it was written for, and keeps it when the log is read again. Must not know: nodes, where leaders are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum

from consensus.core.interface import GroupId
from paramserver.catalogue.state import Model, ModelId, Shard
from paramserver.wire.layout import Layout
from paramserver.wire.spec import ModelSpec


class Rule(IntEnum):
    """What a command that creates a model says of it."""

    EVEN = 0
    """Ranges of nearly equal length, whatever the groups hold already."""
    BY_BYTES = 1
    """So that the groups' bytes are as even as whole blocks allow, those of other models counted."""


def place(rule: Rule, spec: ModelSpec, model: ModelId, held: Mapping[GroupId, int]) -> tuple[Shard, ...]:
    """The shards of a new model over the groups in `held`, which hold so many bytes of weights."""
    match rule:
        case Rule.EVEN:
            return _even(spec, model, tuple(held))
        case Rule.BY_BYTES:
            return _by_bytes(spec, model, held)


def loads(groups: Iterable[GroupId], models: Iterable[Model]) -> dict[GroupId, int]:
    """Bytes of weights that each group holds: what a step pushes to it, it logs, and pulls from it."""
    held = dict.fromkeys(groups, 0)
    for model in models:
        add(held, model)
    return held


def add(held: dict[GroupId, int], model: Model, *, sign: int = 1) -> None:
    """`sign` -1: it goes."""
    layout = Layout(model.spec)
    for shard in model.shards:
        held[shard.group] = held.get(shard.group, 0) + sign * shard_bytes(layout, shard)


def shard_bytes(layout: Layout, shard: Shard) -> int:
    """Of its weights, as fp32. The model's last block may be shorter than the others."""
    last = shard.first_block + shard.blocks - 1
    return (shard.blocks - 1) * layout.block_bytes(shard.first_block) + layout.block_bytes(last) if shard.blocks else 0


def _even(spec: ModelSpec, model: ModelId, groups: tuple[GroupId, ...]) -> tuple[Shard, ...]:
    """Rotated by the model's id, so that many small models don't all lie in the first group."""
    blocks = Layout(spec).blocks
    used = min(len(groups), blocks)
    bounds = [blocks * i // used for i in range(used + 1)]
    return tuple(
        Shard(groups[(i + model - 1) % len(groups)], bounds[i], bounds[i + 1] - bounds[i]) for i in range(used)
    )


def _by_bytes(spec: ModelSpec, model: ModelId, held: Mapping[GroupId, int]) -> tuple[Shard, ...]:
    layout, groups = Layout(spec), tuple(held)
    size = layout.block_bytes(0)
    # Equally loaded groups take turns in going first.
    ordered = [groups[(i + model - 1) % len(groups)] for i in range(len(groups))]
    counts = _fill([held[group] for group in ordered], layout.blocks, size)
    after = {group: held[group] + count * size for group, count in zip(ordered, counts, strict=True)}
    taking = [(group, count) for group, count in zip(ordered, counts, strict=True) if count]
    shards: list[Shard] = []
    first = 0
    # The short block is the last one: it goes where there is most.
    for group, count in sorted(taking, key=lambda one: after[one[0]]):
        shards.append(Shard(group, first, count))
        first += count
    return tuple(shards)


def _fill(held: list[int], blocks: int, size: int) -> list[int]:
    """How many blocks of `size` bytes each gets, so that the fullest is as low as can be: water poured over stairs."""

    def below(level: int) -> list[int]:
        return [max(0, level - one) // size for one in held]

    low, high = min(held), max(held) + blocks * size
    while low < high:  # the highest level that all blocks reach
        middle = (low + high + 1) // 2
        if sum(below(middle)) <= blocks:
            low = middle
        else:
            high = middle - 1
    counts = below(low)
    for _ in range(blocks - sum(counts)):  # fewer than there are groups
        lowest = min(range(len(held)), key=lambda i: held[i] + counts[i] * size)
        counts[lowest] += 1
    return counts
