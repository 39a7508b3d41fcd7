"""Replicas compare what they computed, all the time (RULES D1, promise P3).

A follower's answers carry (model, block, version, digest) of what it applied; the leader compares equal versions with
its own last ones. Format of a note, little-endian: bytes "D" 1, then entries of u64, u32, u64, 16 bytes. Invariants:
memory is bounded (the oldest is dropped and counted); a note can be anything, it never raises. Must not know: how notes
travel.
"""

from __future__ import annotations

import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping

from consensus.core.interface import ReplicaId
from paramserver.shard.options import LeaderOptions
from paramserver.shard.results import Updated
from paramserver.shard.state import Shard
from paramserver.wire.checksum import DIGEST_BYTES

_HEAD = b"D\x01"
_ENTRY = struct.Struct(f"<QIQ{DIGEST_BYTES}s")
ALARMS_MAX = 1024
"""(replica, block) pairs that were reported; beyond it they are forgotten and may be reported again."""


class DigestExchange:
    def __init__(
        self,
        shards: Callable[[], Mapping[int, Shard]],
        alarm: Callable[[str], None],
        count: Callable[[str], None],
        options: LeaderOptions,
    ) -> None:
        self._shards = shards
        self._alarm = alarm
        self._count = count
        self._options = options
        self._unsent: deque[bytes] = deque()
        self._early: OrderedDict[tuple[int, int, int], list[tuple[ReplicaId, bytes]]] = OrderedDict()
        self._last_equal: dict[tuple[ReplicaId, int, int], int] = {}
        self._reported: set[tuple[ReplicaId, int, int]] = set()

    def applied(self, result: Updated, *, leading: bool) -> None:
        key = (result.model, result.block, result.version)
        if leading:
            for replica, digest in self._early.pop(key, ()):
                self._compare(replica, key, digest, result.digest)
            return
        if len(self._unsent) >= self._options.digests_backlog:
            self._unsent.popleft()
            self._count("digests_dropped")
        self._unsent.append(_ENTRY.pack(*key, result.digest))

    def note(self) -> bytes:
        """What rides on the next answer to the leader."""
        if not self._unsent:
            return b""
        room = (self._options.note_bytes_max - len(_HEAD)) // _ENTRY.size
        entries = [self._unsent.popleft() for _ in range(min(room, len(self._unsent)))]
        return _HEAD + b"".join(entries)

    def noted(self, replica: ReplicaId, note: bytes) -> None:
        if not note:
            return
        body = note[len(_HEAD) :]
        if not note.startswith(_HEAD) or len(body) % _ENTRY.size:
            self._count("notes_malformed")
            return
        for model, block, version, digest in _ENTRY.iter_unpack(body):
            self._received(replica, (model, block, version), digest)

    def forget(self) -> None:
        """Leadership changed, or the state was replaced: nothing unsent or early is of use."""
        self._unsent.clear()
        self._early.clear()

    def _received(self, replica: ReplicaId, key: tuple[int, int, int], digest: bytes) -> None:
        model, block, version = key
        shard = self._shards().get(model)
        index = None if shard is None else shard.info.index_of(block)
        if shard is None or index is None:
            self._count("digests_missed")
            return
        now = shard.published[index]
        own = now.digest_of(version)
        if own is not None:
            self._compare(replica, key, digest, own)
        elif version > now.version:
            self._early.setdefault(key, []).append((replica, digest))
            if len(self._early) > self._options.digests_backlog:
                self._early.popitem(last=False)
                self._count("digests_dropped")
        else:
            self._count("digests_missed")

    def _compare(self, replica: ReplicaId, key: tuple[int, int, int], theirs: bytes, own: bytes) -> None:
        model, block, version = key
        self._count("digests_compared")
        who = (replica, model, block)
        if theirs == own:
            self._last_equal[who] = max(version, self._last_equal.get(who, 0))
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
