"""Errors of storage.

StorageError
├── StorageFailed     write or sync failed: the page cache cannot be trusted, the process ends (exit code 74)
│   └── LogLost       nothing of a log that held something can be read
├── StorageFull       no space; nothing was written
├── SnapshotDamaged   a snapshot file fails its checks
├── UnknownFormat     a file carries a newer or unknown version
├── LossRefused       an operator's acceptance of a loss that does not fit the folder; nothing was written
│   └── NoSuchGroup   the folder holds no replica of that group
└── IdentityMismatch  the folder belongs to another cluster or node
"""

from __future__ import annotations

EXIT_STORAGE_FAILED = 74
"""Process exit code after a failed write or fsync (EX_IOERR)."""


class StorageError(Exception):
    """Root of the tree."""


class StorageFailed(StorageError):
    """A write or sync failed. What was in flight is neither known durable nor known lost."""


class LogLost(StorageFailed):
    """There was a log, and nothing of it can be read."""


class StorageFull(StorageError):
    """The disk is full; nothing of this batch was written."""


class SnapshotDamaged(StorageError):
    """A chunk or the manifest of a snapshot does not verify."""


class UnknownFormat(StorageError):
    """A file of a version that this build does not know."""


class IdentityMismatch(StorageError):
    """The data folder belongs to another cluster or node."""


class LossRefused(StorageError):
    """There is no such loss to accept in this folder. Nothing was written."""


class NoSuchGroup(LossRefused):
    """The folder holds no replica of that group."""
