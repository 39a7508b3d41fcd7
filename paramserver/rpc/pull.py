"""Pulls: blocks of a wanted version from this replica, waiting where it is not there yet (RULES R1).

Invariants: what is served was committed and applied here; a wait ends at the client's deadline or at the server's own
cap, whichever is first; at most PULLS_MAX pulls are served at a time. Weights are passed on by reference and copied
once, into the frame. Must not know: how a replica keeps versions, gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from consensus.core.interface import GroupId
from paramserver.rpc.calls import SERVER_DEADLINE_MS
from paramserver.rpc.groups import Groups
from paramserver.shard.leader import ShardLeader
from paramserver.shard.machine import ShardMachine
from paramserver.shard.reads import BlockRead, Value
from paramserver.wire.errors import Reason, Refusal, invalid
from paramserver.wire.frames import STEP_MAX, BlockFrame, BlockStatus

PULLS_MAX = 1024
"""Pulls served at a time; further ones are refused as busy."""
NOT_YET_MS = 20
"""How often a replica that does not know a model yet, or has not opened it, looks again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`exact`: that version and no other; else at least that version. `blocks` empty: all of the group."""

    group: GroupId
    model: int
    generation: int
    placement_epoch: int
    blocks: tuple[int, ...]
    version: int
    exact: bool

    def of(self, block: int) -> BlockRead:
        return BlockRead(
            model=self.model,
            generation=self.generation,
            placement_epoch=self.placement_epoch,
            block=block,
            version=self.version if self.exact else None,
            min_version=None if self.exact else self.version,
        )


class Puller:
    """`leaders`: this node's data groups, led here or not."""

    def __init__(self, groups: Groups, leaders: Mapping[GroupId, ShardLeader]) -> None:
        self._groups = groups
        self._leaders = leaders
        self.pulls = 0

    async def frames(self, wanted: Wanted, time_left_s: float | None) -> AsyncIterator[BlockFrame]:
        """The blocks in order, each as soon as it is there. Raises `Refusal`."""
        if self.pulls >= PULLS_MAX:
            raise Refusal(Reason.BUSY, f"{PULLS_MAX} pulls are served by this node, its bound", retry_after_ms=100)
        cap_s = SERVER_DEADLINE_MS / 1000
        deadline = _now_s() + (cap_s if time_left_s is None else min(time_left_s, cap_s))
        replica = self._replica(wanted.group)
        self.pulls += 1
        try:
            blocks = wanted.blocks or await self._all_blocks(replica, wanted, deadline)
            for block in blocks:
                value = await self._value(replica, wanted.of(block), deadline)
                yield BlockFrame(
                    block=block,
                    step=value.version,
                    version=value.version,
                    status=BlockStatus.VALUE,
                    crc=value.crc,
                    term=replica.term,
                    payload=value.payload,
                )
        finally:
            self.pulls -= 1

    def _replica(self, group: GroupId) -> ShardLeader:
        replica = self._leaders.get(group)
        if replica is None:
            if group not in self._groups.layout or group == 0:
                raise Refusal(Reason.NOT_FOUND, f"no data group has the number {group}", field="group")
            raise self._groups.elsewhere(group)
        problem = self._groups.hosted[group].handle.status().problem
        if problem:
            raise Refusal(Reason.DAMAGED, f"this node's replica of group {group} does not run: {problem}", group=group)
        return replica

    async def _all_blocks(self, replica: ShardLeader, wanted: Wanted, deadline: float) -> range:
        """Every block of the model in this group, once this replica knows the model."""
        machine = self._groups.hosted[wanted.group].machine
        while True:
            shard = machine.shards.get(wanted.model) if isinstance(machine, ShardMachine) else None
            if shard is not None:
                create = shard.info.create
                return range(create.first_block, create.first_block + create.blocks)
            try:
                replica.read(wanted.of(0), _nothing)  # says why not
            except Refusal as refusal:
                await _later(refusal, deadline)
            else:
                raise Refusal(Reason.NOT_READY, f"this replica has just learned of model {wanted.model}")

    async def _value(self, replica: ShardLeader, read: BlockRead, deadline: float) -> Value:
        while True:
            awake = asyncio.Event()
            try:
                found = replica.read(read, awake.set)
            except Refusal as refusal:
                await _later(refusal, deadline)
                continue
            if isinstance(found, Value):
                return found
            try:
                async with asyncio.timeout(deadline - _now_s()):
                    await awake.wait()
            except TimeoutError:
                asked = read.version if read.version is not None else read.min_version
                raise Refusal(Reason.DEADLINE, f"block {read.block} did not reach version {asked} in time") from None
            finally:
                found.cancel()


async def _later(refusal: Refusal, deadline: float) -> None:
    """A replica may only be behind: look again until the time is up; then, or where waiting can't help, raise."""
    waiting_helps = refusal.reason in (Reason.NOT_READY, Reason.NOT_OPEN)
    if not waiting_helps or _now_s() + NOT_YET_MS / 1000 >= deadline:
        raise refusal
    await asyncio.sleep(NOT_YET_MS / 1000)


def _now_s() -> float:
    """On the loop's clock, which a simulation may have its own of."""
    return asyncio.get_running_loop().time()


def _nothing() -> None:
    pass


def checked(wanted: Wanted) -> Wanted:
    """Form of the request, before anything is looked up. Raises `Refusal` naming the field."""
    if wanted.version >= STEP_MAX:
        raise invalid("version", f"less than {STEP_MAX}", wanted.version)
    for position, (before, block) in enumerate(zip(wanted.blocks, wanted.blocks[1:], strict=False)):
        if block <= before:
            raise invalid(f"blocks[{position + 1}]", "blocks sorted, without repeats", f"{block} after {before}")
    return wanted
