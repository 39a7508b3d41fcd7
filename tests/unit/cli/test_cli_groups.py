"""`paramserver group ...`: its flags, pictures, JSON, and when a change is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from paramserver.cli import codes, entry, groups, shape
from paramserver.lab import status
from paramserver.lab.admin import LeftoverView
from paramserver.lab.status import Answer, GroupSnapshot, MemberSnapshot, NodeSnapshot, Unreachable
from tests.unit.cli.scripted_admin import WHOLE, ScriptedAdmin, group, move

AT = ("--servers", "h:1")
STATE = GroupSnapshot(
    group=1,
    replica=1,
    role="leader",
    term=4,
    leader_node=1,
    commit_index=90,
    applied_index=90,
    last_index=91,
    snapshot_index=50,
    flushed_index=91,
    problem="",
    state_bytes=10,
    first_index=41,
    members=(
        MemberSnapshot(1, 1, "voter", 91),
        MemberSnapshot(2, 2, "voter", 90),
        MemberSnapshot(65_536, 4, "incoming", 88),
        MemberSnapshot(3, 3, "outgoing", 0),
    ),
    configuration_index=80,
    joint=True,
    next_replica=65_537,
)
NODE = NodeSnapshot(1, "h:1", "cafe", "00", 2, "0.1.0", "fsync", (STATE,), (), ())
SECOND = replace(NODE, node=2, address="h:2", groups=(replace(STATE, replica=2, role="follower", forgetful=True),))


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> ScriptedAdmin:
    scripted = ScriptedAdmin()
    monkeypatch.setattr(shape, "admin_of", lambda values: scripted)
    monkeypatch.setattr(shape, "POLL_S", 0.001)
    return scripted


def answering(monkeypatch: pytest.MonkeyPatch, *answers: Answer) -> None:
    def ask_all(addresses: Sequence[str], **_: object) -> tuple[Answer, ...]:
        return answers

    monkeypatch.setattr(status, "ask_all", ask_all)
    monkeypatch.setattr(status, "everybody", lambda addresses, timeout_s: list(addresses))


def command(*words: str) -> int:
    return entry.run([*words, *AT])


def test_list_tells_members_moves_and_what_is_in_their_way(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.views = (
        replace(
            WHOLE,
            groups=(group(1, 1, 1, 2, 3, learner=4), group(2, 0, 1, 2, 3)),
            moves=(move(7, 1, 3, 4, trouble="it lacks 5 bytes"), move(8, 2, 1, 4, cancelled=True)),
            leftovers=(LeftoverView(1, 9, 3, ""),),
        ),
    )
    assert command("group", "list") == codes.OK
    out = capsys.readouterr().out.splitlines()
    assert [line.split() for line in out[:3]] == [
        ["group", "leader", "term", "on", "nodes", "moving"],
        ["1", "1", "4", "1", "2", "3", "4", "(learner)", "3", "->", "4"],
        ["2", "none", "4", "1", "2", "3", "1", "->", "4"],
    ]
    assert out[3:] == [
        "group 1: replica 65536 on node 4 is catching up as a learner: it lacks 5 bytes",
        "group 2: replica 65536 on node 4 is being given up",
        "group 1: replica 9 on node 3 is no member and waits to be deleted",
    ]


def test_list_as_json(admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("group", "list", "--json") == codes.OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["groups"][0]["leader_node"] == 1
    assert [member["role"] for member in shown["groups"][0]["members"]] == ["voter"] * 3
    assert shown["moves"] == shown["leftovers"] == []


def test_show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answering(monkeypatch, NODE, SECOND, Unreachable("h:3", "refused"))
    assert command("group", "show", "1") == codes.OK
    out = capsys.readouterr().out
    assert "leader node 1 (replica 1), term 4" in out
    assert "configuration of index 80, joint" in out
    assert ["65536", "4", "incoming", "88"] in [line.split() for line in out.splitlines()]
    assert "41..91" in out
    assert "joint, FORGETFUL" in out


def test_show_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answering(monkeypatch, NODE, SECOND)
    assert command("group", "show", "1", "--json") == codes.OK
    shown = json.loads(capsys.readouterr().out)
    assert [one["node"] for one in shown["replicas"]] == [1, 2]
    assert shown["replicas"][0]["joint"] is True


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        ((Unreachable("h:1", "connection refused"),), codes.UNREACHABLE, "h:1: connection refused"),
        ((NODE,), codes.USAGE, "no node holds a replica of group 9; there are 1"),
    ],
)
def test_show_of_what_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: tuple[Answer, ...],
    code: int,
    words: str,
) -> None:
    answering(monkeypatch, *answers)
    assert command("group", "show", "9") == code
    assert words in capsys.readouterr().err


def test_a_replica_that_was_removed_and_one_whose_disk_stands_are_marked() -> None:
    marks = groups.marks(replace(STATE, joint=False, transferee=3, removed=True, storage_stalled=True, quiesced=True))
    assert marks == "handing over to replica 3, DISK STALLED, removed, asleep"


def test_a_replica_that_is_rebuilt_has_no_disk_that_stands_still() -> None:
    marks = groups.marks(replace(STATE, joint=False, distrusted="model 7 block 1", storage_stalled=True))
    assert "STATE WRONG (being rebuilt)" in marks
    assert "DISK" not in marks


def test_transfer_is_done_when_that_node_leads(admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.views = (WHOLE, WHOLE, replace(WHOLE, groups=(group(1, 2, 1, 2, 3),)))
    assert command("group", "transfer", "1", "--to", "2") == codes.OK
    ((wish, dry),) = admin.wishes
    assert (wish.transfer.group, wish.transfer.to_node, dry, admin.asked) == (1, 2, False, 3)
    assert capsys.readouterr().out.endswith("done\n")


def test_move_is_done_when_nothing_moves_and_the_member_is_there(admin: ScriptedAdmin) -> None:
    moving = replace(WHOLE, groups=(group(1, 1, 1, 2, 3, learner=4),), moves=(move(7, 1, 3, 4),))
    admin.views = (moving, replace(WHOLE, groups=(group(1, 1, 1, 2, 4),)))
    assert command("group", "move", "1", "--from", "3", "--to", "4") == codes.OK
    assert admin.asked == 2


def test_move_that_somebody_gave_up_is_not_waited_for(admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.views = (replace(WHOLE, moves=(move(7, 1, 3, 4, cancelled=True),)), WHOLE)
    assert command("group", "move", "1", "--from", "3", "--to", "4") == codes.REFUSED
    assert "was given up; node 3 keeps its replica" in capsys.readouterr().err


def test_cancel_is_done_when_the_move_is_gone(admin: ScriptedAdmin) -> None:
    admin.views = (replace(WHOLE, moves=(move(7, 1, 3, 4, cancelled=True),)), WHOLE)
    assert command("group", "cancel", "1") == codes.OK
    assert admin.asked == 2


def test_dry_run_of_a_transfer(admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("group", "transfer", "1", "--to", "2", "--dry-run") == codes.OK
    assert "needs 2; up: 1, 2" in capsys.readouterr().out
    assert (admin.wishes[0][1], admin.asked) == (True, 0)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("transfer", "1"), "--to is missing"),
        (("move", "1", "--from", "2", "--to", "2"), "--from and --to are both 2"),
        (("show", "x"), "a whole number from 0 to 65535"),
    ],
)
def test_wrong_flags_ask_nobody(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], problem: str
) -> None:
    assert command("group", *words) == codes.USAGE
    assert problem in capsys.readouterr().err
    assert (admin.wishes, admin.asked) == ([], 0)
