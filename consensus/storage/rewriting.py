"""Old segments that hold next to nothing: their last live entries are written again, so that one idle group never pins
the log (RULES W4).

Owns which segment is next, and what was read of it. Invariants: all that is live in a segment is read and verified
before any of it is written again; a segment in which something does not verify is left alone, for the next start to
judge; only what takes at most a quarter of a segment is written again, so the log never grows by it. Must not know: how
copies are written, when segments are free.

`gather` may run on another thread than the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from consensus.core.interface import Entry, EntryKind, GroupId
from consensus.storage.checksum import crc32c
from consensus.storage.interface import File, FileSystem
from consensus.storage.live import LiveLog
from consensus.storage.records import HEADER_BYTES, Kind, decode_header
from consensus.storage.segments import segment_path
from consensus.storage.tables import SegmentRow

LIVE_SHARE = 4
"""A segment is worth it when its live entries take at most one part in so many."""
LITTLE_SHARE = 64
"""One with less than this costs next to nothing, and is not left until there are many: each that is held in vain is one
more file to make, to zero and to keep in the page cache."""
HELD_IN_VAIN_MAX = 2
READ_BYTES = 64 << 10
"""Of a segment at a time: small entries mostly lie side by side."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A segment, and what was live in it when it was chosen: (group, index, offset of the payload)."""

    segment: int
    entries: tuple[tuple[GroupId, int, int], ...]


@dataclass(frozen=True, slots=True)
class Gathered:
    segment: int
    entries: tuple[tuple[GroupId, Entry], ...]


class Rewriting:
    """One segment at a time."""

    def __init__(self, filesystem: FileSystem, directory: str, *, held_max: int, segment_bytes: int) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._held_max = held_max
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._wanted: Wanted | None = None
        self._gathered: Gathered | None = None
        self._left_alone: set[int] = set()

    @property
    def segment(self) -> int:
        """The one that is being read or was read: it must keep its place. 0 when there is none."""
        wanted, gathered = self._wanted, self._gathered
        return wanted.segment if wanted is not None else gathered.segment if gathered is not None else 0

    @property
    def unread(self) -> bool:
        """`gather` has something to do."""
        return self._wanted is not None

    def choose(self, segments: Sequence[SegmentRow], groups: Mapping[GroupId, LiveLog]) -> None:
        """Ask for the segment that holds the least, if there are too many beside those that live entries fill: a log
        that is long for good reason is not written again and again."""
        if len(segments) <= min(self._held_max, HELD_IN_VAIN_MAX) or self.segment:
            return
        live_bytes = dict.fromkeys((row.number for row in segments), 0)
        for group in groups.values():
            for run in group.runs:
                if run.segment in live_bytes:
                    live_bytes[run.segment] += run.size_bytes
        in_vain = len(segments) - sum(live_bytes.values()) // self._segment_bytes
        if in_vain <= min(self._held_max, HELD_IN_VAIN_MAX):
            return
        share = LIVE_SHARE if in_vain > self._held_max else LITTLE_SHARE
        candidates = [row for row in segments if row.number not in self._left_alone]
        row = min(candidates, key=lambda row: live_bytes[row.number], default=None)
        if row is not None and live_bytes[row.number] <= self._segment_bytes // share:
            with self._lock:
                self._wanted = Wanted(row.number, tuple(_live_in(row.number, groups)))

    def gather(self) -> None:
        """Read what was asked for, if anything was."""
        wanted = self._wanted
        if wanted is None:
            return
        gathered = self._read(wanted)
        with self._lock:
            self._wanted, self._gathered = None, gathered

    def _read(self, wanted: Wanted) -> Gathered | None:
        """Only what is live, and what lies beside it: most of the segment is not."""
        try:
            file = self._filesystem.open(segment_path(self._directory, wanted.segment))
            try:
                return Gathered(wanted.segment, tuple(_entries_of(file, wanted)))
            finally:
                file.close()
        except (OSError, _Unverified):
            self._left_alone.add(wanted.segment)
            return None

    def take(self) -> Gathered | None:
        """What was read and may be written again, once."""
        with self._lock:
            gathered, self._gathered = self._gathered, None
            return gathered


def _live_in(segment: int, groups: Mapping[GroupId, LiveLog]) -> Iterable[tuple[GroupId, int, int]]:
    for group in groups.values():
        for run in group.runs:
            if run.segment == segment:
                for index in range(run.first, run.last + 1):
                    place = group.place(index, run.term)
                    assert place is not None, "what a run names is live"
                    yield group.group, index, place[1]


def _entries_of(file: File, wanted: Wanted) -> Iterator[tuple[GroupId, Entry]]:
    """In the order in which they lie there. Raises `_Unverified`."""
    segment, base, data = wanted.segment, 0, b""
    for group, index, offset in sorted(wanted.entries, key=lambda entry: entry[2]):
        at = offset - HEADER_BYTES
        if offset > base + len(data):
            base, data = at, file.pread(READ_BYTES, at)
        header = decode_header(data, at, segment, base=base)
        if header is None or header.kind not in (Kind.ENTRY, Kind.COPY):
            raise _Unverified
        if header.end > base + len(data):
            base, data = at, file.pread(header.end - at, at)
        payload = data[offset - base : header.end - base]
        if (header.group, header.index) != (group, index) or crc32c(payload) != header.crc:
            raise _Unverified
        yield group, Entry(header.term, index, EntryKind(header.detail), payload, header.crc)


class _Unverified(Exception):
    """What lies there is not the entry."""
