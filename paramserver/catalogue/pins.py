"""Pins of whole models, as group 0 decides them (RULES R4).

Owns what each command makes of a model. Invariants: one pin a model, so that what it costs is at most the model's
weights and optimizer state once more; `PINS_MAX` in the cluster; its step only rises, and only until all groups have
it; who asked may end it, and group 0's leader by its clock (I4). Pure functions. Must not know: clocks, who drives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from paramserver.catalogue.commands import PinAdvanced, PinModel, ReleasePin
from paramserver.catalogue.sessions import Answer, refusal
from paramserver.catalogue.state import Model, Pin, PinStage, SessionId
from paramserver.wire.errors import Reason
from paramserver.wire.frames import STEP_MAX

PINS_MAX = 4
"""Models pinned in a cluster at a time."""


def place(model: Model, command: PinModel, session: SessionId, models: Iterable[Model]) -> tuple[Model, Answer]:
    """`Answer.value` is the pin's number."""
    if not model.open:
        return model, refusal(Reason.CONFLICT, f"model {model.spec.name!r} is not open: it has no values yet")
    if command.step >= STEP_MAX:
        return model, refusal(Reason.INVALID, f"step {command.step} is beyond any")
    held = model.pinned
    if held is not None:
        message = f"version {held.step} of model {model.spec.name!r} is being saved by another"
        return model, refusal(Reason.CONFLICT, message, holder=held.session)
    if sum(one.pinned is not None for one in models) >= PINS_MAX:
        return model, refusal(Reason.CONFLICT, f"{PINS_MAX} models are being saved, the cluster's bound")
    number = model.pin.number + 1 if model.pin is not None else 1
    return replace(model, pin=Pin(number, command.step, session)), Answer(ok=True, value=number)


def advance(model: Model, command: PinAdvanced) -> tuple[Model, Answer]:
    now = model.pinned
    if now is None or now.number != command.number:
        return model, refusal(Reason.STALE_LEASE, f"pin {command.number} is over")
    placing = now.stage is PinStage.PLACING
    fits = {
        PinStage.PLACING: placing and now.step < command.step < STEP_MAX,
        PinStage.PLACED: placing and now.step == command.step,
        PinStage.ENDED: True,
    }[command.stage]
    if not fits:
        return model, refusal(Reason.STALE_LEASE, f"pin {now.number} is {now.stage.name} at step {now.step}")
    step = now.step if command.stage is PinStage.ENDED else command.step
    return replace(model, pin=replace(now, step=step, stage=command.stage)), Answer(ok=True, value=now.number)


def release(model: Model, command: ReleasePin, session: SessionId) -> tuple[Model, Answer]:
    now = model.pinned
    if now is None or now.number != command.number:
        return model, Answer(ok=True)  # it is over
    if now.session != session:
        return model, refusal(Reason.STALE_LEASE, f"pin {now.number} is not yours", holder=now.session)
    return replace(model, pin=replace(now, stage=PinStage.ENDED)), Answer(ok=True)
