"""When a group has stopped, and what keeps which of its voters from voting."""

from dataclasses import replace

from paramserver.cli import status as command
from paramserver.cli.groups import stops
from paramserver.lab.status import Answer, GroupSnapshot, MemberSnapshot, NodeSnapshot, Unreachable
from paramserver.lab.stopped import Stopped, stopped

VOTERS = tuple(MemberSnapshot(number, number, "voter", 0) for number in (1, 2, 3))
STATE = GroupSnapshot(
    group=1,
    replica=1,
    role="follower",
    term=3,
    leader_node=0,
    commit_index=9,
    applied_index=9,
    last_index=9,
    snapshot_index=0,
    flushed_index=9,
    problem="",
    state_bytes=0,
    members=VOTERS,
    configuration_index=1,
)
NODE = NodeSnapshot(1, "h:1", "cafe", "00", 2, "0.1.0", "fsync", (STATE,), (), ())
GONE = Unreachable("h:3", "refused", 3)


def at(number: int, **changes: object) -> NodeSnapshot:
    state = replace(STATE, replica=number, **changes)  # type: ignore[arg-type]
    return replace(NODE, node=number, address=f"h:{number}", groups=(state,))


def forgetful(*numbers: int) -> tuple[Answer, ...]:
    return tuple(at(number, forgetful=number in numbers) for number in (1, 2, 3))


def test_a_forgetful_majority_is_told_with_the_arithmetic_and_the_way_out() -> None:
    answers = forgetful(1, 3)
    (line,) = stops(answers)
    assert line.startswith(
        "! group 1 has stopped: 2 of its 3 voters may have forgotten acknowledged entries (nodes 1, 3); 2 are needed. "
        "Only an operator who accepts the loss can go on"
    )
    assert "paramserver wal accept-loss --data-dir ITS_FOLDER --group 1" in line
    assert line in command.lines(answers)
    (shown,) = command.as_json(answers)["stopped"]
    assert (shown["group"], shown["forgetful"], shown["needed"]) == (1, (1, 3), 2)
    assert stops(answers, 2) == []


def test_a_minority_stops_nothing() -> None:
    assert stopped(forgetful(2)) == ()
    assert stopped((at(1), at(2), GONE)) == ()
    assert command.as_json(forgetful())["stopped"] == []


def test_nodes_that_gave_no_answer_are_to_be_started_first() -> None:
    answers = (at(1, forgetful=True), at(2), GONE)
    assert stopped(answers) == (Stopped(group=1, voters=3, needed=2, forgetful=(1,), broken=(), silent=(3,)),)
    (line,) = stops(answers)
    assert "1 of its 3 voters may have forgotten acknowledged entries (node 1), 1 gave no answer (node 3)" in line
    assert "Start node 3 first: a sound majority fills the others again by itself. If they are lost, only" in line
    (line,) = stops((at(1), GONE))
    assert "2 of its 3 voters gave no answer (nodes 2, 3); 2 are needed. Start nodes 2, 3 first" in line
    assert "accept-loss" not in line


def test_a_replica_that_does_not_run_is_no_voter_that_votes() -> None:
    broken = at(2, problem="its term and vote may be lost", members=())
    other = at(3, removed=True)
    assert stopped((at(1), broken, other)) == (
        Stopped(group=1, voters=3, needed=2, forgetful=(), broken=(2, 3), silent=()),
    )
    elsewhere = replace(at(3), groups=(replace(STATE, replica=65_540),))
    assert [one.broken for one in stopped((at(1, forgetful=True), at(2), elsewhere))] == [(3,)]


def test_a_group_that_somebody_leads_has_not_stopped() -> None:
    assert stopped((at(1, role="leader"), GONE)) == ()


def test_a_joint_configuration_needs_both_its_halves() -> None:
    members = (
        MemberSnapshot(1, 1, "voter", 0),
        MemberSnapshot(4, 4, "incoming", 0),
        MemberSnapshot(2, 2, "outgoing", 0),
        MemberSnapshot(5, 5, "learner", 0),
    )
    joint = {"members": members, "joint": True, "configuration_index": 7}

    def answers(*lost: int) -> tuple[Answer, ...]:
        return tuple(at(number, forgetful=number in lost, **joint) for number in (1, 2, 4, 5))

    assert stopped(answers(5)) == ()
    assert [(one.forgetful, one.outgoing) for one in stopped(answers(2))] == [((2,), True)]
    assert [(one.forgetful, one.outgoing) for one in stopped(answers(4))] == [((4,), False)]
    assert "1 of its 2 outgoing voters may have" in stops(answers(2))[0]
    # One that knows only an older configuration is not asked what it is.
    assert [one.forgetful for one in stopped((at(3), *answers(4)))] == [(4,)]
