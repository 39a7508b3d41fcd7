"""`paramserver snapshot verify`: whether a node's snapshot files are whole, without its server.

Owns how the finding is shown. Invariants: every byte of every file is read; it writes nothing. Exit code 1 when a file
does not verify, or the one that the log names is missing.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from paramserver.cli import codes, flags
from paramserver.cli.flags import Flag
from paramserver.cli.folder import DataFolder
from paramserver.cli.text import escape, table

DESCRIPTION = "Read a node's snapshot files to their last byte and say whether they verify. Nothing is written."
EPILOG = "example:\n  paramserver snapshot verify data/1\n"
FLAGS = (
    Flag("DATA_DIR", "a server's data folder", str, required=True),
    Flag("--json", "one JSON object instead of a table"),
)
IN_USE = "a server is using this folder: files may come and go while they are read"


def run(values: flags.Values, problems: list[str]) -> int:
    flags.raise_problems(problems, "snapshot verify")
    from consensus.storage.inspection import Place, SnapshotPicture, inspect_snapshots, recorded_snapshots

    folder = DataFolder(values["DATA_DIR"])

    def read() -> list[SnapshotPicture | Place]:
        recorded = recorded_snapshots(folder.filesystem, folder.wal)
        return list(inspect_snapshots(folder.filesystem, folder.snapshots, recorded))

    def whole(found: list[SnapshotPicture | Place]) -> bool:
        return not any(isinstance(each, SnapshotPicture) and each.problem for each in found)

    found = folder.look(read, whole)
    files = [each for each in found if isinstance(each, SnapshotPicture)]
    foreign = [each for each in found if isinstance(each, Place)]
    ok = whole(found)
    if values["json"]:
        shown = {
            "ok": ok,
            "in_use": folder.in_use,
            "snapshots": [asdict(each) for each in files],
            "foreign": [asdict(each) for each in foreign],
        }
        print(json.dumps(shown))
        return codes.OK if ok else codes.CHECK_FAILED
    if folder.in_use:
        print(f"! {IN_USE}")
    rows = [
        (str(each.group), each.state, str(each.index or ""), str(each.term or ""), str(each.size_bytes), each.path)
        for each in files
    ]
    print("\n".join(table(("group", "state", "index", "term", "bytes", "file"), rows)))
    for place in foreign:
        print(f"note: {escape(place.path, 400)}: {place.problem}")
    for each in files:
        if each.problem:
            print(f"! group {each.group}: {escape(each.problem, 400)}")
    print("fine" if ok else "damaged")
    return codes.OK if ok else codes.CHECK_FAILED
