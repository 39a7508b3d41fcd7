"""`paramserver wal dump`: the records of a node's log, one a line, without its server.

Owns how records are shown. Invariants: it writes nothing; payloads are counted, not shown. Exit code 1 when a place in
between does not verify, or when there is no record of the group that was asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from paramserver.cli import codes, flags
from paramserver.cli.codes import CommandError
from paramserver.cli.flags import Flag
from paramserver.cli.folder import IN_USE, LOOKS_MAX, DataFolder
from paramserver.cli.text import escape

if TYPE_CHECKING:
    from consensus.storage.inspection import Place, RecordPicture

GROUP_MAX = 2**32 - 1
HEAD = "head"
"""A record of all groups."""
DESCRIPTION = "Show the records of a node's log in the order in which they count. Nothing is written."
EPILOG = "example:\n  paramserver wal dump data/1 --group 1\n"
FLAGS = (
    Flag("DATA_DIR", "a server's data folder", str, required=True),
    Flag("--group", "only this group's records", flags.integer(0, GROUP_MAX), metavar="GROUP"),
    Flag("--json", "a JSON object a line"),
)


def run(values: flags.Values, problems: list[str]) -> int:
    flags.raise_problems(problems, "wal dump")
    from consensus.storage.errors import StorageError
    from consensus.storage.inspection import Place, dump_log

    folder = DataFolder(values["DATA_DIR"])
    group, bad, shown = values["group"], 0, 0
    seen: set[int] = set()
    """Groups with records."""
    if folder.in_use and not values["json"]:
        print(f"! {IN_USE}")
    for left in reversed(range(LOOKS_MAX)):
        try:
            for each in dump_log(folder.filesystem, folder.wal):
                if isinstance(each, Place):
                    bad += 1
                else:
                    if each.kind != HEAD:
                        seen.add(each.group)
                    if group is not None and each.group != group:
                        continue
                shown += 1
                print(json.dumps(_as_json(each)) if values["json"] else _line(each))
            break
        except (StorageError, FileNotFoundError) as error:  # a server may recycle a segment at any moment
            if shown or not left or not folder.in_use:
                raise folder.unreadable(error) from None
    if group is not None and group not in seen:
        others = ", ".join(map(str, sorted(seen))) or "no group"
        raise CommandError(
            f"--group {group}: no record of it in {folder.wal}",
            f"there are records of: {others}; what a group's replica has at all is shown by paramserver wal verify",
        )
    return codes.CHECK_FAILED if bad else codes.OK


def _as_json(each: RecordPicture | Place) -> dict[str, object]:
    return asdict(each)


def _line(each: RecordPicture | Place) -> str:
    from consensus.storage.inspection import Place

    if isinstance(each, Place):
        return f"! {escape(each.path)} offset {each.offset}: {escape(each.problem, 400)}"
    return " ".join(_words(each))


def _words(record: RecordPicture) -> Iterator[str]:
    yield f"{record.segment}:{record.offset:<9} batch {record.batch:<6} {record.kind:<10}"
    if record.kind != HEAD:
        yield f"group {record.group:<4} term {record.term:<5} index {record.index:<8}"
    yield f"{record.length:>8} bytes"
    if record.detail:
        yield escape(record.detail, 300)
