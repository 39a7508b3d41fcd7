"""Snapshot files of all groups of a node.

    group-<group>/<snapshot id>.snapshot
    group-<group>/distrusted        why this node's snapshots of the group may hold a wrong state (RULES D1), as text
    chunk header | up to 1 MiB | chunk header | ... | manifest header | manifest

Owns their format. Invariants: a file has its name only once it is whole and durable (temp file, fsync, rename, fsync of
the folder); what the state is and up to which index it goes are one file, never two (HAZARDS 9); a file is read only if
its manifest, and a chunk is handed out only if its CRC, verifies. Must not know: what the content means, the log.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from consensus.core.interface import GroupId, Payload, SnapshotMeta
from consensus.storage.checksum import crc32c
from consensus.storage.errors import SnapshotDamaged, StorageFailed, StorageFull, UnknownFormat
from consensus.storage.interface import File, FileSystem
from consensus.storage.segments import NO_SPACE
from consensus.storage.tables import decode_meta, encode_meta

MAGIC = b"PSSN"
FORMAT_VERSION = 2
CHUNK_BYTES = 1 << 20
"""Content of every chunk but the last."""
SYNC_BYTES = 8 << 20
"""What is written is made durable in parts of this size, so that no sync at the end holds up the log's."""
META_BYTES_MAX = 64 << 10
HEADER = struct.Struct("<4sBBHIQQQII")  # magic, version, kind, zero, group, number, offset, content, payload CRC, CRC
_LENGTH_AT_END = struct.Struct("<I")
_CRC = struct.Struct("<I")
_CHUNK, _MANIFEST = 1, 2
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DISTRUSTED = "distrusted"
REASON_BYTES_MAX = 4096
SUFFIX, _TEMPORARY, _RECEIVING = ".snapshot", ".temporary", ".receiving"
HALF_WRITTEN = (_TEMPORARY, _RECEIVING)
"""How the names of files end that are no snapshots yet."""


def check_snapshot_id(snapshot_id: str) -> None:
    """Ids come from other nodes and become file names. Raises `ValueError`."""
    if not _ID.fullmatch(snapshot_id):
        raise ValueError(f"snapshot id {snapshot_id!r}: 1 to 100 letters, digits, '.', '_' and '-' are possible")


def snapshot_path(directory: str, group: GroupId, snapshot_id: str) -> str:
    """Every snapshot has a name of its own, so that no record of an older one ever finds a newer state (HAZARDS 9)."""
    check_snapshot_id(snapshot_id)
    return f"{directory}/group-{group}/{snapshot_id}{SUFFIX}"


def _header(kind: int, group: int, number: int, offset: int, length: int, crc: int) -> bytes:
    raw = HEADER.pack(MAGIC, FORMAT_VERSION, kind, 0, group, number, offset, length, crc, 0)[:-4]
    return raw + _CRC.pack(crc32c(raw))


@dataclass(frozen=True, slots=True)
class _Frame:
    kind: int
    group: int
    number: int
    offset: int
    length: int
    crc: int


def _parse(raw: bytes, path: str) -> _Frame:
    if len(raw) < HEADER.size or raw[:4] != MAGIC or crc32c(raw[: HEADER.size - 4]) != _CRC.unpack(raw[-4:])[0]:
        raise SnapshotDamaged(f"{path}: a frame's header does not verify")
    _, version, kind, _, group, number, offset, length, crc, _ = HEADER.unpack(raw)
    if version != FORMAT_VERSION:
        raise UnknownFormat(f"{path}: version {version}; this build knows {FORMAT_VERSION}")
    return _Frame(kind, group, number, offset, length, crc)


class SnapshotFile:
    """`SnapshotWriter`: content goes to a temporary file, `commit` gives it its name. After any error the temporary
    file is removed, or left to the next start.

    `receiving`: `SnapshotReceiver`. The temporary file has a name of its own that outlives the process, and what an
    earlier life left in it counts as far as its chunks verify. They are written again: what a life reads may be what
    a failed sync of an earlier one dropped (RULES W3, HAZARDS 22)."""

    def __init__(
        self,
        filesystem: FileSystem,
        directory: str,
        group: GroupId,
        meta: SnapshotMeta,
        *,
        receiving: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._filesystem = filesystem
        self._chunk_bytes = chunk_bytes
        self._folder = f"{directory}/group-{group}"
        self._group = group
        self._meta = meta
        self._path = snapshot_path(directory, group, meta.snapshot_id)
        self._temporary = self._path + (_RECEIVING if receiving else _TEMPORARY)
        self._receiving = receiving
        self._pending = bytearray()
        self._content_bytes = 0
        self._chunks = 0
        self._end = 0
        self._synced = 0
        self._file: File | None = None
        self._run(self._start)

    @property
    def held_bytes(self) -> int:
        """Content taken so far, by earlier lives too."""
        return self._content_bytes + len(self._pending)

    def write(self, chunk: Payload) -> None:
        """Take the next piece of the content, of any size. Raises `StorageFull`, `StorageFailed`."""
        view = memoryview(chunk).cast("B")
        while len(view):
            room = self._chunk_bytes - len(self._pending)
            if not self._pending and len(view) >= self._chunk_bytes:
                self._write_chunk(view[: self._chunk_bytes])
            else:
                self._pending += view[:room]
                if len(self._pending) == self._chunk_bytes:
                    self._flush()
            view = view[room:]

    def commit(self) -> SnapshotMeta:
        if self._pending:
            self._flush()
        meta = replace(self._meta, size_bytes=self._content_bytes)
        manifest = encode_meta(meta)
        header = _header(_MANIFEST, self._group, self._chunks, self._content_bytes, len(manifest), crc32c(manifest))
        self._put([header, manifest, _LENGTH_AT_END.pack(HEADER.size + len(manifest))])
        if self._open_file().size() != self._end:
            # More lay there than this snapshot is long.
            self.abort()
            raise SnapshotDamaged(f"{self._temporary}: what an earlier life left does not belong to this snapshot")
        self._run(self._publish)
        return meta

    def leave(self) -> None:
        """Close it as it is; a next life may go on with it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def abort(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            try:
                self._filesystem.unlink(self._temporary)
            except OSError:
                return  # The next start removes it.

    def _start(self) -> None:
        self._filesystem.mkdir(self._folder)
        if self._filesystem.exists(self._temporary) and not self._receiving:
            self._filesystem.unlink(self._temporary)
        self._file = self._filesystem.open(self._temporary, create=True)
        if self._receiving:
            self._take_over(self._file)

    def _take_over(self, file: File) -> None:
        """Go on behind the whole chunks that lie there. The last one comes again, for it ends the transfer."""
        while self._content_bytes + self._chunk_bytes < self._meta.size_bytes:
            raw = file.pread(HEADER.size + self._chunk_bytes, self._end)
            content = memoryview(raw)[HEADER.size :]
            header = _header(_CHUNK, self._group, self._chunks, self._content_bytes, self._chunk_bytes, crc32c(content))
            if len(content) != self._chunk_bytes or raw[: HEADER.size] != header:
                return
            self._write_chunk(content)

    def _publish(self) -> None:
        file = self._open_file()
        file.datasync()
        file.close()
        self._file = None
        self._filesystem.rename(self._temporary, self._path)
        self._filesystem.sync_directory(self._folder)

    def _flush(self) -> None:
        self._write_chunk(self._pending)
        self._pending = bytearray()

    def _write_chunk(self, content: bytearray | memoryview) -> None:
        view = memoryview(content)
        self._put([_header(_CHUNK, self._group, self._chunks, self._content_bytes, len(view), crc32c(view)), view])
        self._chunks += 1
        self._content_bytes += len(view)
        if self._end - self._synced >= SYNC_BYTES:
            self._run(self._open_file().datasync)
            self._synced = self._end

    def _put(self, buffers: list[Payload]) -> None:
        self._run(lambda: self._open_file().pwrite(buffers, self._end))
        self._end += sum(len(buffer) for buffer in buffers)

    def _open_file(self) -> File:
        if self._file is None:
            raise StorageFailed(f"{self._path} is finished: nothing can be added")
        return self._file

    def _run(self, call: Callable[[], None]) -> None:
        try:
            call()
        except OSError as error:
            self.abort()
            if error.errno in NO_SPACE:
                raise StorageFull(f"no space for snapshot {self._path}: {error}") from error
            raise StorageFailed(f"writing snapshot {self._path}: {error}") from error


class SnapshotFiles:
    """`SnapshotStore`. Temporary files that an earlier life left are removed when it is made, but for those that it was
    receiving: `receive` goes on with one, `sweep` removes the others."""

    def __init__(
        self, filesystem: FileSystem, directory: str, *, read_only: bool = False, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        """`read_only`: for looking at a folder that a server may be using. `chunk_bytes`: fewer are for simulations,
        whose states are small; all nodes must agree."""
        self._filesystem = filesystem
        self._chunk_bytes = chunk_bytes
        self._directory = directory
        if read_only:
            return
        try:
            filesystem.mkdir(directory)
            for folder in filesystem.listdir(directory):
                if not folder.startswith("group-"):
                    continue
                for name in filesystem.listdir(f"{directory}/{folder}"):
                    if name.endswith(_TEMPORARY):
                        filesystem.unlink(f"{directory}/{folder}/{name}")
        except OSError as error:
            raise StorageFailed(f"opening the snapshots in {directory}: {error}") from error

    def create(self, group: GroupId, meta: SnapshotMeta) -> SnapshotFile:
        return SnapshotFile(self._filesystem, self._directory, group, meta, chunk_bytes=self._chunk_bytes)

    def receive(self, group: GroupId, meta: SnapshotMeta) -> SnapshotFile:
        return SnapshotFile(
            self._filesystem, self._directory, group, meta, receiving=True, chunk_bytes=self._chunk_bytes
        )

    def sweep(self, group: GroupId, keep_snapshot_id: str) -> None:
        """Remove the group's half-received snapshots, but for that one."""
        folder = f"{self._directory}/group-{group}"
        try:
            if not self._filesystem.exists(folder):
                return
            for name in self._filesystem.listdir(folder):
                if name.endswith(_RECEIVING) and name != f"{keep_snapshot_id}{SUFFIX}{_RECEIVING}":
                    self._filesystem.unlink(f"{folder}/{name}")
        except OSError as error:
            raise StorageFailed(f"removing half-received snapshots in {folder}: {error}") from error

    def meta(self, group: GroupId, snapshot_id: str) -> SnapshotMeta:
        """What the file's manifest says. Raises `SnapshotDamaged`, also when there is no such file."""
        file, path = self._open(group, snapshot_id)
        try:
            return self._manifest(file, path, group, snapshot_id)[0]
        except OSError as error:
            raise StorageFailed(f"reading snapshot {path}: {error}") from error
        finally:
            file.close()

    def read(self, group: GroupId, snapshot_id: str, offset: int = 0) -> Iterator[memoryview]:
        """The content from `offset` on, chunk by chunk, each checked. Raises `SnapshotDamaged` at the first that does
        not verify."""
        file, path = self._open(group, snapshot_id)
        try:
            meta, chunks = self._manifest(file, path, group, snapshot_id)
            skip = offset % self._chunk_bytes
            for number in range(offset // self._chunk_bytes, chunks):
                chunk = self._chunk(file, path, group, number, meta.size_bytes)
                if skip < len(chunk):
                    yield chunk[skip:]
                skip = 0
        except OSError as error:
            raise StorageFailed(f"reading snapshot {path}: {error}") from error
        finally:
            file.close()

    def verify(self, group: GroupId, meta: SnapshotMeta) -> None:
        """Read all of it, and see that it is the snapshot that the log speaks of. Raises `SnapshotDamaged`."""
        said = self.meta(group, meta.snapshot_id)
        if (said.index, said.term) != (meta.index, meta.term):
            raise SnapshotDamaged(
                f"snapshot {meta.snapshot_id} of group {group} holds index {said.index} term {said.term}, the log "
                f"says index {meta.index} term {meta.term}"
            )
        for _ in self.read(group, meta.snapshot_id):
            pass

    def delete_older(self, group: GroupId, keep_snapshot_id: str) -> None:
        """Remove the group's snapshots that go no further than that one, and unreadable ones. Call it when that one's
        record is durable in the log. Raises `SnapshotDamaged` when that one itself is unreadable: then all stay."""
        keep = self.meta(group, keep_snapshot_id)
        folder = f"{self._directory}/group-{group}"
        try:
            for name in self._filesystem.listdir(folder):
                snapshot_id = name.removesuffix(SUFFIX)
                if name != snapshot_id and snapshot_id != keep_snapshot_id:
                    if self._index(group, snapshot_id) <= keep.index:
                        self._filesystem.unlink(f"{folder}/{name}")
        except OSError as error:
            raise StorageFailed(f"removing older snapshots in {folder}: {error}") from error

    # --- a state that is not to be trusted --------------------------------------------------------------------------

    def distrust(self, group: GroupId, reason: str) -> None:
        """Raises `StorageFull`, `StorageFailed`."""
        folder = f"{self._directory}/group-{group}"
        path = f"{folder}/{_DISTRUSTED}"
        try:
            self._filesystem.mkdir(folder)
            if self._filesystem.exists(path):
                return
            file = self._filesystem.open(path, create=True)
            file.pwrite([reason.encode()[:REASON_BYTES_MAX]], 0)
            file.datasync()
            file.close()
            self._filesystem.sync_directory(folder)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise StorageFull(f"no space for {path}: {error}") from error
            raise StorageFailed(f"writing {path}: {error}") from error

    def distrusted(self, group: GroupId) -> str:
        """That the file is there says enough: half of a reason is one."""
        path = f"{self._directory}/group-{group}/{_DISTRUSTED}"
        try:
            if not self._filesystem.exists(path):
                return ""
            file = self._filesystem.open(path)
            try:
                return file.pread(REASON_BYTES_MAX, 0).decode(errors="replace") or "its state was found wrong"
            finally:
                file.close()
        except OSError as error:
            raise StorageFailed(f"reading {path}: {error}") from error

    def trust(self, group: GroupId) -> None:
        folder = f"{self._directory}/group-{group}"
        try:
            if self._filesystem.exists(f"{folder}/{_DISTRUSTED}"):
                self._filesystem.unlink(f"{folder}/{_DISTRUSTED}")
                self._filesystem.sync_directory(folder)
        except OSError as error:
            raise StorageFailed(f"removing {folder}/{_DISTRUSTED}: {error}") from error

    def delete_all(self, group: GroupId) -> None:
        """Remove every file of the group. Call it when the tombstone of its replica is durable."""
        folder = f"{self._directory}/group-{group}"
        try:
            if self._filesystem.exists(folder):
                for name in self._filesystem.listdir(folder):
                    self._filesystem.unlink(f"{folder}/{name}")
        except OSError as error:
            raise StorageFailed(f"removing snapshots in {folder}: {error}") from error

    def _index(self, group: GroupId, snapshot_id: str) -> int:
        """Up to where it goes; -1 when it is unreadable."""
        try:
            return self.meta(group, snapshot_id).index
        except SnapshotDamaged:
            return -1

    def _open(self, group: GroupId, snapshot_id: str) -> tuple[File, str]:
        path = snapshot_path(self._directory, group, snapshot_id)
        try:
            if not self._filesystem.exists(path):
                raise SnapshotDamaged(f"{path} is missing")
            return self._filesystem.open(path), path
        except OSError as error:
            raise StorageFailed(f"opening snapshot {path}: {error}") from error

    def _manifest(self, file: File, path: str, group: GroupId, snapshot_id: str) -> tuple[SnapshotMeta, int]:
        size = file.size()
        raw = file.pread(_LENGTH_AT_END.size, max(0, size - _LENGTH_AT_END.size))
        length = _LENGTH_AT_END.unpack(raw)[0] if len(raw) == _LENGTH_AT_END.size else 0
        at = size - _LENGTH_AT_END.size - length
        if not HEADER.size < length <= META_BYTES_MAX or at < 0:
            raise SnapshotDamaged(f"{path}: cut short, it has no manifest")
        raw = file.pread(length, at)
        frame = _parse(raw[: HEADER.size], path)
        body = raw[HEADER.size :]
        if frame.kind != _MANIFEST or frame.length != len(body) or crc32c(body) != frame.crc:
            raise SnapshotDamaged(f"{path}: its manifest does not verify")
        try:
            meta = decode_meta(body)
        except ValueError as error:
            raise SnapshotDamaged(f"{path}: its manifest can't be read: {error}") from error
        expected = frame.number * HEADER.size + meta.size_bytes
        if (frame.group, meta.snapshot_id, meta.size_bytes, at) != (group, snapshot_id, frame.offset, expected):
            raise SnapshotDamaged(
                f"{path}: its manifest is of snapshot {meta.snapshot_id!r} of group {frame.group}, "
                f"{meta.size_bytes} bytes in {frame.number} chunks"
            )
        return meta, frame.number

    def _chunk(self, file: File, path: str, group: GroupId, number: int, size_bytes: int) -> memoryview:
        start = number * self._chunk_bytes
        length = min(self._chunk_bytes, size_bytes - start)
        raw = file.pread(HEADER.size + length, number * HEADER.size + start)
        frame = _parse(raw[: HEADER.size], path)
        content = memoryview(raw)[HEADER.size :]
        said = (frame.kind, frame.group, frame.number, frame.offset, frame.length)
        if said != (_CHUNK, group, number, start, length) or len(content) != length or crc32c(content) != frame.crc:
            raise SnapshotDamaged(f"{path}: chunk {number} (content offset {start}) does not verify")
        return content
