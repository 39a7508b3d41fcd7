"""Replicas compare what they computed, all the time, and find out who is wrong (RULES D1, promise P3).

A follower's answers carry (model, block, version, digest) of what it applied; the leader compares equal versions with
its own and with each other's: what a majority of the voters has is right, who has something else is odd, and as long as
no majority has one value nobody knows, and the group is in doubt: the leader then asks those that have not said what
they have, with a note that says what it has itself. Invariants: memory is bounded (the oldest is dropped and counted;
what is in doubt stays); a note or verdict can be anything, it never raises. A verdict is evidence, not an
order: it names the right digest, and its receiver judges itself by it, so it does no harm if it comes late, twice, or
from a leader of the past. Must not know: how notes travel, what becomes of an odd replica.

Formats, little-endian: a note is the bytes "D" 1, then entries of u64, u32, u64, 16 bytes; a verdict the bytes "V" 1,
one such entry, and u64: the last version at which the receiver was equal, plus 1, or 0.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from consensus.core.interface import ReplicaId
from consensus.core.quorum import majority
from paramserver.shard.options import LeaderOptions
from paramserver.shard.results import Updated
from paramserver.shard.state import Published, Shard
from paramserver.wire.checksum import DIGEST_BYTES

Key: TypeAlias = tuple[int, int, int]
"""(model, block, version)."""
_HEAD = b"D\x01"
_ENTRY = struct.Struct(f"<QIQ{DIGEST_BYTES}s")
_VERDICT_HEAD = b"V\x01"
_VERDICT = struct.Struct(f"<QIQ{DIGEST_BYTES}sQ")
QUESTIONS_MAX = 4
"""Versions in doubt that are asked about at a time."""
ALARMS_MAX = 1024
"""(replica, block) pairs that were reported; beyond it they are forgotten and may be reported again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A majority has `right` for that block at that version, the receiver something else. `equal_at`: its last version
    that was compared equal; None when there is none."""

    model: int
    block: int
    version: int
    right: bytes
    equal_at: int | None

    def encode(self) -> bytes:
        equal = 0 if self.equal_at is None else self.equal_at + 1
        return _VERDICT_HEAD + _VERDICT.pack(self.model, self.block, self.version, self.right, equal)

    def names(self) -> str:
        since = "never compared equal" if self.equal_at is None else f"equal last at version {self.equal_at}"
        return f"model {self.model} block {self.block} version {self.version}: {since}"


def decode_verdict(note: bytes) -> Verdict | None:
    """None for what is none."""
    body = note[len(_VERDICT_HEAD) :]
    if not note.startswith(_VERDICT_HEAD) or len(body) != _VERDICT.size:
        return None
    model, block, version, right, equal = _VERDICT.unpack(body)
    return Verdict(model, block, version, right, equal - 1 if equal else None)


class DigestExchange:
    """Of one replica. `voters`: of the group; empty when they are not known, and then only alarms are raised. `odd`:
    told, at the leader, who is wrong (this replica itself, too) and by which verdict; again while it goes on."""

    def __init__(
        self,
        shards: Callable[[], Mapping[int, Shard]],
        alarm: Callable[[str], None],
        count: Callable[[str], None],
        options: LeaderOptions,
        *,
        replica: ReplicaId = 0,
        voters: Callable[[], Sequence[ReplicaId]] = lambda: (),
        odd: Callable[[ReplicaId, Verdict], None] = lambda _replica, _verdict: None,
    ) -> None:
        self._shards = shards
        self._alarm = alarm
        self._count = count
        self._options = options
        self._replica = replica
        self._voters = voters
        self._odd = odd
        self._unsent: deque[bytes] = deque()
        self._seen: OrderedDict[Key, dict[ReplicaId, bytes]] = OrderedDict()
        """What replicas have of a version, this one too, until all have said the same."""
        self._last_equal: dict[tuple[ReplicaId, int, int], int] = {}
        self._reported: set[tuple[ReplicaId, int, int]] = set()
        self._doubts: dict[Key, None] = {}
        self._odd_ones: dict[tuple[ReplicaId, int, int], Verdict] = {}
        """Who was found wrong in a block, and has not been compared equal since: what it says of later versions follows
        from that, and puts nothing in doubt."""

    @property
    def doubt(self) -> str:
        """What replicas differ in without a majority for any value; empty when nothing is."""
        key = next(iter(self._doubts), None)
        return "" if key is None else f"model {key[0]} block {key[1]} version {key[2]}"

    # --- a follower's part ------------------------------------------------------------------------------------------

    def applied(self, result: Updated, *, leading: bool) -> None:
        key = (result.model, result.block, result.version)
        if leading:
            self._own(key, result.digest)
        else:
            self.tell(key, result.digest)

    def tell(self, key: Key, digest: bytes) -> None:
        """Have the leader compare this."""
        if len(self._unsent) >= self._options.digests_backlog:
            self._unsent.popleft()
            self._count("digests_dropped")
        self._unsent.append(_ENTRY.pack(*key, digest))

    def asked(self, note: bytes) -> None:
        """The leader says what it has, and wants to know what is here."""
        for key, _ in self._entries(note):
            own = self._known(key)
            if own is not None:
                self.tell(key, own)

    def note(self) -> bytes:
        """What rides on the next answer to the leader."""
        if not self._unsent:
            return b""
        room = (self._options.note_bytes_max - len(_HEAD)) // _ENTRY.size
        entries = [self._unsent.popleft() for _ in range(min(room, len(self._unsent)))]
        return _HEAD + b"".join(entries)

    # --- the leader's part ------------------------------------------------------------------------------------------

    def noted(self, replica: ReplicaId, note: bytes) -> None:
        for key, digest in self._entries(note):
            self._received(replica, key, digest)

    def questions(self) -> list[tuple[ReplicaId, bytes]]:
        """Whom to send what, to get out of doubt: what they said was lost, or others vote now; and verdicts, which may
        have been lost too. A few at a time."""
        found: list[tuple[ReplicaId, bytes]] = []
        for key in tuple(self._doubts)[:QUESTIONS_MAX]:
            self._judge(key)
            seen = self._seen.get(key, {})
            if key in self._doubts and self._replica in seen:
                ask = _HEAD + _ENTRY.pack(*key, seen[self._replica])
                found += [(voter, ask) for voter in self._voters() if voter not in seen]
        return found + [(who[0], verdict.encode()) for who, verdict in tuple(self._odd_ones.items())[:QUESTIONS_MAX]]

    def forget_model(self, model: int) -> None:
        """It was deleted: nothing of it can be in doubt."""
        for seen in [key for key in self._seen if key[0] == model]:
            del self._seen[seen]
        self._doubts = {key: None for key in self._doubts if key[0] != model}
        self._odd_ones = {who: verdict for who, verdict in self._odd_ones.items() if who[1] != model}
        self._last_equal = {who: version for who, version in self._last_equal.items() if who[1] != model}
        self._reported = {who for who in self._reported if who[1] != model}

    def forget(self) -> None:
        """Leadership changed, or the state was replaced: nothing unsent or early is of use."""
        self._unsent.clear()
        self._seen.clear()
        self._doubts.clear()
        self._odd_ones.clear()

    def _entries(self, note: bytes) -> list[tuple[Key, bytes]]:
        body = note[len(_HEAD) :]
        if note and (not note.startswith(_HEAD) or len(body) % _ENTRY.size):
            self._count("notes_malformed")
            return []
        return [((model, block, version), digest) for model, block, version, digest in _ENTRY.iter_unpack(body)]

    def _published(self, key: Key) -> Published | None:
        model, block, _ = key
        shard = self._shards().get(model)
        index = None if shard is None else shard.info.index_of(block)
        return None if shard is None or index is None else shard.published[index]

    def _known(self, key: Key) -> bytes | None:
        """What this replica's memory holds of that version, among the last few."""
        now = self._published(key)
        return None if now is None else now.digest_of(key[2])

    def _own(self, key: Key, digest: bytes) -> None:
        if len(self._voters()) < 2 and key not in self._seen:
            return
        seen = self._remember(key)
        if seen is None:
            return
        for replica, theirs in seen.items():
            self._compare(replica, key, theirs, digest)
        seen[self._replica] = digest
        self._judge(key)

    def _received(self, replica: ReplicaId, key: Key, digest: bytes) -> None:
        now, seen = self._published(key), self._seen.get(key)
        if now is None:
            self._count("digests_missed")
            return
        own = now.digest_of(key[2]) if seen is None else seen.get(self._replica)
        if own is None and key[2] <= now.version:
            self._count("digests_missed")
            return
        if own is not None:
            self._compare(replica, key, digest, own)
            if seen is None and digest == own:
                return  # Settled before, and scrubbed now.
        seen = self._remember(key)
        if seen is None:
            return
        if own is not None:
            seen[self._replica] = own
        seen[replica] = digest
        self._judge(key)

    def _remember(self, key: Key) -> dict[ReplicaId, bytes] | None:
        """None where there is no room, because so much is in doubt."""
        seen = self._seen.get(key)
        if seen is not None:
            return seen
        if len(self._seen) >= self._options.digests_backlog:
            oldest = next((known for known in self._seen if known not in self._doubts), None)
            if oldest is None:
                self._count("digests_dropped")
                return None
            if self._replica not in self._seen.pop(oldest):
                self._count("digests_dropped")
        return self._seen.setdefault(key, {})

    def _judge(self, key: Key) -> None:
        """Of three, two equal ones are right (RULES D1)."""
        seen, voters = self._seen.get(key), self._voters()
        if seen is None or not voters or self._replica not in seen:
            return
        values = Counter(seen[voter] for voter in voters if voter in seen)
        right, count = values.most_common(1)[0] if values else (b"", 0)
        if count < majority(len(voters)):
            trusted = {seen[voter] for voter in voters if voter in seen and (voter, *key[:2]) not in self._odd_ones}
            if len(trusted) > 1:
                self._in_doubt(key, everybody=all(voter in seen for voter in voters))
            return
        if self._doubts:
            # A digest stands for all that came before it, too.
            for older in [known for known in self._doubts if known[:2] == key[:2] and known[2] <= key[2]]:
                del self._doubts[older]
        for replica, digest in tuple(seen.items()):
            if digest != right:
                self._is_odd(replica, key, right)
        if all(voter in seen for voter in voters):
            self._seen.pop(key, None)

    def _is_odd(self, replica: ReplicaId, key: Key, right: bytes) -> None:
        model, block, version = key
        self._count("verdicts")
        equal_at = self._last_equal.get((replica, model, block))
        verdict = Verdict(model, block, version, right, equal_at)
        if replica != self._replica and len(self._odd_ones) < ALARMS_MAX:
            self._odd_ones[replica, model, block] = verdict
        self._odd(replica, verdict)

    def _in_doubt(self, key: Key, *, everybody: bool) -> None:
        if key not in self._doubts:
            self._count("digests_in_doubt")
            rest = "" if everybody else " until the others have said what they have"
            self._alarm(
                f"no majority of the replicas has the same model {key[0]} block {key[1]} version {key[2]}: "
                f"nothing is written{rest}"
            )
        self._doubts[key] = None

    def _compare(self, replica: ReplicaId, key: Key, theirs: bytes, own: bytes) -> None:
        """With this replica's own, whoever is right."""
        model, block, version = key
        if replica == self._replica:
            return
        self._count("digests_compared")
        who = (replica, model, block)
        if theirs == own:
            self._last_equal[who] = max(version, self._last_equal.get(who, 0))
            own_mark = (self._replica, model, block)
            self._last_equal[own_mark] = max(version, self._last_equal.get(own_mark, 0))
            self._reported.discard(who)
            self._odd_ones.pop(who, None)
            return
        self._count("digests_unequal")
        if who in self._reported:
            return
        if len(self._reported) >= ALARMS_MAX:
            self._reported.clear()
        self._reported.add(who)
        last = self._last_equal.get(who)
        since = "never compared equal" if last is None else f"equal last at version {last}"
        self._alarm(
            f"replica {replica} and this one differ in model {model} block {block} version {version}: "
            f"{theirs.hex()} there, {own.hex()} here; {since}, everything served after that is in doubt"
        )
