"""A group's state lies in one file that is replaced in place, the index it goes up to somewhere else (in the log)."""

from dataclasses import replace

import pytest

from consensus.core.interface import GroupId, SnapshotMeta
from consensus.storage import snapshots
from consensus.storage.snapshots import SnapshotFiles

NAME = "applied_index_apart"
HAZARD = "9: the applied index stored apart from the state it describes"
CAUGHT_BY = [
    "tests/storage/test_snapshot_files.py::test_the_state_and_the_index_it_goes_up_to_never_part[stop]",
    "tests/storage/test_snapshot_files.py::test_the_state_and_the_index_it_goes_up_to_never_part[fail]",
]

_decode_meta = snapshots.decode_meta


def _one_file(directory: str, group: GroupId, snapshot_id: str) -> str:
    return f"{directory}/group-{group}/state.snapshot"


def _nothing(self: SnapshotFiles, group: GroupId, meta_or_id: SnapshotMeta | str) -> None:
    """With the state alone in the file, there is nothing to compare and nothing older to remove."""


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "snapshot_path", _one_file)
    monkeypatch.setattr(SnapshotFiles, "verify", _nothing)
    monkeypatch.setattr(SnapshotFiles, "delete_older", _nothing)
    manifest = SnapshotFiles._manifest

    def _believe(self: SnapshotFiles, file, path, group, snapshot_id):  # type: ignore[no-untyped-def]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(snapshots, "decode_meta", lambda data: replace(_decode_meta(data), snapshot_id=snapshot_id))
            return manifest(self, file, path, group, snapshot_id)

    monkeypatch.setattr(SnapshotFiles, "_manifest", _believe)
