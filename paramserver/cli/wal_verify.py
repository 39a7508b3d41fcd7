"""`paramserver wal verify`: whether a node's log is whole, without its server.

Owns how the finding is shown. Invariants: it judges as a start would; it writes nothing. Exit code 1 when anything that
was durable does not verify.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from paramserver.cli import codes, flags
from paramserver.cli.flags import Flag
from paramserver.cli.folder import IN_USE, DataFolder
from paramserver.cli.text import SENTENCE_MAX, escape, table

if TYPE_CHECKING:
    from consensus.storage.inspection import LogPicture

DESCRIPTION = "Read a node's whole log and say whether it verifies. Nothing is written; the server need not run."
EPILOG = """example:
  paramserver wal verify data/1

A torn tail is no damage: it was never acknowledged. Nor is a mark of an earlier start: it says what became of damage.
"""
FLAGS = (
    Flag("DATA_DIR", "a server's data folder", str, required=True),
    Flag("--json", "one JSON object instead of tables"),
)


def run(values: flags.Values, problems: list[str]) -> int:
    flags.raise_problems(problems, "wal verify")
    from consensus.storage.inspection import inspect_log

    folder = DataFolder(values["DATA_DIR"])
    owner, trouble = folder.identity()
    found = folder.look(lambda: inspect_log(folder.filesystem, folder.wal, owner), lambda found: not found.damage)
    if values["json"]:
        print(json.dumps(as_json(found, folder, trouble)))
    else:
        print("\n".join(lines(found, folder, trouble)))
    return codes.CHECK_FAILED if found.damage or trouble else codes.OK


def as_json(found: LogPicture, folder: DataFolder, identity_problem: str) -> dict[str, Any]:
    ok = not found.damage and not identity_problem
    return {"ok": ok, "in_use": folder.in_use, "identity_problem": identity_problem, **asdict(found)}


def lines(found: LogPicture, folder: DataFolder, identity_problem: str) -> list[str]:
    owner = f"node {found.node} of cluster {found.cluster or 'unknown'}, folder {found.node_uuid or 'unknown'}"
    out = [f"{owner}, incarnation {found.incarnation}"]
    if folder.in_use:
        out.append(f"! {IN_USE}")
    rows = [
        (
            str(each.number),
            f"{each.number:016x}.wal",
            each.part,
            str(each.size_bytes),
            str(each.end) if each.end else "",
            f"{each.first_batch}-{each.last_batch}" if each.end else "",
            str(each.durable_batch) if each.end else "",
        )
        for each in found.segments
    ]
    out += ["", *table(("segment", "file", "part", "bytes", "end", "batches", "known durable"), rows)]
    groups = [
        (
            str(each.group),
            str(each.replica or ""),
            str(each.term),
            str(each.vote or ""),
            str(each.commit),
            str(each.snapshot_index or ""),
            f"{each.first_index}-{each.last_index}" if each.last_index >= each.first_index else "",
            str(each.entry_bytes),
            "hard state lost" if each.hard_state_lost else "forgetful" if each.forgetful else "",
        )
        for each in found.groups
    ]
    head = ("group", "replica", "term", "vote", "commit", "snapshot", "entries", "bytes", "mark")
    out += ["", *table(head, groups)]
    out += [f"group {group}: replica {replica} was deleted" for group, replica in found.tombstones]
    out.append("")
    if found.discarded_tail_bytes:
        out.append(f"a torn tail of {found.discarded_tail_bytes} bytes, which was never acknowledged")
    out += [f"note: {escape(note, SENTENCE_MAX)}" for note in found.notes]
    problems = ([identity_problem] if identity_problem else []) + list(found.damage)
    out += [f"! {escape(problem, SENTENCE_MAX)}" for problem in problems]
    out.append("damaged" if problems else "fine")
    return out
