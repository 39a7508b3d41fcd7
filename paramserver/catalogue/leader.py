"""What group 0's leader does for clients: propose, carry into the data groups, answer.

Owns one tenure at a time (its drives and its lease clock); `leading` begins one, `deposed` ends it and everybody who
waits in it is sent elsewhere. Invariants: nothing is answered before it is committed, and where data groups must know,
before all of them have applied it (RULES M2, S9); leases end by command only (I4). Runs on the host's event loop. Must
not know: gRPC, weights.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from consensus.core.interface import GroupId, NodeId, ReplicaId
from consensus.runtime.interface import Applied, Committed, Outcome, Refused
from paramserver.catalogue import commands
from paramserver.catalogue.administration import Administration, DrainNode, TransferTo, Wish
from paramserver.catalogue.changes import Changes
from paramserver.catalogue.commands import (
    ClaimInitialization,
    ClaimRank,
    ClientCommand,
    Command,
    CreateModel,
    DeleteModel,
    Envelope,
    LoadModel,
    ModelOpened,
    OpenSession,
    PinAdvanced,
    RateAdvanced,
    RegisterNode,
    ReleaseRank,
    ShardCreated,
    ShardDeleted,
)
from paramserver.catalogue.drive import Drives, Execute, OpenShard
from paramserver.catalogue.leases import LEASE_MS, LeaseClock, LeaseKey
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.models import load_problems
from paramserver.catalogue.moving import Mover
from paramserver.catalogue.pictures import Hands, Survey
from paramserver.catalogue.placement import Reshape
from paramserver.catalogue.planning import Plan
from paramserver.catalogue.sessions import Answer, Caller, Session
from paramserver.catalogue.state import Loaded, Model, ModelId, Node, SessionId
from paramserver.wire.errors import Reason, Refusal, disk_full, invalid, refuse_problems
from paramserver.wire.protos import View
from paramserver.wire.spec import ModelSpec, TensorSpec

log = logging.getLogger(__name__)

LEASE_CHECK_MS = 200
"""How late a lease may end."""
SEQUENCE_MAX = 2**62
LOADING_RETRY_MS = 200
"""When to ask again for a model whose name is being loaded."""


@dataclass(frozen=True, slots=True)
class RankClaim:
    """`lowest_version` is m of RULES S7. `view` holds in every data group."""

    lease_epoch: int
    view: View
    lowest_version: int
    lease_ms: int


@dataclass(frozen=True, slots=True)
class InitializationClaim:
    """Not `granted`: the model is `open`, or `holder` has the lease for that long."""

    granted: bool
    epoch: int = 0
    open: bool = False
    holder: str = ""
    lease_ends_ms: int = 0


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

    async def create_model(self, caller: Caller, spec: ModelSpec) -> Model:
        """The model, complete in all its groups (RULES M2)."""
        tenure = self._leading()
        refuse_problems(spec.validate())
        existing = self._machine.named(spec.name)
        if existing is not None and existing.spec != spec:
            raise mismatch(existing.spec, spec)
        if existing is None and self._machine.being_loaded(spec.name) is not None:
            raise Refusal(
                Reason.NOT_READY,
                f"model {spec.name!r} is being loaded from a checkpoint",
                retry_after_ms=LOADING_RETRY_MS,
            )
        answer = await self._commit_spec(caller, CreateModel(spec))
        return await self._complete(tenure, answer.value)

    async def load_model(self, caller: Caller, spec: ModelSpec, loaded: Loaded) -> Model:
        """A new generation of the model of that name, or its first, complete in all its groups: its initialization
        lease is the caller's, and it takes the name when it is opened."""
        tenure = self._leading()
        refuse_problems(spec.validate())
        if problems := load_problems(loaded):
            raise Refusal(Reason.INVALID, problems)
        try:
            answer = await self._commit_spec(caller, LoadModel(spec, loaded))
        except _Refused as refused:
            if refused.answer.reason != Reason.CONFLICT or not refused.answer.value:
                raise
            raise self._loaded_by_another(spec.name, refused.answer) from None
        # A retry says that the caller is there, who cannot renew yet.
        self._leases.renewed(LeaseKey(answer.value, 0, 1, initialization=True), self._now_ms())
        return await self._complete(tenure, answer.value)

    async def delete_model(
        self, caller: Caller, model: ModelId, generation: int, *, force: bool, loading: bool = False
    ) -> None:
        """Returns when every data group has let go of it. `loading`: only if the caller is loading it still."""
        drives = self._leading().drives
        try:
            await self._commit_for(caller, DeleteModel(model, generation, force, loading))
        except _Refused as refused:
            if refused.answer.reason != Reason.CONFLICT:
                raise
            raise Refusal(
                Reason.CONFLICT,
                f"{refused.answer.message}, by {self._holder(refused.answer.holder)}",
                field="force",
                hint="stop its workers, or delete it all the same (force)",
            ) from None
        await drives.until_gone(model)

    async def _commit_spec(self, caller: Caller, command: CreateModel | LoadModel) -> Answer:
        try:
            return await self._commit_for(caller, command)
        except _Refused as refused:
            there = self._machine.models.get(refused.answer.value)
            if refused.answer.reason != Reason.SPEC_MISMATCH or there is None:
                raise
            raise mismatch(there.spec, command.spec) from None

    async def _complete(self, tenure: Tenure, model: ModelId) -> Model:
        """RULES M2."""
        found = self._machine.models.get(model)
        if found is None or not found.complete:
            await tenure.drives.everywhere(model, lambda group: group.view >= 1)
        return self.describe(model=model)

    def _loaded_by_another(self, name: str, answer: Answer) -> Refusal:
        key = LeaseKey(answer.value, 0, 1, initialization=True)
        ends_ms = self._leases.ends_in_ms(key, self._now_ms())
        holder = self._holder(answer.holder)
        return Refusal(
            Reason.CONFLICT,
            f"model {name!r} is being loaded by {holder}; if that is gone, its lease ends in {ends_ms} ms",
            holder=holder,
            lease_ends_ms=ends_ms,
            hint="wait for it, or for its lease to end, and load again",
        )

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

    async def claim_initialization(self, caller: Caller, model: ModelId, generation: int) -> InitializationClaim:
        self._leading()
        try:
            answer = await self._commit_for(caller, ClaimInitialization(model, generation))
        except _Refused as refused:
            if refused.answer.reason == Reason.ALREADY_OPEN:
                return InitializationClaim(granted=False, open=True)
            if refused.answer.reason != Reason.RANK_TAKEN:
                raise
            lease = self.describe(model=model).initialization
            key = LeaseKey(model, 0, lease.epoch, initialization=True)
            return InitializationClaim(
                granted=False,
                holder=self._holder(refused.answer.holder),
                lease_ends_ms=self._leases.ends_in_ms(key, self._now_ms()),
            )
        self._leases.renewed(LeaseKey(model, 0, answer.value, initialization=True), self._now_ms())
        return InitializationClaim(granted=True, epoch=answer.value)

    async def open_model(self, caller: Caller, model: ModelId, generation: int, epoch: int) -> Model:
        """Opens a model whose blocks all hold values of `epoch`, and returns when every data group has opened."""
        tenure = self._leading()
        found = self.describe(model=model)
        if not found.open:
            await self._refuse_incomplete(tenure, found, epoch)
        await self._commit_for(caller, ModelOpened(model, generation, epoch))
        await tenure.drives.everywhere(model, lambda group: group.opened)
        return self.describe(model=model)

    async def claim_rank(self, caller: Caller, model: ModelId, generation: int, rank: int) -> RankClaim:
        """The rank, once every data group of the model has applied the view that grants it (RULES S9)."""
        tenure = self._leading()
        try:
            answer = await self._commit_for(caller, ClaimRank(model, generation, rank))
        except _Refused as refused:
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
        """Committed and applied here, or a `Refusal`; `_Refused` where apply said no."""
        outcome = await self._propose(commands.encode(envelope))
        match outcome:
            case Committed(result=Answer() as answer):
                if not answer.ok:
                    raise _Refused(answer)
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

    async def _refuse_incomplete(self, tenure: Tenure, model: Model, epoch: int) -> None:
        """Ask every group before group 0 decides: once it has, there is no way back (RULES M3)."""
        if epoch != model.initialization.epoch:
            raise Refusal(
                Reason.STALE_LEASE,
                f"epoch {epoch} of the initialization lease is not the current one, {model.initialization.epoch}",
                epoch=model.initialization.epoch,
            )
        question = OpenShard(model.model, model.generation, epoch, check_only=True)
        replies = await tenure.drives.ask_all(model, question)
        missing = [f"group {group}: {reply.message}" for group, reply in replies.items() if not reply.ok]
        if missing:
            raise Refusal(
                Reason.NOT_OPEN,
                f"not every block holds values of epoch {epoch}: {'; '.join(missing)}",
                code="FAILED_PRECONDITION",
                epoch=epoch,
                hint="send the missing initial values",
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


class _Refused(Refusal):
    """Apply said no."""

    def __init__(self, answer: Answer) -> None:
        reason = Reason(answer.reason)
        code = "FAILED_PRECONDITION" if reason is Reason.OUT_OF_ORDER else None
        super().__init__(reason, answer.message, code=code, epoch=answer.value)
        self.answer = answer


def _shown(value: object) -> str:
    return value.name if isinstance(value, IntEnum) else str(value)


def mismatch(existing: ModelSpec, asked: ModelSpec) -> Refusal:
    """Both specs, as far as they differ."""
    differences = [
        (field, _shown(here), _shown(there))
        for field in ("optimizer", "ranks", "reduction", "non_finite", "block_bytes", "log_codec")
        if (here := getattr(existing, field)) != (there := getattr(asked, field))
    ]
    if existing.tensors != asked.tensors:
        pairs = zip(existing.tensors, asked.tensors, strict=False)
        first = next((i for i, (here, there) in enumerate(pairs) if here != there), None)
        if first is None:
            differences.append(("tensors", *_counted(existing.tensors, asked.tensors)))
        else:
            differences.append((f"tensors[{first}]", _tensor(existing.tensors[first]), _tensor(asked.tensors[first])))
    expected = "; ".join(f"{field} {here}" for field, here, _ in differences)
    received = "; ".join(f"{field} {there}" for field, _, there in differences)
    return Refusal(
        Reason.SPEC_MISMATCH,
        f"model {existing.name!r} exists with another spec: it has {expected}; asked was {received}",
        field=differences[0][0] if differences else "spec",
        expected=expected,
        received=received,
        hint="open the model with its own spec, or take another name",
    )


def _tensor(tensor: TensorSpec) -> str:
    return f"{tensor.name!r} of shape {tensor.shape}"


def _counted(existing: tuple[TensorSpec, ...], asked: tuple[TensorSpec, ...]) -> tuple[str, str]:
    """Of two that begin alike; the longer one with the first tensor that the other has not."""
    most = min(len(existing), len(asked))
    here, there = (
        f"{len(one)} tensors" + (f", with {_tensor(one[most])}" if len(one) > most else "") for one in (existing, asked)
    )
    return here, there
