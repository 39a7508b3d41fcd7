"""A data folder that a command looks at, without its server.

Owns what can be said before anything in it is read. Invariants: nothing is written; a folder in use is looked at all
the same, and it is said. Must not import anything heavy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from paramserver.cli import codes
from paramserver.cli.codes import CommandError
from paramserver.cli.text import escape

if TYPE_CHECKING:
    from consensus.storage.filesystem import ReadOnlyFileSystem
    from consensus.storage.interface import Identity

T = TypeVar("T")
IN_USE = "a server is using this folder: what it writes meanwhile may look like a torn tail"
LOOKS_MAX = 3
"""A log that is written while it is read may look damaged: then it is read again."""
HINT_RUNNING = "its server writes and recycles it meanwhile: try again, or stop the server first"
HINT = (
    "a node without its log never takes part again: docs/operations.md says how its place is given to an empty folder"
)


class DataFolder:
    """Raises `CommandError` for what is no data folder."""

    def __init__(self, path: str) -> None:
        from consensus.storage.filesystem import ReadOnlyFileSystem, in_use

        shown = f"'{escape(path)}'"
        if not os.path.isdir(path):
            raise CommandError(f"there is no folder {shown}", "name a server's --data-dir", code=codes.USAGE)
        if not any(os.path.exists(os.path.join(path, name)) for name in ("identity", "wal")):
            raise CommandError(
                f"{shown} is no data folder: it has neither an identity nor a log",
                "name a server's --data-dir",
                code=codes.USAGE,
            )
        self.path = path
        self.wal = os.path.join(path, "wal")
        self.snapshots = os.path.join(path, "snapshots")
        self.filesystem: ReadOnlyFileSystem = ReadOnlyFileSystem()
        self.in_use = in_use(path)

    def identity(self) -> tuple[Identity | None, str]:
        """Whose folder it is, and what is wrong with the file that says so, or an empty string."""
        from consensus.storage.errors import IdentityMismatch, StorageFailed, UnknownFormat
        from consensus.storage.identity import read_identity
        from consensus.storage.interface import Identity

        try:
            found = read_identity(self.filesystem, self.path)
        except (IdentityMismatch, StorageFailed, UnknownFormat) as error:
            return None, str(error)
        cluster, uuid = (bytes.fromhex(found[name]) for name in ("cluster", "uuid"))
        return Identity(cluster=cluster, node=found["node"], node_uuid=uuid), ""

    def look(self, read: Callable[[], T], whole: Callable[[T], bool]) -> T:
        """Read something; again, if it does not look whole and a server may just have written to it. Raises
        `CommandError` for what can't be read."""
        from consensus.storage.errors import StorageError

        for left in reversed(range(LOOKS_MAX)):
            try:
                found = read()
            except StorageError as error:
                if not self.in_use or not left:
                    raise self.unreadable(error) from None
                continue
            if whole(found) or not self.in_use:
                break
        return found

    def unreadable(self, error: Exception) -> CommandError:
        return CommandError(escape(error, 500), HINT_RUNNING if self.in_use else HINT)
