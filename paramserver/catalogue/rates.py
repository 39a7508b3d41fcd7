"""Changes of a model's learning rate, as group 0 decides them (RULES S11).

Owns what each command makes of a model. Invariants: one change of a model at a time is under way; its step only rises,
and only while data groups are told to hold; from SETTLED on it is final. Pure functions. Must not know: sessions, who
drives.
"""

from __future__ import annotations

from dataclasses import replace

from paramserver.catalogue.commands import ChangeRate, RateAdvanced
from paramserver.catalogue.sessions import Answer, refusal
from paramserver.catalogue.state import Model, RateChange, RateStage
from paramserver.wire.errors import Reason
from paramserver.wire.frames import STEP_MAX
from paramserver.wire.spec import rate_problems

RATES_KEPT = 1024
"""Changes that are remembered of a model, for those who asked for them, for checkpoints, for people;
more than may lie ahead in a data group."""


def change(model: Model, command: ChangeRate) -> tuple[Model, Answer]:
    """`Answer.value` is the change's number."""
    problems = rate_problems("learning_rate", command.learning_rate)
    if problems or command.step >= STEP_MAX:  # checked before it was proposed; here against a proposer that did not
        text = "; ".join(map(str, problems)) or f"step {command.step} is beyond any"
        return model, refusal(Reason.INVALID, text)
    under_way = model.rate_under_way
    if under_way is not None:
        return model, refusal(Reason.CONFLICT, f"change {under_way.number} of the learning rate is under way")
    number = model.rates[-1].number + 1 if model.rates else 1
    wanted = RateChange(number, command.step, command.learning_rate)
    return replace(model, rates=(*model.rates, wanted)[-RATES_KEPT:]), Answer(ok=True, value=number)


def advance(model: Model, command: RateAdvanced) -> tuple[Model, Answer]:
    now = model.rate_under_way
    if now is None or now.number != command.number:
        return model, refusal(Reason.STALE_EPOCH, f"change {command.number} of the learning rate is not under way")
    holding = now.stage is RateStage.HOLDING
    if command.stage is RateStage.HOLDING:
        fits = holding and now.step < command.step < STEP_MAX
    else:
        fits = now.step == command.step and command.stage == now.stage + 1
    if not fits:
        message = f"change {now.number} is {now.stage.name} at step {now.step}"
        return model, refusal(Reason.STALE_EPOCH, message)
    moved = replace(now, step=command.step, stage=command.stage)
    return replace(model, rates=(*model.rates[:-1], moved)), Answer(ok=True, value=moved.number)
