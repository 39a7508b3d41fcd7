"""The state machine of a data group (`consensus.runtime.interface.StateMachine`).

Owns the shards of all models in the group and decides what each command does to them. Deterministic: nothing but the
entries decides what the state becomes. Invariants: RULES S1 (a command acts only on the version it names), S6, S8,
M1, M3; a bad command is a result, never an exception; an entry whose CRC does not fit ends the process. `apply`,
`snapshot` and `restore` run on one lane; any thread may read `shards` (see `state.py`). Must not know: leaders,
streams, clocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import Enum

import numpy as np

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Entry, GroupId, Payload
from paramserver.shard import snapshots
from paramserver.shard.commands import (
    CreateShard,
    DeleteShard,
    HoldShard,
    InitialBlock,
    OpenShard,
    PinShard,
    SetRate,
    SetView,
    UnpinShard,
    UpdateBlock,
    decode,
    target_of,
)
from paramserver.shard.deleted import NOTHING_DELETED, Deleted
from paramserver.shard.errors import CommandError
from paramserver.shard.loans import Loans
from paramserver.shard.results import Answer, Duplicate, NotTaken, Result, Stored, Updated, Why
from paramserver.shard.state import Shard, new_shard
from paramserver.shard.steps import RATE_CHANGES_MAX, Hold, Pin, RateFrom
from paramserver.wire.frames import PushKind
from paramserver.wire.spec import NonFinite


class Verdict(Enum):
    TAKE = 1
    BEHIND = 2
    AHEAD = 3


class ShardMachine:
    """All shards of one group. `shards` is replaced as a whole when one comes or goes."""

    def __init__(self, group: GroupId) -> None:
        self.group = group
        self.shards: Mapping[int, Shard] = {}
        self.deleted: Deleted = NOTHING_DELETED
        self.loans: Loans | None = None
        """What the snapshot being written costs."""

    # --- StateMachine ------------------------------------------------------------------------------------------------

    def apply(self, entry: Entry) -> Result:
        try:
            command = decode(entry.payload)
        except CommandError as error:
            return NotTaken(why=Why.MALFORMED, message=str(error))
        with np.errstate(all="ignore"):
            match command:
                case UpdateBlock():
                    return self._update(command)
                case InitialBlock():
                    return self._initial(command)
                case CreateShard():
                    return self._create(command)
                case OpenShard():
                    return self._open(command)
                case SetView():
                    return self._set_view(command)
                case HoldShard():
                    return self._hold(command)
                case SetRate():
                    return self._set_rate(command)
                case PinShard():
                    return self._pin(command)
                case UnpinShard():
                    return self._unpin(command)
                case DeleteShard():
                    return self._delete(command)

    def snapshot(self) -> Iterator[Payload]:
        """Borrows what it shows: what is immutable by reference; slots too, and the next update writes new ones beside
        them. So the chunks may be written while apply goes on, on another thread."""
        self.end_snapshot()
        self.loans = Loans()
        return snapshots.dump(tuple(self.shards.values()), self.loans, self.deleted)

    def lent_bytes(self, entry: Entry | None = None) -> int:
        if self.loans is None:
            return 0
        return self.loans.bytes + (0 if entry is None else self._would_cost(entry.payload))

    def _would_cost(self, payload: Payload) -> int:
        """What the snapshot being written would cost more after this command, at most."""
        target = target_of(payload)
        shard = self.shards.get(target.model) if target is not None else None
        index = shard.info.index_of(target.block) if target is not None and shard is not None else None
        return 0 if target is None or shard is None or index is None else shard.would_cost(index, target)

    def end_snapshot(self) -> None:
        loans, self.loans = self.loans, None
        if loans is not None:
            loans.close()
            for shard in self.shards.values():
                shard.end_loans()

    def restore(self, chunks: Iterator[memoryview]) -> None:
        """All or nothing. Raises `SnapshotDamaged`."""
        self.end_snapshot()
        shards, self.deleted = snapshots.load(chunks)
        self.shards = {shard.info.create.model: shard for shard in shards}

    def size_bytes(self) -> int:
        return sum(shard.size_bytes() for shard in self.shards.values())

    # --- updates -----------------------------------------------------------------------------------------------------

    def _update(self, command: UpdateBlock) -> Updated | Duplicate | NotTaken:
        found = self._find(command.model, command.generation)
        if isinstance(found, Why):
            return _not_taken(command, found)
        info = found.info
        index = info.index_of(command.block)
        if index is None:
            return _not_taken(command, Why.NOT_HERE)
        if not info.is_open:
            return _not_taken(command, Why.NOT_OPEN)
        version = found.published[index].version
        match self._verdict(version, command.step):
            case Verdict.BEHIND:
                return Duplicate(model=command.model, block=command.block, step=command.step, version=version)
            case Verdict.AHEAD:
                return _not_taken(command, Why.AHEAD, version)
        if command.view != info.view.number:
            return _not_taken(command, Why.VIEW, version)
        ranks = info.create.spec.ranks
        if command.contributors != (1 << ranks) - 1 or command.count != ranks:
            return _not_taken(command, Why.CONTRIBUTORS, version)
        if command.elements != found.elements(index) or command.codec is not info.create.spec.log_codec:
            return _not_taken(command, Why.MALFORMED, version)
        if info.steps.holds(command.step):
            return _not_taken(command, Why.HELD, version)
        if command.kind is PushKind.GRADIENT:
            now = found.update(index, command)
        else:
            now = found.pass_over(index)
        if now.forms is None:
            raise InvariantViolated("an updated block has no weights")
        return Updated(
            model=command.model,
            block=command.block,
            step=command.step,
            version=now.version,
            view=command.view,
            digest=now.digests[-1][1],
            forms=now.forms,
        )

    def _verdict(self, version: int, step: int) -> Verdict:
        """RULES S1: the one place where exactly-once is decided."""
        if step < version:
            return Verdict.BEHIND
        return Verdict.TAKE if step == version else Verdict.AHEAD

    # --- models ------------------------------------------------------------------------------------------------------

    def _create(self, command: CreateShard) -> Answer:
        present = self.shards.get(command.model)
        if present is not None:
            same = present.info.create == command
            why = None if same else Why.SPEC
            message = "" if same else "the group has this model with another generation, spec, range or placement"
            return self._answer(present, ok=same, why=why, message=message)
        if self.deleted.has(command.model):
            message = "the model was deleted"
            return Answer(model=command.model, ok=False, why=Why.UNKNOWN_MODEL, message=message)
        problems = command.spec.validate()
        if problems:
            message = "; ".join(str(problem) for problem in problems)
            return Answer(model=command.model, ok=False, why=Why.SPEC, message=message)
        shard = new_shard(command) if command.blocks > 0 else None
        if shard is None or command.first_block + command.blocks > shard.info.layout.blocks:
            message = f"blocks {command.first_block} + {command.blocks} are not in the model"
            return Answer(model=command.model, ok=False, why=Why.NOT_HERE, message=message)
        self.shards = {**self.shards, command.model: shard}
        return self._answer(shard, ok=True, changed=True)

    def _delete(self, command: DeleteShard) -> Answer:
        shard = self.shards.get(command.model)
        if shard is not None and shard.info.create.generation > command.generation:
            return self._answer(shard, ok=False, why=Why.GENERATION, message="delete")
        gone = self.deleted.and_also(command.model, command.settled)
        changed = shard is not None or gone != self.deleted
        self.deleted = gone
        if shard is not None:
            shard.drop()
            self.shards = {model: one for model, one in self.shards.items() if model != command.model}
        return Answer(model=command.model, ok=True, changed=changed)

    def _initial(self, command: InitialBlock) -> Stored | NotTaken:
        found = self._find(command.model, command.generation)
        if isinstance(found, Why):
            return NotTaken(why=found, message="initial values", model=command.model, block=command.block)
        index = found.info.index_of(command.block)
        why: Why | None = None
        if index is None:
            why = Why.NOT_HERE
        elif command.values is None or command.elements != found.elements(index):
            why = Why.MALFORMED
        else:
            why = self._initial_refused(found, index, command)
        if why is not None or index is None or command.values is None:
            message = f"initial values of epoch {command.epoch}: {why}"
            return NotTaken(why=why or Why.MALFORMED, message=message, model=command.model, block=command.block)
        values = command.values
        if not np.isfinite(values).all() and found.info.create.spec.non_finite is not NonFinite.ALLOW:
            return NotTaken(
                why=Why.MALFORMED, message="initial values are not finite", model=command.model, block=command.block
            )
        if not command.part:
            found.initialise(index, values, command.epoch, command.scalars)
        elif not found.fill(index, command.part, values, command.epoch):
            message = "the block's weights come before what its optimizer holds"
            return NotTaken(why=Why.NOT_COMPLETE, message=message, model=command.model, block=command.block)
        return Stored(model=command.model, block=command.block, epoch=command.epoch)

    def _initial_refused(self, shard: Shard, index: int, command: InitialBlock) -> Why | None:
        """RULES M3: nothing after open, nothing of an older epoch."""
        if shard.info.is_open:
            return Why.ALREADY_OPEN
        if shard.part_problem(command.part, command.scalars, loaded=command.loaded):
            return Why.MALFORMED
        return Why.EPOCH if command.epoch < shard.private[index].initial_epoch else None

    def _open(self, command: OpenShard) -> Answer:
        found = self._find(command.model, command.generation)
        if isinstance(found, Why):
            return Answer(model=command.model, ok=False, why=found, message="open")
        if found.info.is_open:
            same = found.info.open_epoch == command.epoch
            message = "" if same else f"open with the values of epoch {found.info.open_epoch}"
            return self._answer(found, ok=same, why=None if same else Why.EPOCH, message=message)
        first = found.info.create.first_block
        for index in range(found.info.create.blocks):
            if not found.whole(index, command.epoch):
                message = f"block {first + index} has no values of epoch {command.epoch}"
                return self._answer(found, ok=False, why=Why.NOT_COMPLETE, message=message)
        if command.check_only:
            return self._answer(found, ok=True)
        found.open(command.epoch)
        return self._answer(found, ok=True, changed=True)

    def _set_view(self, command: SetView) -> Answer:
        found = self._find(command.model, command.generation)
        if isinstance(found, Why):
            return Answer(model=command.model, ok=False, why=found, message="set view")
        view, now = command.view, found.info.view
        if len(view.lease_epochs) != found.info.create.spec.ranks:
            return self._answer(found, ok=False, why=Why.MALFORMED, message="one lease epoch a rank is needed")
        if view.number < now.number or (view.number == now.number and view != now):
            return self._answer(found, ok=False, why=Why.VIEW, message=f"view {now.number} is in effect")
        if view == now:
            return self._answer(found, ok=True)
        found.set_view(view)
        return self._answer(found, ok=True, changed=True)

    # --- steps ------------------------------------------------------------------------------------------------------

    def _hold(self, command: HoldShard) -> Answer:
        found = self._find(command.model, command.generation)
        if isinstance(found, Why):
            return Answer(model=command.model, ok=False, why=found, message="hold")
        steps = found.info.steps
        if command.check_only:
            message = f"{RATE_CHANGES_MAX} changes of the learning rate lie ahead" if steps.full else ""
            return self._answer(found, ok=not steps.full, why=Why.TOO_MANY if steps.full else None, message=message)
        if command.number <= steps.rate_number:
            return self._answer(found, ok=True)  # said again: the change is here already
        same = steps.hold if steps.hold is not None and steps.hold.number == command.number else None
        # A hold is never taken back to an earlier step: what it was raised for may have happened elsewhere.
        earliest = max(found.highest_version, same.step if same is not None else 0)
        if command.step < earliest:
            answer = self._answer(found, ok=False, why=Why.PASSED, message=f"step {earliest} is the first that can be")
            return replace(answer, highest_version=earliest)
        hold = Hold(command.number, command.step)
        if steps.hold == hold:
            return self._answer(found, ok=True)
        if steps.hold is not None and steps.hold.number > command.number:
            return self._answer(found, ok=False, why=Why.NUMBER, message=f"hold {steps.hold.number} stands")
        found.set_steps(replace(steps, hold=hold))
        return self._answer(found, ok=True, changed=True, steps=True)

    def _set_rate(self, command: SetRate) -> Answer:
        found = self._find(command.model, command.generation)
        if isinstance(found, Why):
            return Answer(model=command.model, ok=False, why=found, message="set rate")
        steps = found.info.steps
        if command.number <= steps.rate_number:
            return self._answer(found, ok=True)
        if steps.hold != Hold(command.number, command.step):
            message = f"no hold {command.number} stands at step {command.step}"
            return self._answer(found, ok=False, why=Why.NUMBER, message=message)
        change = RateFrom(command.step, command.learning_rate)
        found.set_steps(steps.with_rate(command.number, change, found.lowest_version))
        return self._answer(found, ok=True, changed=True, steps=True)

    def _pin(self, command: PinShard) -> Answer:
        found = self._find(command.model, command.generation)
        if isinstance(found, Why):
            return Answer(model=command.model, ok=False, why=found, message="pin")
        if not found.info.is_open:
            return self._answer(found, ok=False, why=Why.NOT_OPEN, message="pin")
        steps = found.info.steps
        latest = max(steps.pins_ended, steps.pin.number if steps.pin is not None else 0)
        if command.number <= steps.pins_ended or command.number < latest:
            return self._answer(found, ok=False, why=Why.NUMBER, message=f"pin {latest} came after it")
        pin = Pin(command.number, command.step)
        if steps.pin == pin:
            return self._answer(found, ok=True)
        same = steps.pin if steps.pin is not None and steps.pin.number == command.number else None
        earliest = max(found.highest_version, same.step if same is not None else 0)
        if command.step < earliest:
            answer = self._answer(found, ok=False, why=Why.PASSED, message=f"step {earliest} is the first that can be")
            return replace(answer, highest_version=earliest)
        found.set_steps(replace(steps, pin=pin))
        return self._answer(found, ok=True, changed=True, steps=True)

    def _unpin(self, command: UnpinShard) -> Answer:
        found = self._find(command.model, command.generation)
        if isinstance(found, Why):
            return Answer(model=command.model, ok=False, why=found, message="unpin")
        steps = found.info.steps
        if command.number <= steps.pins_ended:
            return self._answer(found, ok=True)
        over = steps.pin is not None and steps.pin.number <= command.number
        found.set_steps(replace(steps, pin=None if over else steps.pin, pins_ended=command.number))
        return self._answer(found, ok=True, changed=True, steps=True)

    def _find(self, model: int, generation: int) -> Shard | Why:
        shard = self.shards.get(model)
        if shard is None:
            return Why.UNKNOWN_MODEL
        return shard if shard.info.create.generation == generation else Why.GENERATION

    def _answer(
        self,
        shard: Shard,
        *,
        ok: bool,
        changed: bool = False,
        why: Why | None = None,
        message: str = "",
        steps: bool = False,
    ) -> Answer:
        return Answer(
            model=shard.info.create.model,
            ok=ok,
            changed=changed,
            why=why,
            message=message,
            lowest_version=shard.lowest_version,
            highest_version=shard.highest_version,
            view=shard.info.view.number,
            steps=steps,
        )


def _not_taken(command: UpdateBlock, why: Why, version: int = 0) -> NotTaken:
    return NotTaken(
        why=why,
        message=f"update of model {command.model} block {command.block} step {command.step} view {command.view}: {why}",
        model=command.model,
        block=command.block,
        step=command.step,
        view=command.view,
        version=version,
    )
