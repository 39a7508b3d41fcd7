"""Group 0's state machine: models, placement, views, ranks, sessions.

Invariants: a command with a session takes effect at most once (RULES A4); ids, view numbers and epochs only rise; a
model once created keeps its spec, once open never takes initial values again (M1, M3). It records intent: what a data
group acts on is in that group's own log, carried there by `leader.py` (I3). Deterministic: nothing here reads a clock;
a lease ends by a command (I4). `apply` runs on the group's lane; `models`, `nodes` and `session()` may be read from any
thread, for every published value is immutable. Must not know: weights, gRPC, who leads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from consensus.core.interface import Entry, GroupId, NodeId, Payload
from paramserver.catalogue import models as table
from paramserver.catalogue import pins, rates, sharding, snapshots
from paramserver.catalogue.bootstrap import CATALOGUE_GROUP
from paramserver.catalogue.commands import (
    BadCommand,
    ChangeRate,
    ClaimInitialization,
    ClaimRank,
    ClientCommand,
    Command,
    CreateModel,
    DeleteModel,
    Envelope,
    ExpireLease,
    LoadModel,
    ModelOpened,
    OpenSession,
    PinAdvanced,
    PinModel,
    RateAdvanced,
    RegisterNode,
    ReleasePin,
    ReleaseRank,
    ShardCreated,
    ShardDeleted,
    decode,
)
from paramserver.catalogue.placement import (
    LeftoverDeleted,
    MoveAdvanced,
    MoveEnded,
    NodeRemoved,
    Placement,
    Reshape,
    advance,
    register,
    reshape,
)
from paramserver.catalogue.sessions import Answer, Session, Sessions, refusal
from paramserver.catalogue.state import (
    InitializationLease,
    Lease,
    Leaving,
    Model,
    ModelId,
    Node,
    SessionId,
)
from paramserver.wire.errors import Reason
from paramserver.wire.protos import View, shared_spec_proto

T = TypeVar("T")

MODELS_MAX = 1024
"""Models in a cluster; creating more is refused."""
SPECS_BYTES_MAX = 64 << 20
"""Sum of all serialized specs."""
NAME_CHARS_MAX = 200
CLIENT_BYTES = 16
DIGEST_BYTES = 32
SESSION_BYTES = 512
"""What a session counts for in `size_bytes`; an estimate."""


class CatalogueMachine:
    """`StateMachine` of group 0. `data_groups` is what the member list gives, equal on every node."""

    def __init__(self, data_groups: tuple[GroupId, ...]) -> None:
        self._data_groups = data_groups
        self._sessions = Sessions()
        self._next_model: ModelId = 1
        self._specs_bytes = 0
        self._held = dict.fromkeys(data_groups, 0)
        self.models: Mapping[ModelId, Model] = {}
        """Replaced, never changed in place."""
        self.leaving: Mapping[ModelId, Leaving] = {}
        """As `models`."""
        self.placement = Placement()

    def reset(self) -> None:
        """As new: a replica of group 0 begins here, or ended."""
        self._sessions = Sessions()
        self._next_model = 1
        self._specs_bytes = 0
        self._held = dict.fromkeys(self._data_groups, 0)
        self.models = {}
        self.leaving = {}
        self.placement = Placement()

    # --- reading, from any thread

    @property
    def nodes(self) -> Mapping[NodeId, Node]:
        return self.placement.nodes

    @property
    def groups(self) -> tuple[GroupId, ...]:
        """All there are, this one first."""
        return (CATALOGUE_GROUP, *self._data_groups)

    def session(self, session: SessionId) -> Session | None:
        return self._sessions.get(session)

    def named(self, name: str) -> Model | None:
        return table.named(self.models.values(), name)

    def being_loaded(self, name: str) -> Model | None:
        return table.being_loaded(self.models.values(), name)

    # --- StateMachine

    def apply(self, entry: Entry) -> Answer:
        try:
            envelope = decode(entry.payload)
        except BadCommand as error:
            return refusal(Reason.INVALID, str(error))
        return self._apply_once(envelope) if envelope.session else self._apply(envelope.command, 0)

    def snapshot(self) -> Iterator[Payload]:
        # Values are immutable and the lists are made here: what is written later is this moment's state.
        return snapshots.write(
            next_model=self._next_model,
            next_session=self._sessions.next_session,
            placement=self.placement,
            sessions=list(self._sessions),
            models=list(self.models.values()),
            leaving=list(self.leaving.values()),
        )

    def restore(self, chunks: Iterator[memoryview]) -> None:
        contents = snapshots.read(chunks)
        sessions = Sessions()
        for session in contents.sessions:
            sessions.put(session)
        sessions.next_session = contents.next_session
        self._sessions = sessions
        self._next_model = contents.next_model
        self._specs_bytes = sum(_spec_bytes(model) for model in contents.models)
        self.placement = contents.placement
        self.models = {model.model: model for model in contents.models}
        self.leaving = {gone.model: gone for gone in contents.leaving}
        self._held = sharding.loads(self._data_groups, contents.models)

    def size_bytes(self) -> int:
        return self._specs_bytes + SESSION_BYTES * len(self._sessions) + 256 * len(self.models)

    # --- deduplication

    def _apply_once(self, envelope: Envelope) -> Answer:
        session = self._sessions.get(envelope.session)
        if session is None:
            return refusal(Reason.UNKNOWN_SESSION, f"session {envelope.session} is not open; open a new one")
        if not session.owns(envelope.secret_digest):
            return refusal(Reason.WRONG_SECRET, f"the secret is not that of session {envelope.session}")
        answered = session.answered(envelope.sequence)
        if answered is not None:
            return answered
        if envelope.sequence <= session.forgotten:
            message = f"sequence {envelope.sequence} is not above {session.forgotten}, whose answer is no longer kept"
            return refusal(Reason.OUT_OF_ORDER, message)
        answer = self._apply(envelope.command, session.session)
        self._sessions.put(session.with_answer(envelope.sequence, answer))
        return answer

    def _apply(self, command: Command, session: SessionId) -> Answer:
        match command:
            case OpenSession():
                return self._open_session(command)
            case RegisterNode(node):
                self.placement = register(self.placement, node)
                return Answer(ok=True)
            case MoveAdvanced() | MoveEnded() | LeftoverDeleted() | NodeRemoved():
                self.placement, answer = advance(self.placement, command)
                return answer
            case ShardCreated():
                return self._shard_created(command)
            case ShardDeleted():
                return self._shard_deleted(command)
            case ExpireLease():
                return self._expire(command)
            case RateAdvanced():
                return self._rate(command)
            case PinAdvanced():
                return self._pin(command, 0)
            case _ if session == 0:
                return refusal(Reason.UNKNOWN_SESSION, "this command needs a session")
            case _:
                return self._of_client(command, session)

    def _of_client(self, command: ClientCommand, session: SessionId) -> Answer:
        match command:
            case CreateModel():
                return self._create(command)
            case LoadModel():
                return self._load(command, session)
            case DeleteModel():
                return self._delete(command, session)
            case ClaimInitialization():
                return self._claim_initialization(command, session)
            case ModelOpened():
                return self._open(command, session)
            case ClaimRank():
                return self._claim_rank(command, session)
            case ReleaseRank():
                return self._release(command, session)
            case ChangeRate():
                return self._rate(command)
            case PinModel() | ReleasePin():
                return self._pin(command, session)
            case Reshape():
                self.placement, answer = reshape(self.placement, command, self.groups)
                return answer

    # --- sessions

    def _open_session(self, command: OpenSession) -> Answer:
        if len(command.client) != CLIENT_BYTES or len(command.secret_digest) != DIGEST_BYTES:
            return refusal(Reason.INVALID, f"client takes {CLIENT_BYTES} bytes, secret_digest {DIGEST_BYTES}")
        if len(command.name) > NAME_CHARS_MAX:
            return refusal(Reason.INVALID, f"name has {len(command.name)} characters, at most {NAME_CHARS_MAX}")
        known = self._sessions.find(command.client)
        if known is not None:
            if not known.owns(command.secret_digest):
                return refusal(Reason.WRONG_SECRET, "this client id has another secret")
            self._sessions.put(known)
            return Answer(ok=True, value=known.session)
        opened = self._sessions.open(
            client=command.client, secret_digest=command.secret_digest, name=command.name, in_use=self._in_use
        )
        if opened is None:
            return refusal(Reason.TOO_LARGE, "all sessions are in use")
        return Answer(ok=True, value=opened.session)

    def _in_use(self, session: SessionId) -> bool:
        """Holds a lease, or held one last: it may come back and claim it."""
        return any(
            model.initialization.session == session
            or any(lease.held and lease.session == session for lease in model.leases)
            for model in self.models.values()
        )

    # --- models

    def _create(self, command: CreateModel) -> Answer:
        spec = command.spec
        existing = self.named(spec.name)
        if existing is not None:
            if existing.spec == spec:
                return Answer(ok=True, value=existing.model)
            message = f"model {spec.name!r} exists with another spec"
            return refusal(Reason.SPEC_MISMATCH, message, value=existing.model)
        problems = spec.validate()
        if problems:  # checked before it was proposed; here against a proposer that did not
            return refusal(Reason.INVALID, "; ".join(str(problem) for problem in problems))
        if self.being_loaded(spec.name) is not None:
            return refusal(Reason.CONFLICT, f"model {spec.name!r} is being loaded from a checkpoint")
        return self._add(table.new(self._next_model, command, self._held))

    def _load(self, command: LoadModel, session: SessionId) -> Answer:
        problems = command.spec.validate()
        if problems:
            return refusal(Reason.INVALID, "; ".join(str(problem) for problem in problems))
        made = table.load(self.models, self._next_model, command, session, self._held)
        return made if isinstance(made, Answer) else self._add(made)

    def _add(self, created: Model) -> Answer:
        if len(self.models) >= MODELS_MAX:
            return refusal(Reason.TOO_LARGE, f"the cluster holds {MODELS_MAX} models, its bound")
        if self._specs_bytes + _spec_bytes(created) > SPECS_BYTES_MAX:
            return refusal(Reason.TOO_LARGE, f"all specs together would be above {SPECS_BYTES_MAX} bytes")
        self._next_model += 1
        self._specs_bytes += _spec_bytes(created)
        sharding.add(self._held, created)
        self._put(created)
        return Answer(ok=True, value=created.model)

    def _delete(self, command: DeleteModel, session: SessionId) -> Answer:
        model = self._find(command.model, command.generation)
        if isinstance(model, Answer):
            return model
        answer = table.delete(model, command, session)
        if answer.ok:
            self._remove(model)
        return answer

    def _remove(self, model: Model) -> None:
        """Its name is free; the data groups are told until all have let go of it."""
        self.models = {number: one for number, one in self.models.items() if number != model.model}
        self.leaving = {**self.leaving, model.model: table.leaving(model)}
        self._specs_bytes -= _spec_bytes(model)
        sharding.add(self._held, model, sign=-1)

    def _shard_deleted(self, command: ShardDeleted) -> Answer:
        gone = self.leaving.get(command.model)
        if gone is not None:
            left = replace(gone, groups=gone.groups - {command.group})
            others = {number: one for number, one in self.leaving.items() if number != gone.model}
            self.leaving = {**others, gone.model: left} if left.groups else others
        return Answer(ok=True)

    def _shard_created(self, command: ShardCreated) -> Answer:
        model = self._find(command.model, command.generation)
        if isinstance(model, Answer):
            return model
        if model.shard_of(command.group) is None:
            return refusal(Reason.NOT_FOUND, f"group {command.group} has no shard of model {command.model}")
        self._put(replace(model, created=model.created | {command.group}))
        return Answer(ok=True)

    def _claim_initialization(self, command: ClaimInitialization, session: SessionId) -> Answer:
        model = self._find(command.model, command.generation)
        if isinstance(model, Answer):
            return model
        if model.open:
            return refusal(Reason.ALREADY_OPEN, "the model is open: its values are there")
        if model.loading:
            return refusal(Reason.CONFLICT, "the model is being loaded from a checkpoint: it takes no initial values")
        lease = model.initialization
        if lease.session not in (0, session):
            return refusal(Reason.RANK_TAKEN, "another client is sending initial values", holder=lease.session)
        taken = InitializationLease(epoch=lease.epoch + 1, session=session)
        self._put(replace(model, initialization=taken))
        return Answer(ok=True, value=taken.epoch)

    def _open(self, command: ModelOpened, session: SessionId) -> Answer:
        model = self._find(command.model, command.generation)
        if isinstance(model, Answer):
            return model
        lease = model.initialization
        if model.open:
            # Sent again under another sequence number: fine for the epoch that was opened.
            if command.epoch == lease.epoch:
                return Answer(ok=True, value=lease.epoch)
            return refusal(Reason.ALREADY_OPEN, f"the model was opened with epoch {lease.epoch}", value=lease.epoch)
        if command.epoch != lease.epoch or lease.session != session:
            message = f"epoch {command.epoch} of the initialization lease is not the current one, {lease.epoch}"
            return refusal(Reason.STALE_LEASE, message, value=lease.epoch, holder=lease.session)
        before = table.replaced(self.models, model)
        if isinstance(before, Answer):
            return before
        if before is not None:
            self._remove(before)
        # The lease ends here: nobody can get a higher epoch any more, so every group can complete this one.
        self._put(replace(model, open=True, initialization=replace(lease, session=0)))
        return Answer(ok=True, value=lease.epoch)

    # --- ranks

    def _claim_rank(self, command: ClaimRank, session: SessionId) -> Answer:
        model = self._find(command.model, command.generation)
        if isinstance(model, Answer):
            return model
        if not 0 <= command.rank < len(model.leases):
            return refusal(Reason.INVALID, f"rank {command.rank} is not in 0..{len(model.leases) - 1}")
        lease = model.leases[command.rank]
        if lease.held and lease.session != session:
            return refusal(Reason.RANK_TAKEN, f"rank {command.rank} is held", holder=lease.session, value=lease.epoch)
        taken = Lease(epoch=lease.epoch + 1, session=session, held=True)
        epochs = _with(model.view.lease_epochs, command.rank, taken.epoch)
        view = View(model.view.number + 1, model.view.first_step, epochs)
        self._put(replace(model, leases=_with(model.leases, command.rank, taken), view=view))
        return Answer(ok=True, value=taken.epoch, view=view.number)

    def _release(self, command: ReleaseRank, session: SessionId) -> Answer:
        model = self._find(command.model)
        if isinstance(model, Answer):
            return model
        lease = self._lease(model, command.rank)
        if lease is None or lease.session != session or lease.epoch != command.lease_epoch:
            return refusal(Reason.STALE_LEASE, f"rank {command.rank} is not held under epoch {command.lease_epoch}")
        self._end_lease(model, command.rank)
        return Answer(ok=True)

    def _expire(self, command: ExpireLease) -> Answer:
        model = self._find(command.model)
        if isinstance(model, Answer):
            return model
        if command.initialization:
            lease = model.initialization
            if model.open or lease.session == 0 or lease.epoch != command.lease_epoch:
                return refusal(Reason.STALE_LEASE, "the initialization lease moved on")
            if model.loading:
                self._remove(model)  # who loaded it is gone; the generation before, if any, was never touched
                return Answer(ok=True)
            self._put(replace(model, initialization=replace(lease, session=0)))
            return Answer(ok=True)
        held = self._lease(model, command.rank)
        if held is None or not held.held or held.epoch != command.lease_epoch:
            return refusal(Reason.STALE_LEASE, f"the lease of rank {command.rank} moved on")
        self._end_lease(model, command.rank)
        return Answer(ok=True)

    # --- learning rates

    def _rate(self, command: ChangeRate | RateAdvanced) -> Answer:
        model = self._find(command.model, command.generation)
        if isinstance(model, Answer):
            return model
        if isinstance(command, ChangeRate):
            changed, answer = rates.change(model, command)
        else:
            changed, answer = rates.advance(model, command)
        if answer.ok:
            self._put(changed)
        return answer

    # --- pins

    def _pin(self, command: PinModel | PinAdvanced | ReleasePin, session: SessionId) -> Answer:
        model = self._find(command.model, command.generation)
        if isinstance(model, Answer):
            return model
        match command:
            case PinModel():
                changed, answer = pins.place(model, command, session, self.models.values())
            case PinAdvanced():
                changed, answer = pins.advance(model, command)
            case ReleasePin():
                changed, answer = pins.release(model, command, session)
        if answer.ok and changed != model:
            self._put(changed)
        return answer

    # --- small parts

    def _lease(self, model: Model, rank: int) -> Lease | None:
        return model.leases[rank] if 0 <= rank < len(model.leases) else None

    def _end_lease(self, model: Model, rank: int) -> None:
        """Nobody holds the rank: its epoch stays in the view, and the next one to claim it raises both."""
        self._put(replace(model, leases=_with(model.leases, rank, replace(model.leases[rank], held=False))))

    def _find(self, model: ModelId, generation: int | None = None) -> Model | Answer:
        found = self.models.get(model)
        if found is None:
            return refusal(Reason.NOT_FOUND, f"no model has the id {model}")
        if generation is not None and generation != found.generation:
            message = f"model {model} has generation {found.generation}, not {generation}"
            return refusal(Reason.STALE_EPOCH, message, value=found.generation)
        return found

    def _put(self, model: Model) -> None:
        self.models = {**self.models, model.model: model}


def _with(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*values[:index], value, *values[index + 1 :])


def _spec_bytes(model: Model) -> int:
    return int(shared_spec_proto(model.spec).ByteSize())
