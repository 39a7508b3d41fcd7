"""Which models there are, as group 0 decides it: created, loaded from a checkpoint, deleted (RULES M1, M2).

Owns what each command makes of the table of models. A checkpoint is loaded into a model with an id of its own, which
has no name until all its values are there; the command that opens it deletes the generation before it, so that the
name means one of the two at any moment, whole. Invariants: ids only rise and are never reused; a name belongs to one
model that is not being loaded, and at most one is being loaded for it, while no other is created under it; a
generation is above all that had the name since the last one was deleted. Pure functions. Must not know: sessions'
answers, who drives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from consensus.core.interface import GroupId
from paramserver.catalogue import sharding
from paramserver.catalogue.commands import CreateModel, DeleteModel, LoadModel
from paramserver.catalogue.rates import RATES_KEPT
from paramserver.catalogue.sessions import Answer, refusal
from paramserver.catalogue.state import (
    FIRST_GENERATION,
    FIRST_PLACEMENT_EPOCH,
    FIRST_VIEW,
    InitializationLease,
    Lease,
    Leaving,
    Loaded,
    Model,
    ModelId,
    RateChange,
    RateStage,
    SessionId,
)
from paramserver.wire.errors import Reason
from paramserver.wire.frames import STEP_MAX
from paramserver.wire.protos import View
from paramserver.wire.spec import rate_problems


def named(models: Iterable[Model], name: str) -> Model | None:
    return next((model for model in models if model.spec.name == name and not model.loading), None)


def being_loaded(models: Iterable[Model], name: str) -> Model | None:
    """The one that takes that name when all its values are there."""
    return next((model for model in models if model.spec.name == name and model.loading), None)


def new(
    model: ModelId, command: CreateModel | LoadModel, held: Mapping[GroupId, int], *, generation: int = FIRST_GENERATION
) -> Model:
    spec = command.spec
    loaded = command.loaded if isinstance(command, LoadModel) else None
    rates = loaded.rates if loaded is not None else ()
    return Model(
        model=model,
        generation=generation,
        spec=spec,
        shards=sharding.place(command.rule, spec, model, held),
        placement_epoch=FIRST_PLACEMENT_EPOCH,
        view=View(FIRST_VIEW, 0, (0,) * spec.ranks),
        leases=(Lease(),) * spec.ranks,
        rates=tuple(RateChange(at + 1, step, rate, RateStage.DONE) for at, (step, rate) in enumerate(rates)),
        loaded=loaded,
    )


def load(
    models: Mapping[ModelId, Model],
    model: ModelId,
    command: LoadModel,
    session: SessionId,
    held: Mapping[GroupId, int],
) -> Model | Answer:
    """What is to be filled; its lease is the session's, from the first moment on."""
    problems = load_problems(command.loaded)
    if problems:  # checked before it was proposed; here against a proposer that did not
        return refusal(Reason.INVALID, problems)
    spec = command.spec
    other = being_loaded(models.values(), spec.name)
    if other is not None:
        message = f"model {spec.name!r} is being loaded by another"
        return refusal(Reason.CONFLICT, message, holder=other.initialization.session, value=other.model)
    before = named(models.values(), spec.name)
    if before is not None and before.spec != spec:
        return refusal(Reason.SPEC_MISMATCH, f"model {spec.name!r} exists with another spec", value=before.model)
    generation = FIRST_GENERATION if before is None else before.generation + 1
    made = new(model, command, held, generation=generation)
    return replace(made, initialization=InitializationLease(epoch=1, session=session))


def load_problems(loaded: Loaded) -> str:
    """Empty when it can be."""
    steps = [loaded.step, *(step for step, _ in loaded.rates)]
    if any(not 0 <= step < STEP_MAX for step in steps):
        return f"step {max(steps)} is beyond any"
    if len(loaded.rates) > RATES_KEPT:
        return f"{len(loaded.rates)} changes of the learning rate, at most {RATES_KEPT}"
    if steps[1:] != sorted(set(steps[1:])):
        return "the changes of the learning rate are not in ascending order of their steps"
    return "; ".join(str(problem) for _, rate in loaded.rates for problem in rate_problems("learning_rate", rate))


def replaced(models: Mapping[ModelId, Model], opened: Model) -> Model | Answer | None:
    """The generation whose name a model takes that opens now; None: there is none."""
    if not opened.loading:
        return None
    before = named(models.values(), opened.spec.name)
    if before is not None and before.generation >= opened.generation:
        message = f"model {opened.spec.name!r} is of generation {before.generation}, loaded was {opened.generation}"
        return refusal(Reason.CONFLICT, message)
    return before


def delete(model: Model, command: DeleteModel, session: SessionId) -> Answer:
    if command.loading and not model.loading:
        return refusal(Reason.ALREADY_OPEN, f"model {model.spec.name!r} is open: the load is over")
    if model.loading and (not command.loading or model.initialization.session != session):
        return refusal(
            Reason.CONFLICT, f"model {model.spec.name!r} is being loaded", holder=model.initialization.session
        )
    held = [rank for rank, lease in enumerate(model.leases) if lease.held]
    if held and not command.force:
        several = len(held) > 1
        ranks = ", ".join(map(str, held))
        message = f"rank{'s' * several} {ranks} of model {model.spec.name!r} {'are' if several else 'is'} held"
        return refusal(Reason.CONFLICT, message, holder=model.leases[held[0]].session)
    return Answer(ok=True)


def leaving(model: Model) -> Leaving:
    return Leaving(model.model, model.generation, frozenset(model.groups))
