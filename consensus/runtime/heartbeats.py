"""One heartbeat for a pair of nodes, whatever the number of groups (RULES C5).

Owns what leaves in one: the heartbeats of all groups that are awake, as rows, and one hash for all that sleep; what is
answered: the rows' answers, and the names of groups that sleep here but not there, or otherwise; and the watch over
nodes for the groups asleep, which have no clock of their own. Invariants: each beat is whole (every group led here that
has a replica there is in its rows or in its hash), so who is in neither does not sleep under this leader; a difference
or a silence wakes, and nothing here ever counts as contact of a group; silence is measured in ticks, and what a stalled
process owes counts only when nothing was heard since. Must not know: cores, what groups are for.

A node that speaks of a group as asleep says: I lead it, in that term, up to that index. As long as the other's view is
the same, neither needs to say more. When the hashes differ the next beat lists the rows, and the ones that differ wake.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from consensus.core.interface import GroupId, Heartbeat, HeartbeatResponse, NodeId
from consensus.transport.interface import (
    ROWS_MAX,
    AsleepRow,
    Envelope,
    NodeHeartbeat,
    NodeHeartbeatAnswer,
)

_ROW = struct.Struct("<IQQQQ")
PAIR_GROUP: GroupId = 0
"""In the envelope of what is said of a pair of nodes: it is of no group."""


def hash_of(rows: Iterable[AsleepRow]) -> int:
    """Of rows in any order; 0 for none."""
    ordered = sorted(rows, key=lambda row: row.group)
    if not ordered:
        return 0
    digest = hashlib.blake2b(digest_size=8)
    for row in ordered:
        digest.update(_ROW.pack(row.group, row.leader, row.replica, row.term, row.commit))
    return int.from_bytes(digest.digest(), "little")


class Asleep:
    """Rows of one direction between two nodes, and their hash."""

    __slots__ = ("_hash", "rows")

    def __init__(self) -> None:
        self.rows: dict[GroupId, AsleepRow] = {}
        self._hash: int | None = 0

    def put(self, row: AsleepRow) -> None:
        self.rows[row.group] = row
        self._hash = None

    def drop(self, group: GroupId) -> None:
        if self.rows.pop(group, None) is not None:
            self._hash = None

    def but(self, awake: frozenset[GroupId]) -> tuple[int, int]:
        """(count, hash) of those that are not in `awake`."""
        if not awake.isdisjoint(self.rows):
            rest = [row for group, row in self.rows.items() if group not in awake]
            return len(rest), hash_of(rest)
        if self._hash is None:
            self._hash = hash_of(self.rows.values())
        return len(self.rows), self._hash


@dataclass(slots=True)
class _Watch:
    """Of the other node, for groups that sleep."""

    quiet_ms: int = 0
    heard: bool = False
    """Since this process noticed a stall of its own."""

    def hear(self) -> None:
        self.quiet_ms = 0
        self.heard = True


@dataclass(slots=True)
class _Answer:
    """Owed to a beat that was heard in this input."""

    differs: bool = False
    differing: list[GroupId] = field(default_factory=list)


class _Pair:
    """This node and another one."""

    __slots__ = ("answer", "followed", "incarnation", "leader", "led", "list_next", "replicas", "since_ms")

    def __init__(self) -> None:
        self.led = Asleep()
        """Groups that sleep under a leader here, with a replica there."""
        self.followed = Asleep()
        """Groups that sleep here under a leader there."""
        self.replicas = _Watch()
        """Over the answers, for `led`."""
        self.leader = _Watch()
        """Over the beats, for `followed`."""
        self.since_ms = 0
        """The last beat to the other node."""
        self.list_next = False
        self.answer: _Answer | None = None
        self.incarnation = 0


class Heartbeats:
    """`wake` wakes a group; it may come back by `sleeps` before the input ends."""

    def __init__(
        self,
        *,
        incarnation: int,
        beat_ms: int,
        asleep_beat_ms: int,
        silence_ms: int,
        wake: Callable[[GroupId], None],
    ) -> None:
        """A beat every `beat_ms` to nodes with awake groups, every `asleep_beat_ms` where all sleep; a node that is
        silent for `silence_ms` wakes the groups concerned."""
        self._incarnation = incarnation
        self._beat_ms = beat_ms
        self._asleep_beat_ms = asleep_beat_ms
        self._silence_ms = silence_ms
        self._wake = wake
        self._pairs: dict[NodeId, _Pair] = {}
        self._elapsed_ms = 0
        self._beating = False
        self._owing: set[NodeId] = set()
        self.woken = 0
        """Groups woken by silence, by a difference, or by another life of a node."""

    def _pair(self, node: NodeId) -> _Pair:
        pair = self._pairs.get(node)
        if pair is None:
            pair = self._pairs[node] = _Pair()
        return pair

    # --- who sleeps -------------------------------------------------------------------------------------------------

    def sleeps(self, node: NodeId, row: AsleepRow, *, led: bool) -> None:
        """`led`: its leader is here and a replica on that node; otherwise the other way round."""
        pair = self._pair(node)
        asleep, watch = (pair.led, pair.replicas) if led else (pair.followed, pair.leader)
        if not asleep.rows:
            watch.hear()
        asleep.put(row)

    def awake(self, node: NodeId, group: GroupId) -> None:
        pair = self._pairs.get(node)
        if pair is not None:
            pair.led.drop(group)
            pair.followed.drop(group)

    # --- time -------------------------------------------------------------------------------------------------------

    def stalled(self) -> None:
        for pair in self._pairs.values():
            pair.leader.heard = pair.replicas.heard = False

    def tick(self, elapsed_ms: int, *, owed_ms: int) -> bool:
        """True when it is time for a beat: all groups' heartbeats leave with it."""
        for pair in self._pairs.values():
            pair.since_ms += elapsed_ms
            self._watch(pair, elapsed_ms, owed_ms)
        self._elapsed_ms += elapsed_ms
        self._beating = self._elapsed_ms >= self._beat_ms
        if self._beating:
            self._elapsed_ms %= self._beat_ms
        return self._beating

    def _watch(self, pair: _Pair, elapsed_ms: int, owed_ms: int) -> None:
        """Silence of the other node wakes the groups that it concerns."""
        for asleep, watch in ((pair.followed, pair.leader), (pair.led, pair.replicas)):
            if not asleep.rows:
                continue
            watch.quiet_ms += elapsed_ms + (0 if watch.heard else owed_ms)
            if watch.quiet_ms >= self._silence_ms:
                self._wake_all(asleep.rows)

    def _wake_all(self, groups: Iterable[GroupId]) -> None:
        for group in list(groups):
            self.woken += 1
            self._wake(group)

    # --- going out --------------------------------------------------------------------------------------------------

    def due(self) -> Iterator[NodeId]:
        """Nodes that must hear of this one now, even if no group has anything to say."""
        if self._beating:
            for node, pair in self._pairs.items():
                if pair.led.rows and pair.since_ms + self._beat_ms > self._asleep_beat_ms:
                    yield node
        yield from self._owing

    def packed(self, node: NodeId, envelopes: Sequence[Envelope]) -> list[Envelope]:
        """What leaves for the control connection of a node at the end of an input. A heartbeat between two beats (of a
        new leader, or for a read) leaves by itself."""
        out = list(envelopes)
        if self._beating:
            out = self._beat(node, out)
        if node in self._owing:
            out = self._answered(node, out)
        return out

    def sent(self) -> None:
        """All that this input caused has left."""
        self._beating = False
        self._owing.clear()

    def _beat(self, node: NodeId, envelopes: list[Envelope]) -> list[Envelope]:
        pair = self._pair(node)
        rows, rest = _split(envelopes, Heartbeat)
        if not rows and not pair.led.rows:
            return envelopes
        groups = frozenset(row.group for row in rows)
        asleep, asleep_hash = pair.led.but(groups)
        listed: tuple[AsleepRow, ...] = ()
        if pair.list_next:
            if asleep > ROWS_MAX:
                self._wake_all(pair.led.rows)
            else:
                listed = tuple(row for group, row in pair.led.rows.items() if group not in groups)
        beat = NodeHeartbeat(
            incarnation=self._incarnation,
            rows=tuple(rows),
            asleep=asleep,
            asleep_hash=asleep_hash,
            listed=bool(listed),
            asleep_rows=listed,
        )
        pair.list_next = False
        pair.since_ms = 0
        return [Envelope(PAIR_GROUP, beat), *rest]

    def _answered(self, node: NodeId, envelopes: list[Envelope]) -> list[Envelope]:
        pair = self._pair(node)
        owed, pair.answer = pair.answer or _Answer(), None
        rows, rest = _split(envelopes, HeartbeatResponse)
        answer = NodeHeartbeatAnswer(
            incarnation=self._incarnation,
            rows=tuple(rows),
            differs=owed.differs,
            differing=tuple(owed.differing[:ROWS_MAX]),
        )
        return [Envelope(PAIR_GROUP, answer), *rest]

    # --- coming in --------------------------------------------------------------------------------------------------

    def heard(self, node: NodeId, beat: NodeHeartbeat) -> None:
        """A beat came, and the groups in its rows have taken them."""
        pair = self._life(node, beat.incarnation)
        pair.leader.hear()
        answer = pair.answer = pair.answer or _Answer()
        self._owing.add(node)
        awake = frozenset(row.group for row in beat.rows)
        if pair.followed.but(awake) == (beat.asleep, beat.asleep_hash):
            return
        if not beat.listed and beat.asleep:
            answer.differs = True
            return
        listed = {row.group: row for row in beat.asleep_rows}
        answer.differing += [group for group, row in listed.items() if pair.followed.rows.get(group) != row]
        self._wake_all(
            [group for group, row in pair.followed.rows.items() if group not in awake and listed.get(group) != row]
        )

    def answered(self, node: NodeId, answer: NodeHeartbeatAnswer) -> None:
        """An answer came, and the groups in its rows have taken them."""
        pair = self._life(node, answer.incarnation)
        pair.replicas.hear()
        if answer.differs:
            pair.list_next = True
        self._wake_all(group for group in answer.differing if group in pair.led.rows)

    def _life(self, node: NodeId, incarnation: int) -> _Pair:
        """A new life of a node remembers nothing of what slept (RULES C5)."""
        pair = self._pair(node)
        if incarnation > pair.incarnation:
            if pair.incarnation:
                self._wake_all([*pair.led.rows, *pair.followed.rows])
            pair.incarnation = incarnation
        return pair


def _split(envelopes: Sequence[Envelope], kind: type) -> tuple[list[Envelope], list[Envelope]]:
    """Those of the kind, at most one of a group and `ROWS_MAX` of all; the others."""
    rows: dict[GroupId, Envelope] = {}
    rest: list[Envelope] = []
    for envelope in envelopes:
        fits = isinstance(envelope.message, kind) and envelope.group not in rows and len(rows) < ROWS_MAX
        if fits:
            rows[envelope.group] = envelope
        else:
            rest.append(envelope)
    return list(rows.values()), rest
