"""How models come and go, for clients at group 0's leader: created or loaded, filled, opened, deleted.

Owns what has to be so before each of these is answered. Invariants: a model is there when all its groups have it
(RULES M2), open when all have opened (M3), gone when all have let go of it; it is opened only once every group said
that its values are complete, for there is no way back. Must not know: gRPC, what apply makes of a command.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from paramserver.catalogue.commands import (
    ClaimInitialization,
    ClientCommand,
    CreateModel,
    DeleteModel,
    LoadModel,
    ModelOpened,
)
from paramserver.catalogue.drive import Drives, OpenShard
from paramserver.catalogue.leases import LeaseClock, LeaseKey
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.mismatch import mismatch
from paramserver.catalogue.models import load_problems
from paramserver.catalogue.sessions import Answer, Caller, NotApplied
from paramserver.catalogue.state import Loaded, Model, ModelId, SessionId
from paramserver.wire.errors import Reason, Refusal, refuse_problems
from paramserver.wire.spec import ModelSpec

LOADING_RETRY_MS = 200
"""When to ask again for a model whose name is being loaded."""


@dataclass(frozen=True, slots=True)
class InitializationClaim:
    """Not `granted`: the model is `open`, or `holder` has the lease for that long."""

    granted: bool
    epoch: int = 0
    open: bool = False
    holder: str = ""
    lease_ends_ms: int = 0


class Lifecycle:
    """All raise `Refusal`. drives: of the present tenure, or a refusal that says who leads. commit: in group 0, for a
    caller whose session it checks. holder: a session as people know it."""

    def __init__(
        self,
        machine: CatalogueMachine,
        leases: LeaseClock,
        *,
        now_ms: Callable[[], int],
        drives: Callable[[], Drives],
        describe: Callable[[ModelId], Model],
        commit: Callable[[Caller, ClientCommand], Awaitable[Answer]],
        holder: Callable[[SessionId], str],
    ) -> None:
        self._machine = machine
        self._leases = leases
        self._now_ms = now_ms
        self._drives = drives
        self._describe = describe
        self._commit = commit
        self._holder = holder

    async def create_model(self, caller: Caller, spec: ModelSpec) -> Model:
        """The model, complete in all its groups (RULES M2)."""
        drives = self._drives()
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
        return await self._complete(drives, answer.value)

    async def load_model(self, caller: Caller, spec: ModelSpec, loaded: Loaded) -> Model:
        """A new generation of the model of that name, or its first, complete in all its groups: its initialization
        lease is the caller's, and it takes the name when it is opened."""
        drives = self._drives()
        refuse_problems(spec.validate())
        if problems := load_problems(loaded):
            raise Refusal(Reason.INVALID, problems)
        try:
            answer = await self._commit_spec(caller, LoadModel(spec, loaded))
        except NotApplied as refused:
            if refused.answer.reason != Reason.CONFLICT or not refused.answer.value:
                raise
            raise self._loaded_by_another(spec.name, refused.answer) from None
        # A retry says that the caller is there, who cannot renew yet.
        self._leases.renewed(LeaseKey(answer.value, 0, 1, initialization=True), self._now_ms())
        return await self._complete(drives, answer.value)

    async def delete_model(
        self, caller: Caller, model: ModelId, generation: int, *, force: bool, loading: bool = False
    ) -> None:
        """Returns when every data group has let go of it. `loading`: only if the caller is loading it still."""
        drives = self._drives()
        try:
            await self._commit(caller, DeleteModel(model, generation, force, loading))
        except NotApplied as refused:
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
            return await self._commit(caller, command)
        except NotApplied as refused:
            there = self._machine.models.get(refused.answer.value)
            if refused.answer.reason != Reason.SPEC_MISMATCH or there is None:
                raise
            raise mismatch(there.spec, command.spec) from None

    async def _complete(self, drives: Drives, model: ModelId) -> Model:
        """RULES M2."""
        found = self._machine.models.get(model)
        if found is None or not found.complete:
            await drives.everywhere(model, lambda group: group.view >= 1)
        return self._describe(model)

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

    async def claim_initialization(self, caller: Caller, model: ModelId, generation: int) -> InitializationClaim:
        self._drives()
        try:
            answer = await self._commit(caller, ClaimInitialization(model, generation))
        except NotApplied as refused:
            if refused.answer.reason == Reason.ALREADY_OPEN:
                return InitializationClaim(granted=False, open=True)
            if refused.answer.reason != Reason.RANK_TAKEN:
                raise
            lease = self._describe(model).initialization
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
        drives = self._drives()
        found = self._describe(model)
        if not found.open:
            await self._refuse_incomplete(drives, found, epoch)
        await self._commit(caller, ModelOpened(model, generation, epoch))
        await drives.everywhere(model, lambda group: group.opened)
        return self._describe(model)

    async def _refuse_incomplete(self, drives: Drives, model: Model, epoch: int) -> None:
        """Ask every group before group 0 decides: once it has, there is no way back (RULES M3)."""
        if epoch != model.initialization.epoch:
            raise Refusal(
                Reason.STALE_LEASE,
                f"epoch {epoch} of the initialization lease is not the current one, {model.initialization.epoch}",
                epoch=model.initialization.epoch,
            )
        question = OpenShard(model.model, model.generation, epoch, check_only=True)
        replies = await drives.ask_all(model, question)
        missing = [f"group {group}: {reply.message}" for group, reply in replies.items() if not reply.ok]
        if missing:
            raise Refusal(
                Reason.NOT_OPEN,
                f"not every block holds values of epoch {epoch}: {'; '.join(missing)}",
                code="FAILED_PRECONDITION",
                epoch=epoch,
                hint="send the missing initial values",
            )
