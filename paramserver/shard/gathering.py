"""One model's steps at a group's leader: which contributions are taken, parked or answered, and what is proposed.

Owns, for each block of the shard, its version as the listener heard of it and the round in progress: the contributors
of (block, step), who waits for the answer, whether the command was proposed. Invariants: a round is proposed at most
once in a tenure and view; a rank counts once a round; open rounds lie in the window [lo, lo + n) of (step, block) in
their one order, lo the lowest not yet proposed (RULES S5), so open sums are bounded and what others wait for always
fits. None of this makes anything exactly-once: that is decided in apply (S1). Must not know: leadership (`leader.py`
drops and revives it), threads, bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from consensus.runtime.interface import Outcome, Refused
from paramserver.shard.effects import Effects
from paramserver.shard.forms import Form, Forms
from paramserver.shard.results import Duplicate, NotTaken, Updated, Why
from paramserver.shard.state import Shard, ShardInfo
from paramserver.shard.streams import PushStream, StreamState
from paramserver.shard.sums import Complete, OpenSum, Rejected
from paramserver.shard.window import SumWindow
from paramserver.wire.codecs import Codec, check_size
from paramserver.wire.errors import Reason, Refusal, disk_full, invalid
from paramserver.wire.frames import BlockFrame, BlockStatus, PushFrame, PushKind

T = TypeVar("T")
SUM_LANE = "sum"
OF_OLD_STATE = frozenset({Reason.FAR_AHEAD, Reason.OUT_OF_ORDER})
"""What a correct rank may look guilty of to a leader that was deposed and does not know it yet."""


class Surroundings(Protocol):
    """What a gathering asks of the leader."""

    effects: Effects
    group: int

    @property
    def term(self) -> int: ...

    @property
    def takes(self) -> bool:
        """New contributions are taken; not while leadership is being handed over (RULES C6)."""

    def count(self, name: str) -> None: ...

    def alarm(self, message: str) -> None: ...

    def run(self, lane: str, work: Callable[[], T], done: Callable[[T], None]) -> None: ...

    def propose(self, payload: memoryview, crc: int, done: Callable[[Outcome], None]) -> None: ...

    def end(self, stream: PushStream, refusal: Refusal) -> None: ...

    def confirm(self, done: Callable[[bool], None]) -> None:
        """Tells whether this replica led at some time after the call; if not, it may know too little."""

    def not_leader(self) -> Refusal: ...

    @property
    def room(self) -> SumWindow:
        """Of the node, for contributions in open sums."""

    def look_again(self) -> None:
        """There may be room again: judge what streams hold."""


@dataclass(slots=True, eq=False)
class Round:
    """Contributions to one (block, step). `alive` ends when it is settled or dropped: what comes back from the lane or
    the log for a dead round is ignored."""

    index: int
    step: int
    view: int
    sum: OpenSum
    contributors: int = 0
    proposed: bool = False
    alive: bool = True
    complete: Complete | None = None
    """The command, from when it is whole: while a hold stands it is refused, and proposed again when that ended."""
    held_bytes: int = 0
    """Room that its contributions take in the node's window."""
    waiting: dict[PushStream, bool] = field(default_factory=dict)
    """Who asked for the answer, and whether it wants the weights."""


class Gathering:
    """See the module. `window` in blocks."""

    def __init__(self, shard: Shard, around: Surroundings, *, window: int) -> None:
        self.shard = shard
        self.info: ShardInfo = shard.info
        """As the listener heard of it, not as the lane has it now: a contribution taken under one view must never get
        into a sum of the next, which the lane may have applied before anybody here knows."""
        self._around = around
        self._window = window
        self._blocks = shard.info.create.blocks
        self._versions: list[int] = [0] * self._blocks
        self._rounds: list[Round | None] = [None] * self._blocks
        self._lowest = 0
        self._retry: list[tuple[Round, Complete]] = []
        self._held: list[Round] = []
        """Refused because a hold stands (RULES S9)."""
        self.streams: dict[int, PushStream] = {}
        """The newest stream of each rank."""
        self.resync()

    def resync(self) -> None:
        """Nothing is open; versions and view are what the machine has (which may be ahead of what was reported)."""
        self.info = self.shard.info
        for index, block in enumerate(self.shard.published):
            self._versions[index] = max(self._versions[index], block.version)
        self.drop()

    def drop(self) -> None:
        """Forget every open round: leadership is lost, or the view is another. The window starts at the lowest block
        not yet applied."""
        for round_ in self._rounds:
            if round_ is not None:
                if not round_.proposed:
                    self._around.count("sums_dropped")
                self._kill(round_)
        self._retry.clear()
        self._held.clear()
        self._lowest = min(version * self._blocks + index for index, version in enumerate(self._versions))
        self._advance()

    # --- contributions -----------------------------------------------------------------------------------------------

    def join(self, stream: PushStream) -> None:
        """A stream was judged and is open from now on; an older one of the same rank ends."""
        older = self.streams.get(stream.rank)
        self.streams[stream.rank] = stream
        if older is not None:
            self._around.end(older, Refusal(Reason.SUPERSEDED, "a newer stream of this rank was opened"))
        stream.state = StreamState.OPEN
        self._want()
        lowest = min(self._versions)
        hello = self._frame(self.info.create.first_block, lowest, lowest, BlockStatus.STREAM_OPEN)
        self._around.effects.post(stream.sink.reply, hello)
        self.try_held(stream)

    def leave(self, stream: PushStream) -> None:
        if self.streams.get(stream.rank) is stream:
            del self.streams[stream.rank]
            self._want()
            self._let_go()

    def _let_go(self) -> None:
        """Where nobody is left who pushes, what workers sent that died, perhaps for good, is no longer held: others of
        this node need the room, and whoever comes back sends on its new stream all that was not acknowledged."""
        if self.streams:
            return
        for round_ in self._rounds:
            if round_ is not None and not round_.proposed and round_.contributors != self._all_ranks:
                self._around.count("sums_dropped")
                self._kill(round_)

    def _want(self) -> None:
        """Have apply encode what these streams will be answered with."""
        codecs = {stream.hello.weights_codec for stream in self.streams.values() if stream.hello.want_weights}
        self.shard.wanted = frozenset(codecs - {Codec.FP32})

    def try_held(self, stream: PushStream, *, confirmed: bool = False) -> None:
        """Judge the frame that the stream holds, if any."""
        if stream.held is None or stream.state is not StreamState.OPEN:
            return
        frame, admitted = stream.held
        try:
            settled = self._judge(stream, frame)
        except Refusal as refusal:
            if refusal.reason in OF_OLD_STATE and not confirmed:
                self._make_sure(stream, frame)
                return
            self._around.count(f"pushes_refused_{refusal.reason.value.lower()}")
            self._around.end(stream, refusal)
            return
        if settled:
            stream.held = None
            self._around.effects.post(admitted)

    def _make_sure(self, stream: PushStream, frame: PushFrame) -> None:
        """The rank did wrong, or others lead, and have gone on with it."""
        if stream.doubted is frame:
            return
        stream.doubted = frame

        def answered(leads: bool) -> None:
            if stream.held is None or stream.held[0] is not frame:
                return
            stream.doubted = None
            if leads:
                self.try_held(stream, confirmed=True)
            else:
                self._around.end(stream, self._around.not_leader())

        self._around.confirm(answered)

    def try_all_held(self) -> None:
        for stream in tuple(self.streams.values()):
            self.try_held(stream)

    def _judge(self, stream: PushStream, frame: PushFrame) -> bool:
        """True: taken or answered. False: it waits its turn. Raises `Refusal`."""
        index = self._checked(frame)
        version, step = self._versions[index], frame.step
        wants = frame.want_weights or stream.hello.want_weights
        if step < version:
            self._around.count("pushes_duplicate")
            self._reply_behind(stream, index, step, wants)
        elif step > version + 1:
            raise self._far_ahead(frame, version)
        elif step == version + 1:
            return False  # its version is on the way: the rank saw it elsewhere before us (RULES S2)
        else:
            round_ = self._rounds[index]
            if round_ is not None and stream in round_.waiting:
                # One answer is on its way; whoever counts answers would wait for the second for ever.
                raise invalid("block", "each block of a step once on a stream", f"block {frame.block} again")
            if round_ is not None and (round_.proposed or round_.contributors >> stream.rank & 1):
                self._around.count("pushes_repeated")
                round_.waiting[stream] = wants
            elif (skipped := self._first_skipped(stream, step, index)) is not None:
                raise self._out_of_order(frame, skipped)
            elif not self._takes(step, index) or not self._has_room(step, index):
                return False
            else:
                self._take(stream, frame, index, wants)
        stream.position = (step, index)
        return True

    def _checked(self, frame: PushFrame) -> int:
        """The block's place in this shard; raises `Refusal` for what cannot be a contribution."""
        info = self.info
        index = info.index_of(frame.block)
        if frame.hello is not None:
            raise invalid("hello", "one, as the first frame", "another one")
        if index is None:
            last = info.create.first_block + self._blocks - 1
            expected = f"{info.create.first_block} to {last} in this group"
            raise invalid("block", expected, frame.block, reason=Reason.NOT_FOUND)
        if frame.kind is PushKind.INITIAL:
            raise invalid("kind", "GRADIENT, SKIP_STEP or EMPTY", "INITIAL")
        if frame.kind is PushKind.GRADIENT:
            check_size(frame.codec, len(frame.payload), info.layout.block_elements(frame.block))
        elif len(frame.payload):
            raise invalid("payload", f"none with {frame.kind.name}", f"{len(frame.payload)} bytes")
        return index

    def _takes(self, step: int, index: int) -> bool:
        """Its turn has come: it lies in the window, no hold stands, and leadership is not being handed over."""
        return self._in_window(step, index) and self._around.takes and not self.info.steps.holds(step)

    def _in_window(self, step: int, index: int) -> bool:
        return step * self._blocks + index < self._lowest + self._window

    def _has_room(self, step: int, index: int) -> bool:
        """Room in the node's window, taken for one contribution. What the others wait for has room always."""
        lowest = step * self._blocks + index == self._lowest
        return self._around.room.take(self._bytes_of(index), always=lowest, later=self._around.look_again)

    def _bytes_of(self, index: int) -> int:
        """Of a contribution while it is summed: in float32, whatever it came in."""
        info = self.info
        return 4 * info.layout.block_elements(info.create.first_block + index)

    def _give_room(self, round_: Round, size: int) -> None:
        round_.held_bytes -= size
        for look_again in self._around.room.give(size):
            self._around.effects.post(look_again)

    def _first_skipped(self, stream: PushStream, step: int, index: int) -> int | None:
        """RULES S5: a rank sends blocks in their one order and leaves out only what is proposed or applied. The place
        of a block that it jumped over, None if there is none. Jumping would fill the window with sums which wait for
        ranks that wait for the window."""
        first = 0
        if stream.position is not None:
            last_step, last = stream.position
            if last_step == step:
                first = last + 1
            elif last_step < step:
                for skipped in range(last + 1, self._blocks):
                    if self._next_step(skipped) <= last_step:
                        return skipped
        return next((skipped for skipped in range(first, index) if self._next_step(skipped) <= step), None)

    def _take(self, stream: PushStream, frame: PushFrame, index: int, wants: bool) -> None:
        round_ = self._rounds[index]
        if round_ is None:
            info = self.info
            round_ = Round(index, frame.step, info.view.number, OpenSum(info, frame.block, frame.step))
            self._rounds[index] = round_
        open_round, rank = round_, stream.rank
        open_round.contributors |= 1 << rank
        open_round.held_bytes += self._bytes_of(index)
        open_round.waiting[stream] = wants
        self._around.count("pushes_taken")
        self._around.effects.post(
            self._around.run,
            SUM_LANE,
            lambda: open_round.sum.take(rank, frame),
            lambda outcome: self._summed(open_round, outcome),
        )

    # --- sums and proposals ------------------------------------------------------------------------------------------

    def _summed(self, round_: Round, outcome: Complete | Rejected | None) -> None:
        """The sum lane took a contribution."""
        if round_.alive and outcome is not None:
            if isinstance(outcome, Complete):
                round_.proposed, round_.complete = True, outcome
                self._give_room(round_, round_.held_bytes)
                self._propose(round_, outcome)
                self._advance()
                self.try_all_held()
            else:
                self._rejected(round_, outcome)
        self._around.effects.flush()

    def _rejected(self, round_: Round, outcome: Rejected) -> None:
        """The rank may send the block again; with a sum that overflowed, all of them."""
        self._around.count(f"pushes_refused_{outcome.refusal.reason.value.lower()}")
        if outcome.rank is None:
            self._kill(round_)
            for stream in tuple(round_.waiting):
                self._around.end(stream, outcome.refusal)
            return
        self._around.count(f"rejected_model_{self.info.create.model}_rank_{outcome.rank}")
        round_.contributors &= ~(1 << outcome.rank)
        self._give_room(round_, self._bytes_of(round_.index))
        for stream in [stream for stream in round_.waiting if stream.rank == outcome.rank]:
            del round_.waiting[stream]
            self._around.end(stream, outcome.refusal)
        self._let_go()  # it was whole, but for this

    def _propose(self, round_: Round, complete: Complete) -> None:
        def done(outcome: Outcome) -> None:
            self._proposed(round_, complete, outcome)

        self._around.effects.post(self._around.propose, complete.payload, complete.crc, done)

    def _proposed(self, round_: Round, complete: Complete, outcome: Outcome) -> None:
        """`applied` brings the result. Of an unknown outcome nothing is concluded: the round stays proposed until the
        tenure ends (HAZARDS 31)."""
        if round_.alive and isinstance(outcome, Refused):
            if outcome.busy:
                self._retry.append((round_, complete))
            elif outcome.full:
                self._around.count("pushes_refused_disk_full")
                self.end_all(disk_full(self._around.group))
            else:
                self.end_all(self._around.not_leader())
        self._around.effects.flush()

    def propose_again(self) -> None:
        """Something was applied, so the log has room again."""
        waiting, self._retry = self._retry, []
        for round_, complete in waiting:
            if round_.alive:
                self._propose(round_, complete)

    def drained(self) -> bool:
        """No sum is whole and not yet in the log: what is left is not worth waiting for."""
        whole = self._all_ranks
        waiting = any(one is not None and not one.proposed and one.contributors == whole for one in self._rounds)
        return not waiting and not self._retry

    @property
    def _all_ranks(self) -> int:
        """The contributors of a sum that is whole."""
        return (1 << self.info.create.spec.ranks) - 1

    def _next_step(self, index: int) -> int:
        """The lowest step of this block that is not yet proposed."""
        round_ = self._rounds[index]
        version = self._versions[index]
        return version + 1 if round_ is not None and round_.proposed and round_.step == version else version

    def _advance(self) -> None:
        while self._next_step(self._lowest % self._blocks) > self._lowest // self._blocks:
            self._lowest += 1

    # --- results -----------------------------------------------------------------------------------------------------

    def applied(self, result: Updated | Duplicate | NotTaken) -> None:
        """Apply answered a command on this model, whoever proposed it."""
        index = self.info.index_of(result.block)
        if index is None:
            return
        if isinstance(result, NotTaken):
            self._not_taken(index, result)
            return
        self._versions[index] = max(self._versions[index], result.version)
        round_ = self._rounds[index]
        if round_ is None or round_.step >= self._versions[index]:
            return
        self._kill(round_)
        if isinstance(result, Updated) and result.step == round_.step:
            self._reply(round_.waiting, index, round_.step, result)
            return
        for stream, wants in round_.waiting.items():
            self._reply_behind(stream, index, round_.step, wants)

    def after_applied(self) -> None:
        """A batch of results is in: the window may have moved, versions have come."""
        self._advance()
        self.try_all_held()

    def _not_taken(self, index: int, result: NotTaken) -> None:
        """Only the refusal of what is proposed now matters; those of an earlier view were dropped with it."""
        round_ = self._rounds[index]
        if round_ is None or not round_.proposed or (round_.step, round_.view) != (result.step, result.view):
            return
        if result.why is Why.HELD:
            self._around.count("updates_held")
            self._held.append(round_)
            return
        self._around.count("updates_refused")
        number = self.shard.info.view.number
        if number != round_.view:
            self.end_all(view_changed(number))
        else:
            self._around.alarm(f"apply refused what this leader proposed: {result.message}")
            self.end_all(Refusal(Reason.INTERNAL, result.message))

    def changed(self) -> None:
        """The shard was opened or has another view: everything starts anew under it (RULES S8)."""
        self.resync()
        self.end_all(view_changed(self.info.view.number))

    def steps_changed(self) -> None:
        """A hold stands, or ended: what was refused for it is tried again, what waited is judged again."""
        self.info = replace(self.info, steps=self.shard.info.steps)
        held, self._held = self._held, []
        for round_ in held:
            if round_.alive and round_.complete is not None:
                self._propose(round_, round_.complete)
        self.try_all_held()

    def end_all(self, refusal: Refusal) -> None:
        """Drop what is open and end every stream."""
        self.drop()
        for stream in tuple(self.streams.values()):
            self._around.end(stream, refusal)

    def _kill(self, round_: Round) -> None:
        round_.alive = False
        round_.sum.abandoned = True
        self._give_room(round_, round_.held_bytes)
        self._rounds[round_.index] = None

    # --- answers -----------------------------------------------------------------------------------------------------

    def _reply(self, waiting: dict[PushStream, bool], index: int, step: int, result: Updated) -> None:
        """One frame for all who want the same, so that it is encoded once."""
        alike: dict[Codec | None, list[PushStream]] = {}
        for stream, wants in waiting.items():
            alike.setdefault(stream.hello.weights_codec if wants else None, []).append(stream)
        for codec, streams in alike.items():
            self._answer(streams, codec, index, step, result.version, BlockStatus.APPLIED, result.forms)

    def _reply_behind(self, stream: PushStream, index: int, step: int, wants: bool) -> None:
        """The step is done already: the version that the block has now, and its weights."""
        if stream.state is not StreamState.OPEN:
            return
        now = self.shard.published[index]
        codec = stream.hello.weights_codec if wants else None
        self._answer([stream], codec, index, step, now.version, BlockStatus.DUPLICATE, now.forms)

    def _answer(
        self,
        streams: list[PushStream],
        codec: Codec | None,
        index: int,
        step: int,
        version: int,
        status: BlockStatus,
        forms: Forms | None,
    ) -> None:
        """With the weights in `codec`, encoded on a lane where apply did not see to it; None: without."""
        block = self.info.create.first_block + index

        def reply(form: Form | None) -> None:
            frame = self._frame(block, step, version, status, form)
            for stream in streams:
                if stream.state is StreamState.OPEN:
                    self._around.effects.post(stream.sink.reply, frame)

        def made(form: Form) -> None:
            reply(form)
            self._around.effects.flush()

        form = forms.ready(codec) if forms is not None and codec is not None else None
        if form is not None or forms is None or codec is None:
            reply(form)
        else:
            wanted = codec
            self._around.effects.post(self._around.run, SUM_LANE, lambda: forms.make(wanted), made)

    def _frame(self, block: int, step: int, version: int, status: BlockStatus, form: Form | None = None) -> BlockFrame:
        return BlockFrame(
            block=block,
            step=step,
            version=version,
            status=status,
            codec=Codec.FP32 if form is None else form.codec,
            crc=0 if form is None else form.crc,
            view=self.info.view.number,
            term=self._around.term,
            payload=b"" if form is None else form.payload,
        )

    def _far_ahead(self, frame: PushFrame, version: int) -> Refusal:
        return Refusal(
            Reason.FAR_AHEAD,
            f"block {frame.block}: expected a step up to {version + 1}, received {frame.step}",
            field="step",
            expected=f"at most {version + 1}",
            received=str(frame.step),
            hint="a worker computes step s from version s of every block",
            version=version,
        )

    def _out_of_order(self, frame: PushFrame, skipped: int) -> Refusal:
        expected = self.info.create.first_block + skipped
        return Refusal(
            Reason.OUT_OF_ORDER,
            f"block {frame.block} of step {frame.step}: expected block {expected} before it",
            field="block",
            expected=str(expected),
            received=str(frame.block),
            hint="every rank sends the blocks of a step in ascending order",
        )


def view_changed(number: int) -> Refusal:
    return Refusal(
        Reason.VIEW_CHANGED,
        f"the view is {number} now: open a new stream and start at the lowest unacknowledged block",
        field="hello.view",
        expected=str(number),
        view=number,
    )
