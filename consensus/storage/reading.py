"""Entries of the running log read back from disk, for members that are far behind and for what recovery left there.

Owns the reading of payloads by (index, term). Invariants: a payload is handed out only if it has the length and the CRC
that its entry had when it was appended (RULES W1); an entry that was superseded, released or moved while it was read is
looked up again, so a segment may be recycled under a reader; one that still lies where it does not verify is damage,
which ends the process: its next start judges what the replica may have forgotten (RULES W7). Must not know: why it is
read, who waits for it.

May be used from several threads at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeAlias

from consensus.core.interface import Entry, GroupId, Payload
from consensus.storage.checksum import crc32c
from consensus.storage.errors import StorageFailed
from consensus.storage.interface import File, FileSystem
from consensus.storage.segments import segment_path

GAP_BYTES_MAX = 4096
"""Payloads this near to each other are read together: small ones follow each other, with their headers between."""
Place: TypeAlias = tuple[int, int]
"""(segment, offset of the payload)."""
Locate: TypeAlias = Callable[[GroupId, Sequence[Entry]], list[Place] | None]


class _Unverified(Exception):
    """What lies there is not the entry."""


class EntryReader:
    """`locate` says where the live entries of these indexes and terms lie; None when one of them is not live."""

    def __init__(self, filesystem: FileSystem, directory: str, locate: Locate) -> None:
        self._filesystem = filesystem
        self._directory = directory
        self._locate = locate

    def load(self, group: GroupId, entries: Sequence[Entry]) -> tuple[Entry, ...] | None:
        """See `LogStore.load`."""
        wanted = [entry for entry in entries if entry.stored_bytes]
        places = self._locate(group, wanted)
        while places is not None:
            try:
                payloads = iter(self._read(wanted, places))
                return tuple(
                    replace(entry, payload=next(payloads), stored_bytes=0) if entry.stored_bytes else entry
                    for entry in entries
                )
            except (_Unverified, OSError) as error:
                again = self._locate(group, wanted)
                if again == places:
                    raise StorageFailed(
                        f"the log in {self._directory} is damaged: of group {group}, entries {wanted[0].index} to "
                        f"{wanted[-1].index} were to be read back: {error}"
                    ) from error
                places = again
        return None

    def _read(self, entries: Sequence[Entry], places: Sequence[Place]) -> list[Payload]:
        payloads: list[Payload] = []
        files: dict[int, File] = {}
        try:
            for first, last in _spans(entries, places):
                (segment, start), end = places[first], places[last - 1][1] + entries[last - 1].stored_bytes
                if segment not in files:
                    files[segment] = self._filesystem.open(segment_path(self._directory, segment))
                data = files[segment].pread(end - start, start)
                view = memoryview(data)
                for entry, (_, offset) in zip(entries[first:last], places[first:last], strict=True):
                    payload = view[offset - start : offset - start + entry.stored_bytes]
                    if len(payload) != entry.stored_bytes or crc32c(payload) != entry.crc:
                        raise _Unverified(
                            f"entry {entry.index} at offset {offset} of segment {segment} does not verify"
                        )
                    payloads.append(payload)
        finally:
            for file in files.values():
                file.close()
        return payloads


def _spans(entries: Sequence[Entry], places: Sequence[Place]) -> Iterator[tuple[int, int]]:
    """[first, last) of entries that are read together."""
    if not places:
        return
    first = 0
    for position, ((segment, offset), (following, start)) in enumerate(pairwise(places)):
        gap = start - offset - entries[position].stored_bytes
        if segment != following or not 0 <= gap <= GAP_BYTES_MAX:
            yield first, position + 1
            first = position + 1
    yield first, len(places)
