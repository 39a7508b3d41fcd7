"""`paramserver node ...`: its flags, what a dry run says, its JSON, when it is done, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from paramserver.cli import codes, entry, shape
from paramserver.lab.admin import ClusterView, Refused, Unreachable
from tests.unit.cli.scripted_admin import SHAPED, WHOLE, ScriptedAdmin, group, move, node

AT = ("--servers", "h:1")
Command = Callable[..., int]


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch) -> ScriptedAdmin:
    scripted = ScriptedAdmin()
    monkeypatch.setattr(shape, "admin_of", lambda values: scripted)
    monkeypatch.setattr(shape, "POLL_S", 0.001)
    return scripted


def command(*words: str) -> int:
    return entry.run([*words, *AT])


def test_list(admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    gone = node(3, up=False, state="removed", replicas=0)
    admin.views = (replace(WHOLE, nodes=(node(1, leads=1), node(2, up=False, knows_directory=False), gone)),)
    assert command("node", "list") == codes.OK
    head, first, second, third = capsys.readouterr().out.splitlines()
    assert head.split() == ["node", "address", "answers", "state", "replicas", "leads", "folder", "note"]
    assert first.split() == ["1", "h:1", "up", "active", "1", "1", "ab" * 6]
    assert second.split() == ["2", "h:2", "DOWN", "active", "1", "0", "ab" * 6, "not", "told", "yet"]
    assert third.split()[:4] == ["3", "h:3", "-", "removed"]


def test_list_as_json(admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.views = (replace(WHOLE, moves=(move(7, 1, 3, 4),)),)
    assert command("node", "list", "--json") == codes.OK
    shown = json.loads(capsys.readouterr().out)
    assert [(one["node"], one["state"], one["up"]) for one in shown["nodes"]] == [
        (number, "active", True) for number in (1, 2, 3)
    ]
    assert shown["moves"][0]["to_node"] == 4


def test_dry_run_says_steps_and_arithmetic_and_asks_for_nothing_else(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("node", "remove", "3", "--dry-run") == codes.OK
    assert capsys.readouterr().out.splitlines() == [
        "would do, and has done nothing:",
        f"  {SHAPED.steps[0]}",
        "quorums:",
        f"  {SHAPED.arithmetic[0]}",
    ]
    ((wish, dry),) = admin.wishes
    assert (wish.remove.node, dry, admin.asked) == (3, True, 0)


def test_json_of_a_change_is_the_last_line_and_progress_goes_elsewhere(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.views = (
        replace(WHOLE, moves=(move(7, 1, 3, 4, trouble="it lags"),)),
        replace(WHOLE, groups=(group(1, 1, 1, 2, 4),), nodes=(node(1), node(2), node(3, state="removed"))),
    )
    assert command("node", "replace", "3", "4", "--json") == codes.OK
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "steps": list(SHAPED.steps),
        "arithmetic": list(SHAPED.arithmetic),
        "moves": [7],
        "dry_run": False,
        "done": True,
    }
    assert "catching up as a learner (it lags)" in captured.err
    assert captured.err.endswith("done\n")


MOVING = replace(WHOLE, moves=(move(7, 1, 3, 4),))
EMPTIED = replace(WHOLE, groups=(group(1, 1, 1, 2, 4),))


@pytest.mark.parametrize(
    ("words", "not_yet", "then"),
    [
        (("add", "4=h:4"), WHOLE, replace(WHOLE, nodes=(*WHOLE.nodes, node(4)))),
        (
            ("remove", "3"),
            replace(WHOLE, nodes=(node(1), node(2, knows_directory=False), node(3, state="removed"))),
            replace(WHOLE, nodes=(node(1), node(2), node(3, state="removed", up=False, knows_directory=False))),
        ),
        (("replace", "3", "3=h:9"), replace(WHOLE, moves=(move(7, 1, 3, 3),)), WHOLE),
        (("replace", "3", "4"), WHOLE, replace(EMPTIED, nodes=(node(1), node(2), node(3, state="removed")))),
        (("drain", "3"), MOVING, EMPTIED),
        (("drain", "1", "--leaders-only"), WHOLE, replace(WHOLE, groups=(group(1, 2, 1, 2, 3),))),
        (("drain", "3", "--undo"), replace(WHOLE, moves=(move(7, 1, 3, 4, cancelled=True),)), WHOLE),
    ],
    ids=["add", "remove", "replace the folder", "replace", "drain", "drain leaders", "undo"],
)
def test_done_when_it_is_so(
    admin: ScriptedAdmin,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    not_yet: ClusterView,
    then: ClusterView,
) -> None:
    admin.views = (not_yet, not_yet, then)
    assert command("node", *words) == codes.OK
    assert admin.asked == 3
    assert capsys.readouterr().out.endswith("done\n")


def test_what_takes_longer_goes_on_by_itself(admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    admin.views = (MOVING,)
    assert command("node", "drain", "3", "--timeout", "0.1") == codes.LATER
    cause, hint = capsys.readouterr().err.splitlines()
    assert "not done within 0.1 s; it goes on by itself" in cause
    assert "paramserver group list" in hint
    assert command("node", "drain", "3", "--no-wait") == codes.OK


def test_interrupted_says_whether_it_goes_on(admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    admin.views = (MOVING,)
    admin.members = interrupt  # type: ignore[method-assign,assignment]
    assert command("node", "drain", "3") == codes.INTERRUPTED
    cause, hint = capsys.readouterr().err.splitlines()
    assert "what was recorded goes on by itself" in cause
    assert "paramserver group list" in hint
    admin.wish = interrupt  # type: ignore[method-assign,assignment]
    assert command("node", "drain", "3") == codes.INTERRUPTED
    assert "it may have been recorded" in capsys.readouterr().err
    assert command("node", "drain", "3", "--dry-run") == codes.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_group_0_that_is_away_for_a_while_is_waited_for(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str]
) -> None:
    admin.views = (Unreachable("group 0 is away"), Unreachable("group 0 is away"), EMPTIED)
    assert command("node", "drain", "3") == codes.OK
    assert capsys.readouterr().out.count("waiting: group 0 is away") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("needs 2; up: 1", "start node 2", code="FAILED_PRECONDITION"), codes.REFUSED),
        (Refused("no node has the number 9", code="NOT_FOUND"), codes.USAGE),
        (Refused("node: expected another", code="INVALID_ARGUMENT"), codes.USAGE),
        (Unreachable("nobody answered", "start them"), codes.UNREACHABLE),
    ],
)
def test_exit_codes_of_refusals(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str], error: Refused | Unreachable, code: int
) -> None:
    admin.answer = error
    assert command("node", "drain", "2") == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == f"paramserver: {error.cause}"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("add", "4"), "NODE '4'"),
        (("add", "4=h:4,5=h:5"), "expected one node"),
        (("replace", "3", "3"), "the same number needs the address of its new folder: 3=host:port"),
        (("drain", "1", "--leaders-only", "--undo"), "choose one"),
        (("drain",), "NODE is missing"),
        (("remove", "0"), "a whole number from 1 to 65535"),
        (("drain", "1", "--dryrun"), "did you mean --dry-run?"),
    ],
)
def test_wrong_flags_ask_nobody(
    admin: ScriptedAdmin, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], problem: str
) -> None:
    assert command("node", *words) == codes.USAGE
    assert problem in capsys.readouterr().err
    assert (admin.wishes, admin.asked) == ([], 0)
