"""What group 0's leader does for clients: propose, carry into the data groups, answer.

Owns one tenure at a time (its drives and its lease clock); `leading` begins one, `deposed` ends it and everybody who
waits in it is sent elsewhere. Invariants: nothing is answered before it is committed, and where data groups must know,
before all of them have applied it (RULES M2, S9); leases end by command only (I4). Runs on the host's event loop. What
is asked of models is in `lifecycle.py` and `changes.py`. Must not know: gRPC, weights.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from consensus.core.interface import GroupId, NodeId, ReplicaId
from consensus.runtime.interface import Applied, Committed, Outcome, Refused
from paramserver.catalogue import commands
from paramserver.catalogue.administration import Administration, DrainNode, TransferTo, Wish
from paramserver.catalogue.changes import Changes
from paramserver.catalogue.commands import (
    ClaimRank,
    ClientCommand,
    Command,
    Envelope,
    OpenSession,
    PinAdvanced,
    RateAdvanced,
    RegisterNode,
    ReleaseRank,
    ShardCreated,
    ShardDeleted,
)
from paramserver.catalogue.drive import Drives, Execute
from paramserver.catalogue.leases import LEASE_MS, LeaseClock, LeaseKey
from paramserver.catalogue.lifecycle import Lifecycle
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.moving import Mover
from paramserver.catalogue.pictures import Hands, Survey
from paramserver.catalogue.placement import Reshape
from paramserver.catalogue.planning import Plan
from paramserver.catalogue.sessions import Answer, Caller, NotApplied, Session
from paramserver.catalogue.state import Model, ModelId, Node, SessionId
from paramserver.wire.errors import Reason, Refusal, disk_full, invalid
from paramserver.wire.protos import View

log = logging.getLogger(__name__)

LEASE_CHECK_MS = 200
"""How late a lease may end."""
SEQUENCE_MAX = 2**62


@dataclass(frozen=True, slots=True)
class RankClaim:
    """`lowest_version` is m of RULES S7. `view` holds in every data group."""

    lease_epoch: int
    view: View
    lowest_version: int
    lease_ms: int


@dataclass(frozen=True, slots=True)
class Reshaped:
    """What a wish came to. `moves` go on by themselves."""

    plan: Plan
    moves: tuple[int, ...] = ()


@dataclass(slots=True)
class Tenure:
    term: int
    drives: Drives
    administration: Administration | None
    tasks: list[asyncio.Task[None]]


class CatalogueLeader:
    """`GroupListener` of group 0 and its clients' counterpart.

    `propose(payload)` commits in group 0. `elsewhere()` is the refusal that says where group 0's leader is, as far as
    this node knows. `nodes()`: the members with their uuids, as far as known here. `confirm()` returns when a quorum
    said, after it was called, that this node's state of group 0 is the newest (RULES R2).
    """

    def __init__(
        self,
        machine: CatalogueMachine,
        *,
        propose: Callable[[bytes], Awaitable[Outcome]],
        execute: Execute,
        elsewhere: Callable[[], Refusal],
        nodes: Callable[[], Mapping[NodeId, Node]],
        now_ms: Callable[[], int],
        lease_ms: int = LEASE_MS,
        hands: Callable[[int], Hands] | None = None,
        cluster: bytes = b"",
        confirm: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """`hands(term)`: how nodes are reached in one tenure; without it the cluster's shape stays as it is. Without
        `confirm` what is read here is not linearizable."""
        self._machine = machine
        self._propose = propose
        self._execute = execute
        self._elsewhere = elsewhere
        self._nodes = nodes
        self._now_ms = now_ms
        self._hands = hands
        self._cluster = cluster
        self._confirm = confirm
        self._leases = LeaseClock(lease_ms)
        self._tenure: Tenure | None = None
        self.changes = Changes(
            drives=lambda: self._leading().drives,
            describe=lambda model: self.describe(model=model),
            answered=lambda caller: self._authenticate(caller).answered(caller.sequence) is not None,
            commit=self._commit_for,
            renewed=lambda key: self._leases.renewed(key, self._now_ms()),
        )
        """What is asked of a model while it trains."""
        self.lifecycle = Lifecycle(
            machine,
            self._leases,
            now_ms=now_ms,
            drives=lambda: self._leading().drives,
            describe=lambda model: self.describe(model=model),
            commit=self._commit_for,
            holder=self._holder,
        )
        """How models come and go."""

    # --- GroupListener

    def leading(self, term: int) -> None:
        self.deposed(term)
        drives = Drives(
            lambda: self._machine.models,
            self._execute,
            self._report_created,
            self._report_advanced,
            lambda: self._machine.leaving,
            self._report_deleted,
        )
        self._leases.leading(self._machine.models, self._now_ms())
        tasks = [
            asyncio.create_task(self._expire_leases(), name="leases of group 0"),
            asyncio.create_task(self._register_nodes(), name="nodes of group 0"),
        ]
        administration = self._administration(self._hands(term)) if self._hands is not None else None
        self._tenure = Tenure(term, drives, administration, tasks)
        self._carry_out()

    def deposed(self, term: int) -> None:
        tenure, self._tenure = self._tenure, None
        self._leases.deposed()
        if tenure is not None:
            tenure.drives.end()
            if tenure.administration is not None:
                tenure.administration.mover.end()
            for task in tenure.tasks:
                task.cancel()

    def leader_changed(self, leader: ReplicaId, term: int) -> None:
        pass

    def applied(self, batch: Sequence[Applied]) -> None:
        """What was decided is carried out even if whoever asked for it gave up waiting for the decision."""
        self._carry_out()

    def _carry_out(self) -> None:
        if self._tenure is not None:
            self._tenure.drives.poke_all()
            if self._tenure.administration is not None:
                self._tenure.administration.mover.poke()

    def restored(self, index: int) -> None:
        pass

    def handing_over(self, to: ReplicaId) -> None:
        pass

    def drained(self) -> bool:
        return True

    def note(self) -> bytes:
        return b""

    def noted(self, replica: ReplicaId, note: bytes) -> None:
        pass

    # --- what clients ask

    async def open_session(self, client: bytes, secret_digest: bytes, name: str) -> SessionId:
        self._leading()
        answer = await self._commit(Envelope(OpenSession(client, secret_digest, name)))
        return answer.value

    async def confirmed(self) -> None:
        """What is read here now, without waiting in between, holds every answer given before this call. Raises
        `Refusal` where this node does not lead, or no quorum says that it does."""
        self._leading()
        if self._confirm is not None:
            await self._confirm()

    def describe(self, *, name: str = "", model: ModelId = 0) -> Model:
        self._leading()
        found = self._machine.models.get(model) if model else self._machine.named(name)
        if found is None or (name and found.spec.name != name):
            field = "model" if model else "name"
            raise Refusal(
                Reason.NOT_FOUND,
                f"no model {'has the id ' + str(model) if model else repr(name)}",
                field=field,
                received=str(model) if model else name,
                hint="create it first, or check the name",
            )
        return found

    async def claim_rank(self, caller: Caller, model: ModelId, generation: int, rank: int) -> RankClaim:
        """The rank, once every data group of the model has applied the view that grants it (RULES S9)."""
        tenure = self._leading()
        try:
            answer = await self._commit_for(caller, ClaimRank(model, generation, rank))
        except NotApplied as refused:
            if refused.answer.reason != Reason.RANK_TAKEN:
                raise
            raise self._rank_taken(model, rank, refused.answer) from None
        self._leases.renewed(LeaseKey(model, rank, answer.value), self._now_ms())
        confirmed = await tenure.drives.everywhere(model, lambda group: group.view >= answer.view)
        # The model's view of now: where another rank was claimed meanwhile, the groups hold that one or will soon.
        return RankClaim(
            lease_epoch=answer.value,
            view=self.describe(model=model).view,
            lowest_version=min(group.lowest_version for group in confirmed),
            lease_ms=self._leases.lease_ms,
        )

    def renew(
        self,
        caller: Caller,
        model: ModelId,
        rank: int,
        lease_epoch: int,
        initialization_epoch: int,
        pin: int = 0,
    ) -> View:
        """Not logged (RULES I4). With `initialization_epoch` or `pin` it is that lease, else the rank's."""
        self._leading()
        self._authenticate(caller)
        found = self.describe(model=model)
        if pin:
            now = found.pinned
            ours = now is not None and now.session == caller.session and now.number == pin
            key = LeaseKey(model, 0, pin, pin=True)
            current = now.number if now is not None else 0
        elif initialization_epoch:
            lease = found.initialization
            ours = lease.session == caller.session and lease.epoch == initialization_epoch
            key = LeaseKey(model, 0, initialization_epoch, initialization=True)
            current = lease.epoch
        else:
            if not 0 <= rank < len(found.leases):
                raise invalid("rank", f"0 to {len(found.leases) - 1}", rank)
            held = found.leases[rank]
            ours = held.held and held.session == caller.session and held.epoch == lease_epoch
            key = LeaseKey(model, rank, lease_epoch)
            current = held.epoch
        if not ours:
            raise Refusal(
                Reason.STALE_LEASE,
                f"the lease is not held by session {caller.session} under that epoch; epoch {current} is the latest",
                epoch=current,
                rank=rank,
                view=found.view.number,
                hint="claim it again",
            )
        self._leases.renewed(key, self._now_ms())
        return found.view

    async def release(self, caller: Caller, model: ModelId, rank: int, lease_epoch: int) -> None:
        self._leading()
        await self._commit_for(caller, ReleaseRank(model, rank, lease_epoch))

    async def survey(self) -> Survey:
        return await self._administering().survey()

    @property
    def mover(self) -> Mover:
        """What is being moved, and how it goes. Raises `Refusal` where this node does not lead."""
        return self._administering().mover

    async def reshape(self, caller: Caller, wish: Wish, *, dry_run: bool) -> Reshaped:
        """Nodes, members of groups, leaders: as `administration` says. A dry run needs no session."""
        administration = self._administering()
        if not dry_run:
            before = self._authenticate(caller).answered(caller.sequence)
            hands_over = isinstance(wish, TransferTo) or (isinstance(wish, DrainNode) and wish.leaders_only)
            if before is not None and before.ok and not hands_over:
                # Sent again: it is under way, and a plan made now would say that it can't be.
                return Reshaped(Plan(steps=("recorded before",)), (before.value,) if before.value else ())
        plan = await administration.plan(wish)
        if dry_run:
            return Reshaped(plan)

        async def commit(reshape: Reshape) -> Answer:
            return await self._commit_for(caller, reshape)

        return Reshaped(plan, tuple(await administration.carry_out(plan, commit)))

    async def models(self) -> list[Model]:
        """All there are, by name; not those that have none yet."""
        await self.confirmed()
        found = [model for model in self._machine.models.values() if not model.loading]
        return sorted(found, key=lambda model: model.spec.name)

    @property
    def lease_ms(self) -> int:
        return self._leases.lease_ms

    def troubles(self) -> list[str]:
        tenure = self._tenure
        if tenure is None:
            return []
        moving = tenure.administration.mover.troubles() if tenure.administration is not None else []
        return tenure.drives.troubles() + moving

    # --- parts

    def _administration(self, hands: Hands) -> Administration:
        async def commit(command: Command) -> Answer:
            return await self._commit(Envelope(command))

        mover = Mover(lambda: self._machine.placement, lambda: self._machine.groups, hands, commit)
        return Administration(self._machine, hands, mover, self._cluster)

    def _administering(self) -> Administration:
        administration = self._leading().administration
        if administration is None:
            raise Refusal(Reason.NOT_READY, "this server cannot reach other nodes")
        return administration

    def _leading(self) -> Tenure:
        if self._tenure is None:
            raise self._elsewhere()
        return self._tenure

    def _authenticate(self, caller: Caller) -> Session:
        session = self._machine.session(caller.session)
        if session is None:
            raise Refusal(Reason.UNKNOWN_SESSION, f"session {caller.session} is not open", hint="open a session")
        if not session.owns(caller.secret_digest):
            raise Refusal(Reason.WRONG_SECRET, f"the secret is not that of session {caller.session}")
        return session

    async def _commit_for(self, caller: Caller, command: ClientCommand) -> Answer:
        self._authenticate(caller)
        if not 1 <= caller.sequence < SEQUENCE_MAX:
            raise invalid("sequence", f"1 to {SEQUENCE_MAX - 1}", caller.sequence)
        return await self._commit(Envelope(command, caller.session, caller.sequence, caller.secret_digest))

    async def _commit(self, envelope: Envelope) -> Answer:
        """Committed and applied here, or a `Refusal`; `NotApplied` where apply said no."""
        outcome = await self._propose(commands.encode(envelope))
        match outcome:
            case Committed(result=Answer() as answer):
                if not answer.ok:
                    raise NotApplied(answer)
                return answer
            case Refused(busy=True):
                # Too much to commit, or leadership is being handed over: no matter which, it is short.
                raise Refusal(
                    Reason.BUSY,
                    f"group 0 takes no commands now: {outcome.reason or 'too many wait'}",
                    retry_after_ms=50,
                )
            case Refused(full=True):
                raise disk_full(0)
            case Refused():
                raise self._elsewhere()
            case _:
                raise Refusal(
                    Reason.NOT_READY,
                    "group 0's leader changed before the outcome was known; the same sequence may be sent again",
                )

    def _rank_taken(self, model: ModelId, rank: int, answer: Answer) -> Refusal:
        ends_ms = self._leases.ends_in_ms(LeaseKey(model, rank, answer.value), self._now_ms())
        holder = self._holder(answer.holder)
        return Refusal(
            Reason.RANK_TAKEN,
            f"rank {rank} is held by {holder}; its lease ends in {ends_ms} ms unless it is renewed",
            field="rank",
            rank=rank,
            holder=holder,
            lease_ends_ms=ends_ms,
            retry_after_ms=ends_ms,
            epoch=answer.value,
            hint="wait for the lease to end, or use the holder's session file",
        )

    def _holder(self, session: SessionId) -> str:
        known = self._machine.session(session)
        name = known.name if known is not None else ""
        return f"{name} (session {session})" if name else f"session {session}"

    # --- the tenure's own work

    async def _report_created(self, model: Model, group: GroupId) -> None:
        await self._commit(Envelope(ShardCreated(model.model, model.generation, group)))

    async def _report_deleted(self, model: ModelId, group: GroupId) -> None:
        await self._commit(Envelope(ShardDeleted(model, group)))

    async def _report_advanced(self, reached: RateAdvanced | PinAdvanced) -> None:
        await self._commit(Envelope(reached))
        stage = reached.stage.name.lower()
        what = "pin" if isinstance(reached, PinAdvanced) else "learning rate"
        log.info("%s %d of model %d: %s at step %d", what, reached.number, reached.model, stage, reached.step)

    async def _expire_leases(self) -> None:
        while True:
            await asyncio.sleep(LEASE_CHECK_MS / 1000)
            await self.expire_due()

    async def expire_due(self) -> None:
        """Propose the end of every lease whose time is over now (RULES I4)."""
        for expire in self._leases.due(self._machine.models, self._now_ms()):
            if await self._quietly(expire):
                if isinstance(expire, PinAdvanced):
                    log.info("pin %d of model %d ended by its bound", expire.number, expire.model)
                    continue
                what = "initialization" if expire.initialization else f"rank {expire.rank}"
                log.info("the lease of %s of model %d ended, epoch %d", what, expire.model, expire.lease_epoch)

    async def _register_nodes(self) -> None:
        """The record of who belongs to the cluster, where what this node knows is newer."""
        for node in self._nodes().values():
            if node.node not in self._machine.nodes:
                await self._quietly(RegisterNode(node))

    async def _quietly(self, command: Command) -> bool:
        """Commit what a later leader or a later round does again anyway."""
        try:
            return (await self._commit(Envelope(command))).ok
        except Refusal as refusal:
            log.debug("%s: %s", type(command).__name__, refusal.message)
            return False
