"""Carries group 0's intent into the data groups (RULES I3, M2, S9).

For every (model, group) there is what group 0 decided (the shard exists, it is open, view n holds) and what the group
has confirmed to this leader. A drive sends the commands in between, one at a time, again and again until they are
confirmed: all of them are idempotent, so a new leader starts from nothing. Invariants: only a leader of group 0 drives;
at most DRIVES_MAX commands are on their way; a wait ends with the tenure. Must not know: where groups live, what blocks
hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from consensus.core.interface import GroupId
from paramserver.catalogue.commands import PinAdvanced, RateAdvanced
from paramserver.catalogue.state import Leaving, Model, ModelId, PinStage, RateChange, RateStage, Shard
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.protos import View

log = logging.getLogger(__name__)

T = TypeVar("T")

PASSED = "PASSED"
"""A data group's reason: it is past that step already."""
DRIVES_MAX = 16
"""Commands to data groups on their way at once; the others wait."""
BACK_OFF_MS = (20, 50, 100, 250, 500, 1000)
"""Between attempts; the last one repeats."""


@dataclass(frozen=True, slots=True)
class CreateShard:
    """The group gets its shard of the model, with no values and not open."""

    model: Model
    shard: Shard


@dataclass(frozen=True, slots=True)
class OpenShard:
    """`check_only`: does every block have values of that epoch? Nothing changes."""

    model: ModelId
    generation: int
    epoch: int
    check_only: bool = False


@dataclass(frozen=True, slots=True)
class SetView:
    model: ModelId
    generation: int
    view: View


@dataclass(frozen=True, slots=True)
class HoldShard:
    """No update of `step` or a later one until change `number` is there. `check_only`: how far is the model? Nothing
    changes."""

    model: ModelId
    generation: int
    number: int
    step: int
    check_only: bool = False


@dataclass(frozen=True, slots=True)
class SetRate:
    """The learning rate from that step on; the hold of that number ends."""

    model: ModelId
    generation: int
    change: RateChange


@dataclass(frozen=True, slots=True)
class PinShard:
    """Keep that version of every block until the pin of that number ends."""

    model: ModelId
    generation: int
    number: int
    step: int


@dataclass(frozen=True, slots=True)
class UnpinShard:
    model: ModelId
    generation: int
    number: int


@dataclass(frozen=True, slots=True)
class DeleteShard:
    """The group lets go of the model. `settled`: every model of a lower id has been created in all its groups."""

    model: ModelId
    generation: int
    settled: int


ShardCommand: TypeAlias = CreateShard | OpenShard | SetView | HoldShard | SetRate | PinShard | UnpinShard | DeleteShard


@dataclass(frozen=True, slots=True)
class ShardReply:
    """A data group's answer, committed and applied there. `view`: the number it holds now; `lowest_version`: of the
    model's blocks in that group."""

    ok: bool
    reason: str = ""
    message: str = ""
    lowest_version: int = 0
    view: int = 0
    highest_version: int = 0
    """Of the model's blocks in that group; where a hold came too late, the first step at which it could be."""


Execute: TypeAlias = Callable[[GroupId, ShardCommand], Awaitable[ShardReply]]
"""Commits a command in a data group, wherever its leader is. Raises `Refusal` or OSError-like errors when it could not;
the command may have taken effect all the same."""


@dataclass(slots=True)
class Confirmed:
    """What a group has confirmed to this leader in this tenure."""

    created: bool = False
    opened: bool = False
    view: int = 0
    lowest_version: int = 0
    held: tuple[int, int] = (0, 0)
    """(number, step) of the hold for a change of the learning rate."""
    rate: int = 0
    """The last change that it has."""
    pinned: tuple[int, int] = (0, 0)
    """(number, step) of the pin."""
    unpinned: int = 0
    trouble: str = ""
    """Why the last attempt failed."""


class Drives:
    """All drives of one tenure. `report_created` commits in group 0 that a shard exists."""

    def __init__(
        self,
        models: Callable[[], Mapping[ModelId, Model]],
        execute: Execute,
        report_created: Callable[[Model, GroupId], Awaitable[None]],
        advanced: Callable[[RateAdvanced | PinAdvanced], Awaitable[None]] | None = None,
        leaving: Callable[[], Mapping[ModelId, Leaving]] = dict,
        report_deleted: Callable[[ModelId, GroupId], Awaitable[None]] | None = None,
    ) -> None:
        """`advanced` commits in group 0 how far a change of the learning rate, or a pin, is now; `report_deleted` that
        a group has let go of a model that is `leaving`."""
        self._leaving = leaving
        self._report_deleted = report_deleted
        self._models = models
        self._execute = execute
        self._report_created = report_created
        self._advanced = advanced
        self._confirmed: dict[tuple[ModelId, GroupId], Confirmed] = {}
        self._tasks: dict[tuple[ModelId, GroupId], asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(DRIVES_MAX)
        self._progress = asyncio.Event()
        self._ended = False

    # --- the tenure

    def poke(self, model: ModelId) -> None:
        """Something was decided about the model: carry it out, where a group has not confirmed it yet."""
        if self._ended:
            return
        for group in self._groups(model):
            key = (model, group)
            if key not in self._tasks and self._next(model, group, self._of(model, group)) is not None:
                self._tasks[key] = asyncio.create_task(self._drive(key), name=f"drive model {model} group {group}")

    def poke_all(self) -> None:
        for model in (*self._models(), *self._leaving()):
            self.poke(model)
        for key in [key for key in self._confirmed if key[0] not in self._models() and key not in self._tasks]:
            if key[0] not in self._leaving():
                del self._confirmed[key]
        self._signal()

    def end(self) -> None:
        """Leadership is lost: whoever waits is told."""
        self._ended = True
        for task in self._tasks.values():
            task.cancel()
        self._progress.set()

    # --- waiting

    async def everywhere(self, model: ModelId, done: Callable[[Confirmed], bool]) -> list[Confirmed]:
        """What every group of the model has confirmed, once it is `done` in all. Raises `Refusal` when the tenure ends;
        the deadline is the caller's."""
        while True:
            if self._ended:
                raise Refusal(Reason.NOT_READY, "group 0's leader changed; send it again")
            confirmed = [self._of(model, group) for group in self._decided(model).groups]
            if all(done(one) for one in confirmed):
                return confirmed
            self.poke(model)
            progress = self._progress
            await progress.wait()

    async def until(self, model: ModelId, done: Callable[[Model], T | None]) -> T:
        """What `done` says of the model as group 0 has it, once it is not None. Raises `Refusal` as `everywhere`."""
        while True:
            if self._ended:
                raise Refusal(Reason.NOT_READY, "group 0's leader changed; send it again")
            found = done(self._decided(model))
            if found is not None:
                return found
            self.poke(model)
            progress = self._progress
            await progress.wait()

    async def until_gone(self, model: ModelId) -> None:
        """Until every group has let go of a model that was deleted. Raises `Refusal` as `everywhere`."""
        while model in self._leaving():
            if self._ended:
                raise Refusal(Reason.NOT_READY, "group 0's leader changed; send it again")
            self.poke(model)
            progress = self._progress
            await progress.wait()

    async def ask_all(self, model: Model, command: ShardCommand) -> dict[GroupId, ShardReply]:
        """Every group's answer to one command."""
        replies = await asyncio.gather(*(self._run(group, command) for group in model.groups))
        return dict(zip(model.groups, replies, strict=True))

    def troubles(self) -> list[str]:
        """One line for each drive that fails at the moment."""
        return [
            f"group {group} does not take model {model}: {confirmed.trouble}"
            for (model, group), confirmed in self._confirmed.items()
            if confirmed.trouble
        ]

    # --- one drive

    async def _drive(self, key: tuple[ModelId, GroupId]) -> None:
        model, group = key
        confirmed = self._of(model, group)
        failures = 0
        try:
            while (command := self._next(model, group, confirmed)) is not None:
                trouble = await self._attempt(group, command, confirmed)
                if trouble and trouble != confirmed.trouble:
                    log.info("group %d, model %d: %s", group, model, trouble)
                confirmed.trouble = trouble
                if trouble:
                    await asyncio.sleep(BACK_OFF_MS[min(failures, len(BACK_OFF_MS) - 1)] / 1000)
                    failures += 1
                else:
                    failures = 0
                    self._signal()
        finally:
            del self._tasks[key]
            self._signal()

    def _groups(self, model: ModelId) -> tuple[GroupId, ...]:
        """That have something to hear of it."""
        decided, gone = self._models().get(model), self._leaving().get(model)
        if decided is not None:
            return decided.groups
        return tuple(sorted(gone.groups)) if gone is not None else ()

    def _decided(self, model: ModelId) -> Model:
        found = self._models().get(model)
        if found is None:
            raise Refusal(Reason.NOT_FOUND, f"model {model} was deleted meanwhile", field="model", received=str(model))
        return found

    def _next(self, number: ModelId, group: GroupId, confirmed: Confirmed) -> ShardCommand | None:
        """The first thing that was decided and is not confirmed."""
        gone = self._leaving().get(number)
        if gone is not None and group in gone.groups:
            return DeleteShard(number, gone.generation, self._settled(number))
        model = self._models().get(number)
        if model is None:
            return None
        shard = model.shard_of(group)
        if shard is not None and not confirmed.created and group not in model.created:
            return CreateShard(model, shard)
        if model.open and not confirmed.opened:
            return OpenShard(model.model, model.generation, model.initialization.epoch)
        if confirmed.view < model.view.number:
            return SetView(model.model, model.generation, model.view)
        change = model.rate_under_way
        if change is not None and change.stage is RateStage.SETTLED and confirmed.rate < change.number:
            return SetRate(model.model, model.generation, change)
        if change is not None and change.stage is RateStage.HOLDING and confirmed.held != (change.number, change.step):
            return HoldShard(model.model, model.generation, change.number, change.step)
        pin = model.pin
        if pin is not None and pin.stage is PinStage.PLACING and confirmed.pinned != (pin.number, pin.step):
            return PinShard(model.model, model.generation, pin.number, pin.step)
        if pin is not None and pin.stage is PinStage.ENDED and confirmed.unpinned < pin.number:
            return UnpinShard(model.model, model.generation, pin.number)
        return None

    def _settled(self, model: ModelId) -> ModelId:
        """Models of ids up to the deleted one may still be on their way into their groups: the lowest of these."""
        return min(
            (one.model for one in self._models().values() if not one.complete and one.model < model), default=model + 1
        )

    async def _attempt(self, group: GroupId, command: ShardCommand, confirmed: Confirmed) -> str:
        """Empty, or why it failed."""
        try:
            reply = await self._run(group, command)
            if isinstance(command, HoldShard | PinShard) and reply.reason == PASSED:
                await self._raise(command, reply.highest_version)
                return ""
            if not reply.ok:
                return f"{reply.reason}: {reply.message}"
            match command:
                case CreateShard(model, _):
                    await self._report_created(model, group)
                    confirmed.created = True
                case OpenShard():
                    confirmed.opened = True
                case SetView(view=view):
                    confirmed.view = max(view.number, reply.view)
                    confirmed.lowest_version = reply.lowest_version
                case HoldShard(model_id, _, number, step):
                    settled = RateAdvanced(model_id, command.generation, number, step, RateStage.SETTLED)
                    await self._when_all(settled, group, lambda one: one.held == (number, step))
                    confirmed.held = (number, step)
                case SetRate(model_id, _, change):
                    done = RateAdvanced(model_id, command.generation, change.number, change.step, RateStage.DONE)
                    await self._when_all(done, group, lambda one: one.rate >= change.number)
                    confirmed.rate = change.number
                case PinShard(model_id, _, number, step):
                    placed = PinAdvanced(model_id, command.generation, number, step, PinStage.PLACED)
                    await self._when_all(placed, group, lambda one: one.pinned == (number, step))
                    confirmed.pinned = (number, step)
                case UnpinShard(number=number):
                    confirmed.unpinned = number
                case DeleteShard(model_id):
                    if self._report_deleted is not None:
                        await self._report_deleted(model_id, group)
        except Refusal as refusal:
            return f"{refusal.reason}: {refusal.message}"
        except Exception as error:  # a defect must not stop the drive, nor spin it
            log.exception("a drive of group %d failed", group)
            return f"{type(error).__name__}"
        return ""

    async def _raise(self, command: HoldShard | PinShard, first: int) -> None:
        """The group is past that step: another one, with as much time to get there once more as it took now."""
        later = first + (first - command.step) + 1
        place = (command.model, command.generation, command.number, later)
        if isinstance(command, PinShard):
            await self._advance(PinAdvanced(*place, PinStage.PLACING))
        else:
            await self._advance(RateAdvanced(*place, RateStage.HOLDING))

    async def _when_all(
        self, reached: RateAdvanced | PinAdvanced, group: GroupId, done: Callable[[Confirmed], bool]
    ) -> None:
        """Report what is reached if `group` is the last one that was missing. Before that is noted: what fails here is
        asked for again."""
        others = (one for one in self._decided(reached.model).groups if one != group)
        if all(done(self._of(reached.model, other)) for other in others):
            await self._advance(reached)

    async def _advance(self, reached: RateAdvanced | PinAdvanced) -> None:
        """In group 0, unless it knows already, or knows better."""
        model = self._decided(reached.model)
        now = model.pinned if isinstance(reached, PinAdvanced) else model.rate_under_way
        if self._advanced is None or now is None or now.number != reached.number or now.stage > reached.stage:
            return
        raised = now.stage == reached.stage == 1 and now.step < reached.step
        if raised or (now.step == reached.step and now.stage < reached.stage):
            await self._advanced(reached)

    async def _run(self, group: GroupId, command: ShardCommand) -> ShardReply:
        async with self._slots:
            return await self._execute(group, command)

    def _of(self, model: ModelId, group: GroupId) -> Confirmed:
        return self._confirmed.setdefault((model, group), Confirmed())

    def _signal(self) -> None:
        progress, self._progress = self._progress, asyncio.Event()
        progress.set()
