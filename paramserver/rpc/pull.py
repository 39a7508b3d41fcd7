"""Pulls: blocks of a wanted version from this replica, waiting where it is not there yet (RULES R1).

Consistent pulls (RULES R2, R3) are the same, of state that is known to be new enough. Invariants: what is served was
committed and applied here; a linearizable pull serves nothing before a quorum confirmed the leader after it came, a
bounded one nothing that is older than its bound when it is read; a follower waits for the next version only, and leaves
others to who has them; a wait ends at the client's deadline or at the server's own cap, whichever is first; at most
`pulls_max` pulls are served at a time. Weights are passed on by reference and copied once, into the frame; what the
client has already is not sent to it. Must not know: how a replica keeps versions, gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from consensus.core.interface import GroupId
from paramserver.rpc.admission import Busy
from paramserver.rpc.calls import SERVER_DEADLINE_MS
from paramserver.rpc.freshness import Confirmation, Freshness
from paramserver.rpc.groups import Groups
from paramserver.rpc.limits import Limits
from paramserver.shard.forms import Form
from paramserver.shard.leader import ShardLeader
from paramserver.shard.machine import ShardMachine
from paramserver.shard.reads import BlockRead, Value, stale_epoch
from paramserver.wire.codecs import Codec
from paramserver.wire.errors import Reason, Refusal, invalid
from paramserver.wire.frames import STEP_MAX, BlockFrame, BlockStatus

BOUNDED_MS_MAX = 86_400_000
"""A longer bound is a mistake: without one any committed state will do."""
BEHIND_MAX = 1
"""A follower waits for a version that is about to come: all blocks are in {m, m + 1} (RULES S6), so a version further
away is either one that it lags behind, and others have, or one that only time brings, and the leader waits for."""
NOT_YET_MS = 20
"""How often a replica that does not know a model yet, or has not opened it, looks again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`exact`: that version and no other; else at least that version, and with `linearizable` or `bounded_ms` new
    enough. `blocks` empty: all of the group. `if_newer_than`: weights only of blocks above that version."""

    group: GroupId
    model: int
    generation: int
    placement_epoch: int
    blocks: tuple[int, ...]
    version: int
    exact: bool
    linearizable: bool = False
    bounded_ms: int = 0
    if_newer_than: int | None = None
    codec: Codec = Codec.FP32
    part: int = 0

    def of(self, block: int) -> BlockRead:
        return BlockRead(
            model=self.model,
            generation=self.generation,
            placement_epoch=self.placement_epoch,
            block=block,
            version=self.version if self.exact else None,
            min_version=None if self.exact else self.version,
            part=self.part,
        )


class Puller:
    """`leaders`: this node's data groups, led here or not."""

    def __init__(
        self,
        groups: Groups,
        leaders: Mapping[GroupId, ShardLeader],
        freshness: Freshness,
        limits: Limits | None = None,
        busy: Busy | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._busy = busy or Busy(self._limits)
        self._groups = groups
        self._leaders = leaders
        self._freshness = freshness
        self.pulls = 0

    async def frames(self, wanted: Wanted, time_left_s: float | None) -> AsyncGenerator[BlockFrame, None]:
        """The blocks in order, each as soon as it is there. Raises `Refusal`."""
        if self.pulls >= self._limits.pulls_max:
            raise self._busy.refusal(f"{self.pulls} pulls are served by this node, its bound")
        cap_s = SERVER_DEADLINE_MS / 1000
        deadline = _now_s() + (cap_s if time_left_s is None else min(time_left_s, cap_s))
        replica = self._replica(wanted.group)
        self.pulls += 1
        confirmed: Confirmation | None = None
        try:
            if wanted.linearizable:
                confirmed = await self._confirmed(wanted, None, deadline)
            blocks = wanted.blocks or await self._all_blocks(replica, wanted, deadline)
            for block in blocks:
                value, confirmed, age_ms = await self._value(replica, wanted, block, confirmed, deadline)
                known = wanted.if_newer_than is not None and value.version <= wanted.if_newer_than
                form = None if known else await _form(replica, value, wanted.codec)
                yield BlockFrame(
                    block=block,
                    step=value.version,
                    version=value.version,
                    status=BlockStatus.NOT_NEWER if form is None else BlockStatus.VALUE,
                    codec=Codec.FP32 if form is None else form.codec,
                    crc=0 if form is None else form.crc,
                    term=replica.term,
                    age_ms=age_ms,
                    scalars=value.scalars,
                    payload=b"" if form is None else form.payload,
                )
        finally:
            self.pulls -= 1

    def _replica(self, group: GroupId) -> ShardLeader:
        replica = self._leaders.get(group)
        if replica is None:
            if group not in self._groups.layout or group == 0:
                raise Refusal(Reason.NOT_FOUND, f"no data group has the number {group}", field="group")
            raise self._groups.elsewhere(group)
        status = self._groups.hosted[group].handle.status()
        if status.problem:
            message = f"this node's replica of group {group} does not run: {status.problem}"
            raise Refusal(Reason.DAMAGED, message, group=group)
        if status.distrusted:
            message = f"this node's replica of group {group} is being rebuilt: {status.distrusted}"
            raise Refusal(Reason.DAMAGED, message, group=group)
        if status.core is not None and status.core.forgetful:
            message = f"this node's replica of group {group} may have forgotten entries and is being filled again"
            raise Refusal(Reason.DAMAGED, message, group=group)
        return replica

    async def _confirmed(self, wanted: Wanted, known: Confirmation | None, deadline: float) -> Confirmation | None:
        """That what is read next, without waiting in between, is as new as wanted; None where any will do."""
        group = wanted.group
        if not wanted.linearizable and not wanted.bounded_ms:
            return None
        if wanted.linearizable and known is not None and self._freshness.holds(group, known):
            return known
        try:
            async with asyncio.timeout_at(deadline):
                if wanted.linearizable:
                    return await self._freshness.confirm(group)
                return await self._freshness.within(group, wanted.bounded_ms)
        except TimeoutError:
            raise Refusal(Reason.DEADLINE, f"group {group}: the state here was not confirmed in time") from None

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

    async def _value(
        self, replica: ShardLeader, wanted: Wanted, block: int, confirmed: Confirmation | None, deadline: float
    ) -> tuple[Value, Confirmation | None, int]:
        """With what confirms it, and its age at most when it was read (0 where any will do)."""
        read = wanted.of(block)
        while True:
            awake = asyncio.Event()
            confirmed = await self._confirmed(wanted, confirmed, deadline)
            if confirmed is not None and self._replica(wanted.group) is not replica:
                raise Refusal(Reason.NOT_READY, f"this node's replica of group {wanted.group} was replaced")
            try:
                found = replica.read(read, awake.set)
            except Refusal as refusal:
                await _later(refusal, deadline)
                continue
            if isinstance(found, Value):
                age_ms = confirmed.age_ms if confirmed is not None else 0
                if wanted.bounded_ms and age_ms > wanted.bounded_ms:
                    continue  # it has just become too old
                return found, confirmed, age_ms
            try:
                if found.behind > BEHIND_MAX and not replica.leading_now:
                    raise Refusal(
                        Reason.NOT_READY,
                        f"this replica is {found.behind} updates behind version {found.version} of block {block}",
                        group=wanted.group,
                        hint="another replica may have it",
                    )
                async with asyncio.timeout(deadline - _now_s()):
                    await awake.wait()
            except TimeoutError:
                asked = read.version if read.version is not None else read.min_version
                raise Refusal(Reason.DEADLINE, f"block {read.block} did not reach version {asked} in time") from None
            finally:
                found.cancel()


async def _form(replica: ShardLeader, value: Value, codec: Codec) -> Form:
    """What was read, encoded off the event loop where it has to be."""
    made: asyncio.Future[Form] = asyncio.get_running_loop().create_future()
    replica.encoded(value, codec, lambda form: None if made.done() else made.set_result(form))
    return await made


async def _later(refusal: Refusal, deadline: float) -> None:
    """A replica may only be behind: look again until the time is up; then, or where waiting can't help, raise."""
    waiting_helps = refusal.reason in (Reason.NOT_READY, Reason.NOT_OPEN)
    if not waiting_helps or _now_s() + NOT_YET_MS / 1000 >= deadline:
        if refusal.field == "placement_epoch" and refusal.reason is Reason.NOT_READY:
            raise stale_epoch(refusal.epoch, refusal.received)  # it had its time: there is none like that
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
    if wanted.if_newer_than is not None and wanted.if_newer_than >= STEP_MAX:
        raise invalid("if_newer_than", f"less than {STEP_MAX}", wanted.if_newer_than)
    if wanted.exact and wanted.if_newer_than is not None:
        raise invalid("if_newer_than", "min_version with it; an exact version never is another", "version")
    if wanted.exact and (wanted.linearizable or wanted.bounded_ms):
        field = "linearizable" if wanted.linearizable else "bounded_ms"
        raise invalid(field, "min_version with it; an exact version has one value on every replica", "version")
    if wanted.part and not wanted.exact:
        raise invalid("part", "0, or an exact version with it", wanted.part)
    if wanted.linearizable and wanted.bounded_ms:
        raise invalid("bounded_ms", "0, as linearizable is set", wanted.bounded_ms)
    if wanted.bounded_ms > BOUNDED_MS_MAX:
        raise invalid("bounded_ms", f"at most {BOUNDED_MS_MAX} (a day)", wanted.bounded_ms)
    for position, (before, block) in enumerate(zip(wanted.blocks, wanted.blocks[1:], strict=False)):
        if block <= before:
            raise invalid(f"blocks[{position + 1}]", "blocks sorted, without repeats", f"{block} after {before}")
    return wanted
