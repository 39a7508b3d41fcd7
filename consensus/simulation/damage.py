"""What rots on a disk while its process is down: flipped bits, writes that went elsewhere.

Owns the choice of what may be hit. Invariants: a batch of the log is only hit when something durable that is not hit
says that it was durable (damage without such a witness reads as a torn tail, docs/formats.md); the same source of
randomness hits the same bytes. Must not know: which nodes may be damaged, groups.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from consensus.storage.batches import BadBatch, read_batch
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.segments import segment_numbers, segment_path

SNAPSHOT_CHANCE = 0.2
"""That a snapshot file is hit instead of the log, where there is one."""


@dataclass(frozen=True, slots=True)
class Span:
    """A durable batch of the log, padding included: bytes [start, end) of the file."""

    path: str
    start: int
    end: int
    number: int
    durable: int


def covered_batches(filesystem: MemoryFileSystem, directory: str) -> list[Span]:
    """The batches that a later one calls durable, in the order in which they were written; also old ones, in segments
    that are no part of the log any more."""
    spans: list[Span] = []
    if not filesystem.exists(directory):
        return []
    for number in segment_numbers(filesystem, directory):
        path = segment_path(directory, number)
        data, offset = filesystem.read_durable(path), 0
        while offset < len(data):
            try:
                batch = read_batch(data, offset, number, None)
            except BadBatch:
                break
            spans.append(Span(path, batch.offset, batch.end, batch.number, batch.durable))
            offset = batch.end
    known = max((span.durable for span in spans), default=0)
    return sorted((span for span in spans if span.number <= known), key=lambda span: span.number)


def files_below(filesystem: MemoryFileSystem, directory: str) -> list[str]:
    """Paths of all files in a folder and the folders in it."""
    if not filesystem.exists(directory):
        return []
    found: list[str] = []
    for name in filesystem.listdir(directory):
        path = f"{directory}/{name}"
        found += files_below(filesystem, path) if filesystem.is_folder(path) else [path]
    return found


def flip_bits(filesystem: MemoryFileSystem, wal: str, snapshots: str, source: random.Random) -> str:
    """Flip one bit, sometimes some, in a covered batch or in a snapshot. Says where; empty when there is nothing."""
    files = files_below(filesystem, snapshots)
    if files and source.random() < SNAPSHOT_CHANCE:
        path = source.choice(files)
        return _flip(filesystem, path, 0, len(filesystem.read_durable(path)), source)
    spans = covered_batches(filesystem, wal)
    hits = [_near_the_end(spans, source) for _ in range(source.choice((1, 1, 1, 3)))] if spans else []
    return ", ".join(
        f"{_flip(filesystem, span.path, span.start, span.end, source)} (batch {span.number})" for span in hits
    )


def misdirect(filesystem: MemoryFileSystem, wal: str, source: random.Random) -> str:
    """A covered batch is found where another one, or nothing yet, should be; in its place lies what was there before it
    was written. Says what; empty when there is nothing to hit."""
    spans = covered_batches(filesystem, wal)
    if not spans:
        return ""
    moved, other = _near_the_end(spans, source), _near_the_end(spans, source)
    data = filesystem.read_durable(moved.path)[moved.start : moved.end]
    if moved is not other:
        room = other.end - other.start
        filesystem.overwrite(other.path, data[:room], other.start)
    filesystem.overwrite(moved.path, bytes(len(data)), moved.start)
    return f"batch {moved.number} over batch {other.number}"


def _near_the_end(spans: list[Span], source: random.Random) -> Span:
    """Old batches rarely matter: half of the time one of the last few."""
    return source.choice(spans[-8:] if source.random() < 0.5 else spans)


def _flip(filesystem: MemoryFileSystem, path: str, start: int, end: int, source: random.Random) -> str:
    if end <= start:
        return f"{path} is empty"
    offset, bit = source.randrange(start, end), source.randrange(8)
    filesystem.flip_bit(path, offset, bit)
    return f"bit {bit} of byte {offset} of {path}"
