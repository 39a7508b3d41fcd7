"""`paramserver wal accept-loss`: the last resort of a group whose majority is forgetful (RULES W7).

Owns what an operator is told before and after. Invariants: the folder's lock is held; without `--keep-up-to` nothing in
the log changes; with it only the loss that it names is accepted. Must not know: the log's format.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from paramserver.cli import codes, flags
from paramserver.cli.codes import CommandError
from paramserver.cli.flags import Flag
from paramserver.cli.folder import DataFolder
from paramserver.cli.shape import group_number
from paramserver.cli.text import SENTENCE_MAX, escape

if TYPE_CHECKING:
    from consensus.storage.interface import Identity
    from consensus.storage.lastresort import Held

DESCRIPTION = """\
Have a stopped node's forgetful replica take part again as it is, when a majority of its group is forgetful and nothing
else helps. What its group acknowledged and no replica of the new majority holds is lost for good. Without --keep-up-to:
what the replica still holds, and the command that accepts it; nothing in the log changes.
"""
EPILOG = """examples:
  paramserver wal accept-loss --data-dir data/1 --group 1
  paramserver wal accept-loss --data-dir data/1 --group 1 --keep-up-to 4711
"""
INDEX_MAX = (1 << 63) - 1
FLAGS = (
    Flag("--data-dir", "a stopped server's data folder", str, metavar="FOLDER", required=True),
    Flag("--group", "the group that has stopped", group_number, metavar="G", required=True),
    Flag(
        "--keep-up-to",
        "the last index that the replica holds: what was acknowledged above it may be lost",
        flags.integer(0, INDEX_MAX),
        metavar="INDEX",
    ),
)
HINT_STOP = "stop that server first (SIGTERM), and its restarts"


def run(values: flags.Values, problems: list[str]) -> int:
    flags.raise_problems(problems, "wal accept-loss")
    from consensus.storage.errors import IdentityMismatch
    from consensus.storage.filesystem import DirectoryLock

    folder = DataFolder(values["data_dir"])
    try:
        lock = DirectoryLock(folder.path)
    except IdentityMismatch as error:
        raise CommandError(escape(error, SENTENCE_MAX), HINT_STOP, code=codes.REFUSED) from None
    except OSError as error:
        cause = f"cannot lock '{escape(folder.path)}': {error.strerror}"
        raise CommandError(cause, "run it as the server's user", code=codes.USAGE) from None
    try:
        found = _held(folder, _identity(folder), values)
    finally:
        lock.release()
    print("\n".join(told(found, folder.path) if values["keep_up_to"] is None else accepted(found)))
    return codes.OK


def _identity(folder: DataFolder) -> Identity:
    from consensus.storage.errors import StorageError
    from consensus.storage.filesystem import OsFileSystem
    from consensus.storage.identity import load_or_create

    owner, trouble = folder.identity()
    if owner is None:
        raise folder.unreadable(ValueError(trouble))  # None is made here.
    try:
        return load_or_create(OsFileSystem(), folder.path, owner.cluster, owner.node).identity()
    except StorageError as error:
        raise folder.unreadable(error) from None


def _held(folder: DataFolder, owner: Identity, values: flags.Values) -> Held:
    from consensus.storage.errors import LossRefused, NoSuchGroup, StorageError, StorageFailed, StorageFull
    from consensus.storage.filesystem import OsFileSystem
    from consensus.storage.lastresort import accept_loss, held

    group, index = values["group"], values["keep_up_to"]
    try:
        found = held(folder.filesystem, folder.path, owner, group)
        if index is None:
            return found
    except LossRefused as error:
        code = codes.USAGE if isinstance(error, NoSuchGroup) else codes.REFUSED
        raise CommandError(escape(error, SENTENCE_MAX), "nothing was changed", code=code) from None
    except StorageError as error:
        raise folder.unreadable(error) from None
    try:
        return accept_loss(OsFileSystem(), folder.path, owner, group, index)
    except LossRefused as error:
        hint = f"nothing was changed; if that is the loss to accept: {command(folder.path, found)}"
        raise CommandError(escape(error, SENTENCE_MAX), hint, code=codes.REFUSED) from None
    except StorageFull as error:
        raise CommandError(escape(error, SENTENCE_MAX), "make room, then try again", code=codes.REFUSED) from None
    except StorageFailed as error:
        hint = "whether it was accepted is not known: look at the disk, then run it without --keep-up-to"
        raise CommandError(escape(error, SENTENCE_MAX), hint, code=codes.STORAGE) from None


def command(path: str, found: Held) -> str:
    where = f"--data-dir {shlex.quote(path)} --group {found.group}"
    return f"paramserver wal accept-loss {where} --keep-up-to {found.last_index}"


def told(found: Held, path: str) -> list[str]:
    replica = f" (replica {found.replica})" if found.replica else ""
    return [
        f"group {found.group}{replica} in {escape(path, 400)}: FORGETFUL, neither votes nor counts",
        f"  why         {escape(found.why or 'damage that an earlier start found', SENTENCE_MAX)}",
        f"  last held   index {found.last_index}, of term {found.last_term}",
        f"  snapshot    {f'up to index {found.snapshot_index}' if found.snapshot_index else 'none'}",
        f"  committed   up to index {found.commit} for certain, of what is held",
        f"  own term    {found.term}" + (f", vote for replica {found.vote}" if found.vote else ""),
        "",
        f"Accepting it says: what the group acknowledged above index {found.last_index} may be lost for good, unless",
        "a sound replica of the new majority holds it. First start every node that is sound or may be, and keep it up:",
        "a sound majority fills this replica by itself. Else run this on every forgetful node, each stopped, and",
        "compare 'last held': a higher term holds more, and of equal terms the higher index. Accept on as few as make",
        "a majority together with the sound ones, beginning with the one that holds most:",
        "",
        f"  {command(path, found)}",
    ]


def accepted(found: Held) -> list[str]:
    return [
        f"group {found.group} keeps what this replica holds, up to index {found.last_index} of term {found.last_term}",
        "next: start this server, and look at 'paramserver status'. If the group stands still, accept on the forgetful",
        "replica that holds most of the others, one at a time; once a majority is sound, it fills the rest by itself",
    ]
