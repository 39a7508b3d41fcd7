"""Initial values on their way into the log (RULES M3).

Owns the streams of initial values at a group's leader. Who holds the init lease is checked by its epoch in apply, not
here. Invariant: a stream has at most `initial_blocks_in_flight` blocks between its offer and its answer. Must not know:
leases, gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from consensus.runtime.interface import Committed, Outcome, Refused
from paramserver.shard.commands import InitialBlock, encode_initial, new_buffer
from paramserver.shard.gathering import SUM_LANE, Surroundings
from paramserver.shard.results import NotTaken, Stored, Why
from paramserver.shard.state import Shard, ShardInfo
from paramserver.shard.streams import InitialStream, StreamState
from paramserver.shard.sums import Complete
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import check_size, decode
from paramserver.wire.errors import Reason, Refusal, disk_full, invalid
from paramserver.wire.frames import BlockFrame, BlockStatus, PushFrame, PushKind
from paramserver.wire.layout import FLOAT
from paramserver.wire.spec import NonFinite


class Initialization:
    """One stream's way through lane and log."""

    def __init__(
        self,
        stream: InitialStream,
        shard: Shard,
        around: Surroundings,
        end: Callable[[InitialStream, Refusal], None],
        *,
        in_flight_max: int,
    ) -> None:
        self._stream = stream
        self._shard = shard
        self._around = around
        self._end = end
        self._in_flight_max = in_flight_max

    def try_held(self) -> None:
        stream = self._stream
        if stream.held is None or stream.state is not StreamState.OPEN or stream.in_flight >= self._in_flight_max:
            return
        frame, admitted = stream.held
        info = self._shard.info
        try:
            self._check(info, frame)
        except Refusal as refusal:
            self._end(stream, refusal)
            return
        room = self._around.room
        if not room.take(self._bytes_of(info, frame), always=stream.in_flight == 0, later=self._around.look_again):
            return
        stream.held = None
        stream.in_flight += 1
        self._around.effects.post(admitted)
        self._around.effects.post(
            self._around.run,
            SUM_LANE,
            lambda: _encode(info, stream.hello.initialization_epoch, frame),
            lambda made: self._encoded(frame, made, self._bytes_of(info, frame)),
        )

    @staticmethod
    def _bytes_of(info: ShardInfo, frame: PushFrame) -> int:
        return 4 * info.layout.block_elements(frame.block)

    def _check(self, info: ShardInfo, frame: PushFrame) -> None:
        if frame.kind is not PushKind.INITIAL:
            raise invalid("kind", "INITIAL", frame.kind.name)
        if info.index_of(frame.block) is None:
            last = info.create.first_block + info.create.blocks - 1
            expected = f"{info.create.first_block} to {last} in this group"
            raise invalid("block", expected, frame.block, reason=Reason.NOT_FOUND)
        if problem := self._shard.part_problem(frame.part, frame.scalars, loaded=info.create.loaded is not None):
            slots = self._shard.slots
            expected = f"0 to {slots}, with the optimizer's numbers beside part 0" if info.create.loaded else "0"
            raise invalid("part", expected, problem)
        check_size(frame.codec, len(frame.payload), info.layout.block_elements(frame.block))

    def _encoded(self, frame: PushFrame, made: Complete | Refusal, size: int) -> None:
        for look_again in self._around.room.give(size):
            self._around.effects.post(look_again)
        if self._stream.state is StreamState.OPEN:
            if isinstance(made, Refusal):
                self._end(self._stream, made)
            else:
                self._around.effects.post(
                    self._around.propose, made.payload, made.crc, lambda outcome: self._outcome(frame, outcome)
                )
        self._around.effects.flush()

    def _outcome(self, frame: PushFrame, outcome: Outcome) -> None:
        stream = self._stream
        if stream.state is StreamState.OPEN:
            if isinstance(outcome, Committed) and isinstance(outcome.result, Stored):
                stream.in_flight -= 1
                stored = BlockFrame(
                    block=frame.block, step=0, version=0, status=BlockStatus.STORED, term=self._around.term
                )
                self._around.effects.post(stream.sink.reply, stored)
                self.try_held()
            elif isinstance(outcome, Committed):
                self._end(stream, self._not_stored(outcome.result))
            elif isinstance(outcome, Refused) and outcome.busy:
                self._end(stream, Refusal(Reason.BUSY, "the log is full at the moment", retry_after_ms=100))
            elif isinstance(outcome, Refused) and outcome.full:
                self._end(stream, disk_full(self._around.group))
            else:
                self._end(stream, self._around.not_leader())
        self._around.effects.flush()

    def _not_stored(self, result: object) -> Refusal:
        if isinstance(result, NotTaken) and result.why is Why.ALREADY_OPEN:
            return already_open(result.model)
        if isinstance(result, NotTaken) and result.why is Why.EPOCH:
            return Refusal(
                Reason.STALE_LEASE, "another client initialises this model now", field="initialization_epoch"
            )
        message = result.message if isinstance(result, NotTaken) else "unexpected result of apply"
        return Refusal(Reason.INVALID, message)


def stream_open(info: ShardInfo, term: int) -> BlockFrame:
    return BlockFrame(
        block=info.create.first_block,
        step=0,
        version=0,
        status=BlockStatus.STREAM_OPEN,
        view=info.view.number,
        term=term,
    )


def already_open(model: int) -> Refusal:
    return Refusal(
        Reason.ALREADY_OPEN,
        f"model {model} is open: its initial values are settled",
        field="model",
        hint="pull its values instead",
    )


def _encode(info: ShardInfo, epoch: int, frame: PushFrame) -> Complete | Refusal:
    """On the sum lane: check, and make the command."""
    if (found := crc32c(frame.payload)) != frame.crc:
        return Refusal(
            Reason.CHECKSUM,
            f"block {frame.block}: the payload's CRC32C is {found:#010x}, the header says {frame.crc:#010x}",
            field="crc",
            expected=f"{found:#010x}",
            received=f"{frame.crc:#010x}",
        )
    elements = info.layout.block_elements(frame.block)
    buffer, content = new_buffer(elements)
    values = decode(frame.codec, frame.payload, elements, content.view(FLOAT))
    if info.create.spec.non_finite is not NonFinite.ALLOW and not np.isfinite(values).all():
        first = int(np.argmin(np.isfinite(values)))
        tensor, place = info.layout.tensor_at(info.layout.block_slice(frame.block).start + first)
        received = f"{values[first]} in tensor {tensor!r} element {place}"
        return invalid("initial values", "finite numbers", received, reason=Reason.NON_FINITE)
    command = InitialBlock(
        model=info.create.model,
        generation=info.create.generation,
        epoch=epoch,
        block=frame.block,
        elements=elements,
        loaded=info.create.loaded is not None,
        part=frame.part,
        scalars=frame.scalars,
    )
    payload = encode_initial(command, buffer)
    return Complete(payload, crc32c(payload))
