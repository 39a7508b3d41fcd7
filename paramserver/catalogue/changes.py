"""What clients ask of a model while it trains, at group 0's leader: another learning rate (RULES S11), one
version of all of it (R4).

Owns how far a wish has to come before it is answered. Invariants: a wish is checked before it is proposed, so that
nothing is refused inside apply that could have been refused here; one sent again under the same sequence number is not
judged a second time. Must not know: how commands travel, clocks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from paramserver.catalogue.commands import ChangeRate, ClientCommand, PinModel, ReleasePin
from paramserver.catalogue.drive import Drives, HoldShard
from paramserver.catalogue.leases import LeaseKey
from paramserver.catalogue.sessions import Answer, Caller
from paramserver.catalogue.state import Model, ModelId, Pin, PinStage, RateChange, RateStage
from paramserver.wire.errors import Reason, Refusal, refuse_problems
from paramserver.wire.frames import STEP_MAX
from paramserver.wire.spec import float32, rate_problems

TOO_MANY = "TOO_MANY"
"""A data group's reason: as many changes of the rate lie ahead as may."""


class Changes:
    """All raise `Refusal`. drives: of the present tenure, or a refusal that says who leads. answered: whether the
    caller's sequence number was answered before; commit: in group 0, for the caller."""

    def __init__(
        self,
        *,
        drives: Callable[[], Drives],
        describe: Callable[[ModelId], Model],
        answered: Callable[[Caller], bool],
        commit: Callable[[Caller, ClientCommand], Awaitable[Answer]],
        renewed: Callable[[LeaseKey], None],
    ) -> None:
        self._drives = drives
        self._describe = describe
        self._answered = answered
        self._commit = commit
        self._renewed = renewed

    async def set_learning_rate(
        self, caller: Caller, model: ModelId, generation: int, learning_rate: float, from_step: int | None
    ) -> int:
        """Have the rate change, in all blocks at one step: which step, once every data group of the model has the
        change. It is later than `from_step` where training went past that meanwhile."""
        drives = self._drives()
        refuse_problems(rate_problems("learning_rate", learning_rate))
        found = self._describe(model)
        if generation != found.generation:
            raise other_generation(found, generation)
        if not self._answered(caller):
            await drives.until(model, lambda now: True if now.rate_under_way is None else None)
            from_step = await self._first_step(drives, found, from_step, field="from_step", soon=1)
        wish = ChangeRate(model, generation, float32(learning_rate), from_step or 0)
        number = (await self._commit(caller, wish)).value

        def made(now: Model) -> RateChange | None:
            change = now.rate_number(number)
            return change if change is not None and change.stage is RateStage.DONE else None

        return (await drives.until(model, made)).step

    async def pin(self, caller: Caller, model: ModelId, generation: int, step: int | None) -> Pin:
        """Have every data group keep one version of all blocks (RULES R4): which, once all of them will. It is later
        than `step` where training went past that meanwhile; without one the first that can be."""
        drives = self._drives()
        found = self._describe(model)
        if generation != found.generation:
            raise other_generation(found, generation)
        if not found.open:
            raise Refusal(Reason.CONFLICT, f"model {found.spec.name!r} has no values yet: there is nothing to keep")
        if not self._answered(caller):
            step = await self._first_step(drives, found, step, field="step", soon=0)
        number = (await self._commit(caller, PinModel(model, generation, step or 0))).value
        self._renewed(LeaseKey(model, 0, number, pin=True))

        def placed(now: Model) -> Pin | None:
            if now.pin is None or now.pin.number != number or now.pin.stage is PinStage.ENDED:
                raise Refusal(Reason.CONFLICT, f"pin {number} ended before it was placed", hint="ask again")
            return now.pin if now.pin.stage is PinStage.PLACED else None

        return await drives.until(model, placed)

    async def release_pin(self, caller: Caller, model: ModelId, generation: int, number: int) -> None:
        self._drives()
        await self._commit(caller, ReleasePin(model, generation, number))

    async def _first_step(self, drives: Drives, model: Model, from_step: int | None, *, field: str, soon: int) -> int:
        """At which it may be tried. `soon`: how far behind the earliest where nobody says."""
        question = HoldShard(model.model, model.generation, 0, 0, check_only=True)
        replies = await drives.ask_all(model, question)
        for group, reply in replies.items():
            # Too many changes of the rate lie ahead: no matter to a pin.
            if not reply.ok and (field == "from_step" or reply.reason != TOO_MANY):
                raise Refusal(
                    Reason.CONFLICT,
                    f"group {group} says {reply.reason}: {reply.message}",
                    hint="if too many changes of the rate lie ahead, make them as training gets there",
                )
        earliest = max(reply.highest_version for reply in replies.values())
        if from_step is None:
            return earliest + soon
        if not earliest <= from_step < STEP_MAX:
            expected = f"{earliest} (the earliest there can be now) to {STEP_MAX - 1}"
            raise Refusal(
                Reason.CONFLICT,
                f"{field}: expected {expected}, received {from_step}",
                field=field,
                expected=expected,
                received=str(from_step),
                hint="name a step that training has not reached; without one it is the next that can be",
                version=earliest,
            )
        return from_step


def other_generation(model: Model, generation: int) -> Refusal:
    return Refusal(
        Reason.CONFLICT,
        f"model {model.spec.name!r} is of generation {model.generation}, not {generation}",
        field="generation",
        expected=str(model.generation),
        received=str(generation),
        epoch=model.generation,
        hint="it was loaded from a checkpoint meanwhile: open it again",
    )
