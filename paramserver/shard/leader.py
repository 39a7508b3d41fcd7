"""A data group's replica as its clients meet it (`consensus.runtime.interface.GroupListener`).

Owns the streams of the group and one `Gathering` a model. Lives on the host's thread; sums go to a lane, all else is
bookkeeping. Invariants: nothing is judged before the no-op of this term is applied here (RULES S2): until then
streams are parked; when the tenure ends, open sums are dropped and all streams end; when a model's view changes, that
model's (S8). Must not know: gRPC, event loops, the catalogue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from consensus.core.interface import GroupId, Payload, ReplicaId
from consensus.runtime.interface import Applied, Lanes, Outcome, ReadIndex, ReadOutcome
from paramserver.shard.effects import Effects
from paramserver.shard.forms import Form
from paramserver.shard.gathering import SUM_LANE, Gathering, view_changed
from paramserver.shard.initialization import Initialization, already_open, stream_open
from paramserver.shard.machine import ShardMachine
from paramserver.shard.options import LeaderOptions
from paramserver.shard.reads import BlockRead, Reads, Value, Waiter, not_open, stale_epoch, unknown_model
from paramserver.shard.results import Answer, Duplicate, NotTaken, Updated, Why
from paramserver.shard.soundness import Soundness
from paramserver.shard.state import ShardInfo
from paramserver.shard.streams import InitialStream, PushStream, Sink, Stream, StreamState
from paramserver.shard.window import SumWindow
from paramserver.wire.codecs import Codec
from paramserver.wire.errors import Reason, Refusal, invalid
from paramserver.wire.frames import Hello

T = TypeVar("T")
Propose = Callable[[Payload, int, Callable[[Outcome], None]], None]
ALARMS_KEPT = 64
"""Newest alarms for the status page."""


class ShardLeader:
    """One group's listener.

    propose, read_index, voters, report, distrust, hold (snapshots): `GroupHandle`'s. lanes: where sums run, and
    the machine works. address_of: where a replica serves, "" when unknown.
    on_alarm: told of every alarm, with one line. on_leading: told (term) once this replica may serve. room: what the
    node's open sums may take, shared by its groups.
    """

    def __init__(
        self,
        *,
        machine: ShardMachine,
        replica: ReplicaId,
        propose: Propose,
        read_index: Callable[[Callable[[ReadOutcome], None]], None],
        lanes: Lanes,
        options: LeaderOptions | None = None,
        voters: Callable[[], Sequence[ReplicaId]] = lambda: (),
        report: Callable[[ReplicaId, bytes], None] = lambda _replica, _content: None,
        distrust: Callable[[str], None] = lambda _: None,
        hold: Callable[[bool], None] = lambda _: None,
        address_of: Callable[[ReplicaId], str] = lambda _: "",
        on_alarm: Callable[[str], None] = lambda _: None,
        on_leading: Callable[[int], None] = lambda _: None,
        room: SumWindow | None = None,
    ) -> None:
        self.group: GroupId = machine.group
        self.effects = Effects()
        self.counters: Counter[str] = Counter()
        self.alarms: list[str] = []
        self.options = options or LeaderOptions()
        self.room = room or SumWindow(self.options.window_bytes)
        self._machine = machine
        self._replica = replica
        self._propose = propose
        self._read_index = read_index
        self._lanes = lanes
        self._address_of = address_of
        self._on_alarm = on_alarm
        self._on_leading = on_leading
        self._leading = False
        self._handing_over = False
        self._term = 0
        self._leader: ReplicaId = 0
        self._gatherings: dict[int, Gathering] = {}
        self._parked: dict[PushStream, None] = {}
        self._initial: dict[InitialStream, Initialization] = {}
        self._reads = Reads(lambda: machine.shards, self.options, deleted=lambda: machine.deleted)
        self._soundness = Soundness(
            lambda: machine.shards,
            lanes,
            self.options,
            replica=replica,
            voters=voters,
            report=report,
            distrust=distrust,
            hold=hold,
            served_since=self._reads.served_since,
            alarm=self.alarm,
            count=self.count,
            stop=self._stand_still,
            effects=self.effects,
        )
        self._resync()

    # --- for clients -------------------------------------------------------------------------------------------------

    @property
    def leading_now(self) -> bool:
        """This replica leads, and its no-op is applied."""
        return self._leading

    def open_stream(self, hello: Hello, sink: Sink) -> PushStream:
        """A rank's push stream. Its first reply is STREAM_OPEN, at once or when it was parked. Raises `Refusal`."""
        self._check_group(hello)
        self._check_sound()
        open_streams = sum(len(gathering.streams) for gathering in self._gatherings.values())
        if open_streams + len(self._parked) >= self.options.streams_max:
            raise self._busy(f"{self.options.streams_max} streams are open already")
        stream = PushStream(self, hello, sink)
        if not self._may_judge():
            self._expect_leadership()
            self._park(stream)
        elif self._ripe(hello):
            self._gatherings[hello.model].join(stream)
        else:
            self._park(stream)
        self.effects.flush()
        return stream

    def open_initialization(self, hello: Hello, sink: Sink) -> InitialStream:
        """A stream of initial values. Its first reply is STREAM_OPEN. Raises `Refusal`."""
        self._check_group(hello)
        self._check_sound()
        if not self._may_judge():
            self._expect_leadership()
            raise Refusal(Reason.NOT_READY, "a new leader is catching up", retry_after_ms=20)
        info = self._info(hello)
        if info.is_open:
            raise already_open(hello.model)
        if not hello.initialization_epoch:
            raise invalid("hello.initialization_epoch", "the epoch of the init lease", 0)
        if len(self._initial) >= self.options.streams_max:
            raise self._busy(f"{self.options.streams_max} streams are open already")
        stream = InitialStream(self, hello, sink)
        stream.state = StreamState.OPEN
        shard = self._gatherings[hello.model].shard
        self._initial[stream] = Initialization(
            stream,
            shard,
            self,
            self.end,
            in_flight_max=self.options.initial_blocks_in_flight,
        )
        self.effects.post(sink.reply, stream_open(info, self._term))
        self.effects.flush()
        return stream

    def read(self, want: BlockRead, wake: Callable[[], None]) -> Value | Waiter:
        """One block for a pull, from this replica, leader or not; a waiter where the version is not here yet. Raises
        `Refusal`."""
        if not self._may_serve():
            raise self._not_sound(Reason.DAMAGED)
        return self._reads.read(want, wake, certain=self._leading)

    def encoded(self, value: Value, codec: Codec, done: Callable[[Form], None]) -> None:
        """Tell `done` what was read in that codec: at once where it is there already, else when a lane has made it."""
        form = value.forms.ready(codec)
        if form is not None:
            done(form)
        else:
            self._lanes.run(SUM_LANE, lambda: value.forms.make(codec), done)

    # --- StreamOwner -------------------------------------------------------------------------------------------------

    def offered(self, stream: Stream) -> None:
        if stream.state is StreamState.ENDED:
            self._drop_held(stream)
        elif stream.state is StreamState.OPEN:
            if isinstance(stream, InitialStream):
                self._initial[stream].try_held()
            elif isinstance(stream, PushStream):
                self._gatherings[stream.hello.model].try_held(stream)
        self.effects.flush()

    def closed(self, stream: Stream) -> None:
        if stream.state is not StreamState.ENDED:
            self._remove(stream)
        self.effects.flush()

    # --- Surroundings ------------------------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        return self._term

    @property
    def takes(self) -> bool:
        return not self._handing_over

    def count(self, name: str) -> None:
        self.counters[name] += 1

    def alarm(self, message: str) -> None:
        self.count("alarms")
        line = f"group {self.group}: {message}"
        self.alarms = [*self.alarms[1 - ALARMS_KEPT :], line]
        self.effects.post(self._on_alarm, line)

    def run(self, lane: str, work: Callable[[], T], done: Callable[[T], None]) -> None:
        self._lanes.run(lane, work, done)

    def propose(self, payload: Payload, crc: int, done: Callable[[Outcome], None]) -> None:
        self._propose(payload, crc, done)

    def look_again(self) -> None:
        if self._leading:
            for gathering in self._gatherings.values():
                gathering.try_all_held()
            for initial in tuple(self._initial.values()):
                initial.try_held()
        self.effects.flush()

    def confirm(self, done: Callable[[bool], None]) -> None:
        def answered(outcome: ReadOutcome) -> None:
            done(isinstance(outcome, ReadIndex))
            self.effects.flush()

        self._read_index(answered)

    def end(self, stream: Stream, refusal: Refusal) -> None:
        if stream.state is StreamState.ENDED:
            return
        self._remove(stream)
        self.effects.post(stream.sink.end, refusal)

    def not_leader(self) -> Refusal:
        other = self._leader if self._leader != self._replica else 0
        address = self._address_of(other) if other else ""
        return Refusal(
            Reason.NOT_LEADER,
            f"group {self.group} is led by {address or 'somebody else'}"
            if other
            else f"group {self.group} has no known leader at the moment",
            leader_address=address,
            group=self.group,
            term=self._term,
        )

    # --- GroupListener -----------------------------------------------------------------------------------------------

    def leading(self, term: int) -> None:
        self._term, self._leader, self._leading = term, self._replica, True
        self._soundness.leads(self._replica)
        self._resync()
        self.effects.post(self._on_leading, term)
        self._judge_parked()
        self.effects.flush()

    def deposed(self, term: int) -> None:
        self._term = max(self._term, term)
        self._leading = False
        if self._leader == self._replica:
            self._leader = 0
        self._soundness.leads(self._leader)
        self._end_all(self.not_leader())
        self.effects.flush()

    def leader_changed(self, leader: ReplicaId, term: int) -> None:
        self._leader, self._term = leader, term
        if leader != self._replica:
            self._soundness.leads(leader)
            self._end_all(self.not_leader())
        self.effects.flush()

    def applied(self, batch: Sequence[Applied]) -> None:
        touched: dict[int, None] = {}
        for item in batch:
            model = self._result(item.result)
            if model is not None:
                touched[model] = None
        if self._leading:
            for gathering in self._gatherings.values():
                gathering.propose_again()
            for model in touched:
                if model in self._gatherings:  # it may be deleted within the same batch
                    self._gatherings[model].after_applied()
        self.effects.flush()

    def restored(self, index: int) -> None:
        self._soundness.restored()
        for gathering in self._gatherings.values():
            gathering.drop()
        self._gatherings.clear()
        self._resync()
        for wake in self._reads.all():
            self.effects.post(wake)
        self.effects.flush()

    def handing_over(self, to: ReplicaId) -> None:
        """Streams wait until it is over; then they go on, or end and go to the new leader (RULES C6)."""
        self._handing_over = to != 0
        self.count("hand_overs" if to else "hand_overs_over")
        if not to and self._leading:
            # It was given up: what was held back, or refused as busy meanwhile, goes on.
            for gathering in self._gatherings.values():
                gathering.propose_again()
                gathering.try_all_held()
            for initial in tuple(self._initial.values()):
                initial.try_held()
        self.effects.flush()

    def drained(self) -> bool:
        return all(gathering.drained() for gathering in self._gatherings.values())

    def note(self) -> bytes:
        return self._soundness.note()

    def noted(self, replica: ReplicaId, note: bytes) -> None:
        self._soundness.noted(replica, note)
        self.effects.flush()

    def tick(self, now_ms: int) -> None:
        """Time passed: states are compared although nothing is written (RULES D1). About once a second."""
        self._soundness.tick(now_ms)
        self.effects.flush()

    # --- within ------------------------------------------------------------------------------------------------------

    def _may_judge(self) -> bool:
        """RULES S2: not before the no-op of this term is applied here; until then versions may be old."""
        return self._leading

    def _may_serve(self) -> bool:
        """A replica whose state was found wrong serves nothing (RULES D1)."""
        return not self._soundness.distrusted

    def _check_sound(self) -> None:
        """Raises `Refusal` where nothing may be written."""
        if self._soundness.problem:
            self._expect_leadership()
            raise self._not_sound(Reason.NOT_READY)

    def _not_sound(self, reason: Reason) -> Refusal:
        return Refusal(
            reason,
            f"group {self.group}: {self._soundness.problem}",
            group=self.group,
            retry_after_ms=self.options.retry_after_ms,
        )

    def _stand_still(self) -> None:
        """Nothing more is taken, and who waits for a version asks again, and hears why."""
        self._end_all(self._not_sound(Reason.NOT_READY))
        for wake in self._reads.all():
            self.effects.post(wake)

    def _ripe(self, hello: Hello) -> bool:
        """May this stream be opened now? False: it waits for its view. Raises `Refusal`."""
        info = self._info(hello)
        ranks = info.create.spec.ranks
        if hello.rank >= ranks:
            raise invalid("hello.rank", f"0 to {ranks - 1}", hello.rank)
        if not info.is_open:
            raise not_open(hello.model)
        view = info.view
        if hello.view > view.number:
            return False
        held = view.lease_epochs[hello.rank]
        if hello.lease_epoch != held or held == 0:
            if hello.view < view.number and hello.lease_epoch > held:
                raise view_changed(view.number)
            raise Refusal(
                Reason.STALE_LEASE,
                f"rank {hello.rank} is held under lease epoch {held}, not {hello.lease_epoch}",
                field="hello.lease_epoch",
                expected=str(held),
                received=str(hello.lease_epoch),
                hint="claim the rank again",
                view=view.number,
                epoch=held,
                rank=hello.rank,
            )
        if hello.view < view.number:
            raise view_changed(view.number)
        return True

    def _info(self, hello: Hello) -> ShardInfo:
        gathering = self._gatherings.get(hello.model)
        if gathering is None or gathering.info.create.generation != hello.generation:
            raise unknown_model(self.group, hello.model, hello.generation, field="hello.model")
        current = gathering.info.create.placement_epoch
        if hello.placement_epoch != current:
            raise stale_epoch(current, hello.placement_epoch)
        return gathering.info

    def _check_group(self, hello: Hello) -> None:
        if hello.group != self.group:
            raise invalid("hello.group", str(self.group), hello.group)

    def _expect_leadership(self) -> None:
        """Parking makes sense only where leadership is about to be confirmed."""
        if self._leader != self._replica:
            raise self.not_leader()

    def _busy(self, message: str) -> Refusal:
        return Refusal(Reason.BUSY, message, retry_after_ms=self.options.retry_after_ms)

    def _park(self, stream: PushStream) -> None:
        self.count("streams_parked")
        self._parked[stream] = None

    def _judge_parked(self) -> None:
        for stream in tuple(self._parked):
            try:
                ripe = self._ripe(stream.hello)
            except Refusal as refusal:
                self.end(stream, refusal)
                continue
            if ripe:
                del self._parked[stream]
                self._gatherings[stream.hello.model].join(stream)

    def _resync(self) -> None:
        for model in [model for model in self._gatherings if model not in self._machine.shards]:
            self._forget(model)
        for model, shard in self._machine.shards.items():
            if model in self._gatherings:
                self._gatherings[model].resync()
            else:
                self._gatherings[model] = Gathering(shard, self, window=self.options.window_blocks)

    def _result(self, result: Any) -> int | None:
        """Take note of one result; the model whose window may have moved."""
        if isinstance(result, Answer):
            self._answered(result)
            return None
        if isinstance(result, NotTaken) and result.why in (Why.AHEAD, Why.MALFORMED):
            self.alarm(f"a command in the log was refused: {result.message}")
        if isinstance(result, Updated) and result.model in self._gatherings:
            self._soundness.applied(result)
            for wake in self._reads.ready(result.model, result.block, result.version):
                self.effects.post(wake)
        if isinstance(result, Updated | Duplicate | NotTaken) and result.model in self._gatherings:
            self._gatherings[result.model].applied(result)
            return result.model
        return None

    def _answered(self, answer: Answer) -> None:
        """A shard was created, opened, or has another view."""
        if not answer.changed:
            return
        gathering, shard = self._gatherings.get(answer.model), self._machine.shards.get(answer.model)
        if shard is None:
            self._forget(answer.model)
        elif gathering is None:
            self._gatherings[answer.model] = Gathering(shard, self, window=self.options.window_blocks)
        elif answer.steps:
            gathering.steps_changed()
        else:
            gathering.changed()
        if self._leading:
            self._judge_parked()

    def _forget(self, model: int) -> None:
        """It was deleted: whoever has to do with it is told."""
        gathering = self._gatherings.pop(model, None)
        generation = gathering.info.create.generation if gathering is not None else 0
        refusal = unknown_model(self.group, model, generation, field="hello.model")
        if gathering is not None:
            gathering.end_all(refusal)
        for stream in [one for one in (*self._parked, *self._initial) if one.hello.model == model]:
            self.end(stream, refusal)
        self._soundness.forget(model)
        for wake in self._reads.of(model):
            self.effects.post(wake)

    def _end_all(self, refusal: Refusal) -> None:
        for gathering in self._gatherings.values():
            gathering.end_all(refusal)
        for stream in (*self._parked, *self._initial):
            self.end(stream, refusal)

    def _remove(self, stream: Stream) -> None:
        stream.state = StreamState.ENDED
        if isinstance(stream, InitialStream):
            self._initial.pop(stream, None)
        elif isinstance(stream, PushStream):
            self._parked.pop(stream, None)
            if stream.hello.model in self._gatherings:
                self._gatherings[stream.hello.model].leave(stream)
        self._drop_held(stream)

    def _drop_held(self, stream: Stream) -> None:
        if stream.held is not None:
            _, admitted = stream.held
            stream.held = None
            self.effects.post(admitted)
