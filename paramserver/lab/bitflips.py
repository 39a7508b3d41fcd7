"""Bits that flip in the data folder of a server that does not run.

Owns the choice of a bit whose loss counts, by the formats' own readers: in the log an entry that is live and known
durable, in a snapshot one that the log names. Invariants: exactly one bit changes; a folder that is in use is refused.
Must not know: what the server makes of it.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from consensus.storage.filesystem import ReadOnlyFileSystem, in_use
from consensus.storage.inspection import recorded_snapshots
from consensus.storage.recovery import read_log
from consensus.storage.segments import segment_path
from consensus.storage.snapshots import CHUNK_BYTES, HEADER, snapshot_path
from paramserver.lab.errors import LabError


class NothingToFlip(LabError):
    """There is no such record or file in the folder."""


@dataclass(frozen=True, slots=True)
class Flip:
    """`index`: of the entry, or of the snapshot; `offset` in bytes."""

    path: str
    offset: int
    bit: int
    group: int
    index: int


def bitflip_wal(data_folder: str | Path, draws: random.Random, *, group: int | None = None) -> Flip:
    """In the payload of an entry that is live, committed and in a batch that is known durable; of that group, or any.
    Raises `NothingToFlip`."""
    folder, filesystem = _stopped(data_folder), ReadOnlyFileSystem()
    log = read_log(filesystem, f"{folder}/wal", None)
    places = [
        (number, index, place)
        for number, found in sorted(log.groups.items())
        if group in (None, number)
        for index, place in found.prefix()
        if place.length and index <= found.hard_state.commit and log.durable(place)
    ]
    if not places:
        raise NothingToFlip(
            f"no durable, committed entry is live in the log in {folder}", "let it run under load first"
        )
    number, index, place = draws.choice(places)
    path = segment_path(f"{folder}/wal", place.segment)
    return _flip(path, place.offset + draws.randrange(place.length), draws.randrange(8), number, index)


def bitflip_snapshot(data_folder: str | Path, draws: random.Random) -> Flip:
    """In the content of a snapshot that the log names. Raises `NothingToFlip`."""
    folder, filesystem = _stopped(data_folder), ReadOnlyFileSystem()
    named = recorded_snapshots(filesystem, f"{folder}/wal")
    found = [
        (number, meta)
        for number, meta in sorted(named.items())
        if meta.size_bytes and filesystem.exists(snapshot_path(f"{folder}/snapshots", number, meta.snapshot_id))
    ]
    if not found:
        raise NothingToFlip(
            f"the log in {folder} names no snapshot that is there",
            "start servers with a small --snapshot-log-bytes-min and -max, and let them run under load first",
        )
    number, meta = draws.choice(found)
    content = draws.randrange(meta.size_bytes)
    chunk, within = divmod(content, CHUNK_BYTES)
    offset = chunk * (HEADER.size + CHUNK_BYTES) + HEADER.size + within
    path = snapshot_path(f"{folder}/snapshots", number, meta.snapshot_id)
    return _flip(path, offset, draws.randrange(8), number, meta.index)


def _stopped(data_folder: str | Path) -> str:
    folder = str(data_folder)
    if in_use(folder):
        raise LabError(f"a server runs on {folder}", "stop it first")
    return folder


def _flip(path: str, offset: int, bit: int, group: int, index: int) -> Flip:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        (byte,) = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes([byte ^ 1 << bit]), offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Flip(path, offset, bit, group, index)
