"""`paramserver wal accept-loss`: what it says before and after, and each refusal with its code."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from consensus.core.interface import HardState
from consensus.storage.filesystem import DirectoryLock, OsFileSystem
from consensus.storage.identity import load_or_create
from consensus.storage.interface import GroupAppend, Recovery
from consensus.storage.records import Kind, find_headers
from consensus.storage.segments import segment_numbers, segment_path
from consensus.storage.wal import Wal
from paramserver.cli import codes
from paramserver.cli.entry import run
from tests.storage.logs import OPTIONS, append

CLUSTER = b"c" * 16
WORDS = ("wal", "accept-loss")


def start(path: str) -> tuple[Wal, Recovery]:
    disk = OsFileSystem()
    identity = load_or_create(disk, path, CLUSTER, 1)
    identity.remember_peer(2, b"p" * 16)
    found = Wal.open(disk, f"{path}/wal", identity.identity(), OPTIONS)
    identity.activate()
    return found


def rot(path: str, kind: Kind) -> None:
    for number in segment_numbers(OsFileSystem(), f"{path}/wal"):
        segment = Path(segment_path(f"{path}/wal", number))
        data = bytearray(segment.read_bytes())
        hits = [one for one in find_headers(bytes(data), 0, number) if one.kind is kind and one.group == 1]
        if hits:
            data[hits[-1].payload_offset] ^= 4
            segment.write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Of a node that stopped clean, with groups 1 and 2; the name is one that a shell would take apart."""
    path = str(tmp_path / "my data")
    DirectoryLock(path).release()
    wal, _ = start(path)
    for group in (1, 2):
        wal.write([GroupAppend(group=group, hard_state=HardState(3, 2, 4)), append(group, 1, 9, term=3)])
    wal.sync()
    wal.close()
    return path


def call(capsys: pytest.CaptureFixture[str], path: str, *words: str, group: int = 1) -> tuple[int, str]:
    code = run([*WORDS, "--data-dir", path, "--group", str(group), *words])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def forgetful(path: str) -> bool:
    wal, recovery = start(path)
    wal.close()
    return recovery.groups[1].forgetful


def test_it_says_what_is_held_and_the_command_which_then_works(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    rot(folder, Kind.ENTRY)
    code, out = call(capsys, folder)
    assert code == codes.OK, out
    assert "FORGETFUL" in out
    assert "index 8, of term 3" in out
    assert "above index 8 may be lost for good" in out
    assert forgetful(folder), "saying it accepts nothing"
    line = out.splitlines()[-1].strip()
    assert line == f"paramserver wal accept-loss --data-dir '{folder}' --group 1 --keep-up-to 8"
    assert run(shlex.split(line)[1:]) == codes.OK
    assert "keeps what this replica holds, up to index 8 of term 3" in capsys.readouterr().out
    wal, recovery = start(folder)
    wal.close()
    assert not recovery.groups[1].forgetful
    assert recovery.groups[1].hard_state == HardState(3, 2, 4)
    assert [each.index for each in recovery.groups[1].entries] == list(range(1, 9))
    assert [each.index for each in recovery.groups[2].entries] == list(range(1, 10))


def test_another_index_is_refused_and_names_the_one_that_is_held(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rot(folder, Kind.ENTRY)
    for index in ("7", "9"):
        code, out = call(capsys, folder, "--keep-up-to", index)
        assert code == codes.REFUSED
        assert f"holds everything up to index 8, not {index}" in out
        assert "--keep-up-to 8" in out
    assert forgetful(folder)


def test_a_sound_replica_an_unknown_one_and_a_lost_vote_are_refused(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ((), ("--keep-up-to", "9")):
        code, out = call(capsys, folder, *words)
        assert (code, "not forgetful" in out) == (codes.REFUSED, True)
        code, out = call(capsys, folder, *words, group=7)
        assert (code, "no replica of group 7; it holds 1, 2" in out) == (codes.USAGE, True)
    rot(folder, Kind.HARD_STATE)
    for words in ((), ("--keep-up-to", "9")):
        code, out = call(capsys, folder, *words)
        assert (code, "paramserver node replace" in out) == (codes.REFUSED, True)


def test_a_running_server_keeps_its_folder(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    rot(folder, Kind.ENTRY)
    lock = DirectoryLock(folder)
    for words in ((), ("--keep-up-to", "8")):
        code, out = call(capsys, folder, *words)
        assert (code, "in use by another process" in out) == (codes.REFUSED, True)
    lock.release()
    assert forgetful(folder)


def test_what_is_no_data_folder_or_no_index(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, str(tmp_path / "nothing"))[0] == codes.USAGE
    assert call(capsys, str(tmp_path))[0] == codes.USAGE
    assert not (tmp_path / "lock").exists()
    assert call(capsys, folder, "--keep-up-to", "-1")[0] == codes.USAGE
    code = run([*WORDS, "--data-dir", folder])
    assert (code, "--group is missing" in capsys.readouterr().err) == (codes.USAGE, True)
    (Path(folder) / "identity").unlink()
    assert call(capsys, folder)[0] == codes.CHECK_FAILED
