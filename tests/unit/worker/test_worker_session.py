"""The session file: mode, lock, counter of starts, and what it refuses."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from worker.errors import SessionFileError
from worker.session import SessionFile, default_path, new

CLUSTER = "ab" * 16


def test_a_new_file_is_private_and_a_second_start_keeps_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.session"
    first = SessionFile.open(path, CLUSTER)
    first.note("digits", 1)
    session = first.session
    first.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = SessionFile.open(path, CLUSTER)
    assert (second.session.client, second.session.secret) == (session.client, session.secret)
    assert (second.session.starts, session.starts) == (2, 1)
    assert (second.session.model, second.session.rank) == ("digits", 1)
    assert second.session.first_sequence > session.first_sequence + 1_000_000
    second.close()


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        SessionFile.open(tmp_path / "a.session", CLUSTER).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.session").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "a.session.lock").stat().st_mode) == 0o600


def test_two_processes_cannot_have_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    first = SessionFile.open(path, CLUSTER)
    with pytest.raises(SessionFileError, match="in use by another process"):
        SessionFile.open(path, CLUSTER)
    first.note("digits", 0)  # the file is replaced; the lock still holds others off
    with pytest.raises(SessionFileError, match="in use by another process"):
        SessionFile.open(path, CLUSTER)
    first.close()
    SessionFile.open(path, CLUSTER).close()


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    SessionFile.open(path, CLUSTER).close()
    path.chmod(0o640)
    with pytest.raises(SessionFileError, match="mode 0640") as caught:
        SessionFile.open(path, CLUSTER)
    assert "chmod 600" in caught.value.hint


def test_a_file_of_another_cluster_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    SessionFile.open(path, CLUSTER).close()
    with pytest.raises(SessionFileError, match="belongs to cluster abababababab"):
        SessionFile.open(path, "cd" * 16)


@pytest.mark.parametrize("change", [{"client": "zz"}, {"secret": "00"}, {"starts": 0}, {"starts": "x"}, {"rank": []}])
def test_a_damaged_file_is_refused_and_says_what_to_do(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "a.session"
    SessionFile.open(path, CLUSTER).close()
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SessionFileError, match="cannot be read"):
        SessionFile.open(path, CLUSTER)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"x" * 10_000])
def test_bytes_that_are_no_session_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.session"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SessionFileError):
        SessionFile.open(path, CLUSTER)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    SessionFile.open(path, CLUSTER).close()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(SessionFileError, match="format 2, expected 1"):
        SessionFile.open(path, CLUSTER)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("{}")
    (tmp_path / "a.session").symlink_to(tmp_path / "target")
    with pytest.raises(SessionFileError):
        SessionFile.open(tmp_path / "a.session", CLUSTER)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionFileError, match="session file"):
        SessionFile.open(tmp_path / "file" / "a.session", CLUSTER)


def test_the_secret_is_not_shown() -> None:
    session = new(CLUSTER)
    assert session.secret.hex() not in repr(session)
    assert repr(session.secret)[2:-1] not in repr(session)


def test_the_default_place_is_by_cluster_model_and_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    paths = {
        default_path(cluster, model, rank)
        for cluster in (CLUSTER, "cd" * 16)
        for model in ("digits", "a b", "a_b", "ä" * 200)
        for rank in (0, 1)
    }
    assert len(paths) == 16
    assert all(path.parent == tmp_path / "paramserver" and len(path.name) < 100 for path in paths)
