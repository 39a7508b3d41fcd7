"""What the storage tests share: small logs in memory, entries, and reading them back."""

import random

from consensus.core.interface import Configuration, Entry, EntryKind, HardState, SnapshotMeta
from consensus.storage.checksum import crc32c
from consensus.storage.interface import GroupAppend, Identity, Recovery
from consensus.storage.memory import MemoryFileSystem
from consensus.storage.options import WalOptions
from consensus.storage.segments import segment_numbers, segment_path
from consensus.storage.wal import Wal

DIRECTORY = "/data/wal"
IDENTITY = Identity(cluster=b"c" * 16, node=1, node_uuid=b"u" * 16, peers={2: b"v" * 16, 3: b"w" * 16})
OPTIONS = WalOptions(segment_bytes=64 << 10, flush_bytes_max=32 << 10, reserve_bytes=32 << 10, open_copy_bytes_max=0)
CONFIGURATION = Configuration((1, 2, 3), (4,), next_replica=5)


def open_log(disk: MemoryFileSystem, options: WalOptions = OPTIONS) -> tuple[Wal, Recovery]:
    return Wal.open(disk, DIRECTORY, IDENTITY, options)


def reopen(disk: MemoryFileSystem, options: WalOptions = OPTIONS) -> Recovery:
    """What the next process finds after a kill -9."""
    disk.kill()
    return open_log(disk, options)[1]


def entry(index: int, term: int = 1, size: int = 100, kind: EntryKind = EntryKind.NORMAL) -> Entry:
    payload = random.Random(index * 1_000_003 + term).randbytes(size)
    return Entry(term, index, kind, payload, crc32c(payload))


def entries(first: int, last: int, term: int = 1, size: int = 100) -> tuple[Entry, ...]:
    return tuple(entry(index, term, size) for index in range(first, last + 1))


def append(group: int, first: int, last: int, term: int = 1, size: int = 100) -> GroupAppend:
    return GroupAppend(group=group, entries=entries(first, last, term, size))


def vote(group: int, term: int, for_replica: int = 1, commit: int = 0) -> GroupAppend:
    return GroupAppend(group=group, hard_state=HardState(term, for_replica, commit))


def snapshot(index: int, term: int = 1) -> SnapshotMeta:
    return SnapshotMeta(index, term, CONFIGURATION, f"{term}-{index}", 12345)


def install(group: int, index: int, term: int = 1) -> GroupAppend:
    return GroupAppend(group=group, install=snapshot(index, term))


def indexes(recovery: Recovery, group: int) -> list[tuple[int, int]]:
    """(index, term) of a group's recovered entries; their payloads are checked on the way."""
    found = []
    for got in recovery.groups[group].entries:
        assert got == entry(got.index, got.term, len(got.payload), got.kind)
        found.append((got.index, got.term))
    return found


def span(first: int, last: int, term: int = 1) -> list[tuple[int, int]]:
    return [(index, term) for index in range(first, last + 1)]


def segment_files(disk: MemoryFileSystem) -> dict[int, str]:
    return {number: segment_path(DIRECTORY, number) for number in segment_numbers(disk, DIRECTORY)}
