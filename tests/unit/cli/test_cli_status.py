"""The picture that `paramserver status` draws."""

import json
from dataclasses import replace

from paramserver.cli import status as command
from paramserver.lab.admin import ClusterView
from paramserver.lab.status import (
    BlockSnapshot,
    GroupSnapshot,
    MemberSnapshot,
    ModelSnapshot,
    NodeSnapshot,
    RankSnapshot,
    ShardSnapshot,
    Unreachable,
    leader_of,
    leaders,
)
from tests.unit.cli.scripted_admin import move, node

GROUP = GroupSnapshot(
    group=1,
    replica=1,
    role="leader",
    term=3,
    leader_node=1,
    commit_index=9,
    applied_index=9,
    last_index=9,
    snapshot_index=0,
    flushed_index=9,
    problem="",
    state_bytes=2_500_000,
    blocks=(BlockSnapshot(1, 0, 7, "ab" * 16),),
)
MODEL = ModelSnapshot(1, 1, "dig\nits", True, 100, 2, (RankSnapshot(0, 1, True, 5),), (ShardSnapshot(1, 0, 1),))
NODE = NodeSnapshot(1, "127.0.0.1:1", "cafe", "00", 2, "0.1.0", "fsync", (GROUP,), (MODEL,), ())
FOLLOWER = replace(NODE, node=2, groups=(replace(GROUP, replica=2, role="follower"),))


def test_picture() -> None:
    lines = command.lines((NODE, FOLLOWER, Unreachable("127.0.0.1:3", "connection refused")), blocks=True)
    text = "\n".join(lines)
    assert "UNREACHABLE (connection refused)" in text
    assert any(line.startswith("?") for line in lines)
    assert any(
        line.startswith("3 ") for line in command.lines((NODE, Unreachable("127.0.0.1:3", "connection refused", 3)))
    )
    assert "dig\\x0aits" in text
    assert "0:held" in text
    assert "2.5 MB" in text
    assert ("ab" * 6) in text
    assert "DAMAGED" not in text


def test_equal_versions_with_other_digests_are_told() -> None:
    def drawn(version: int, digest: str) -> str:
        group = replace(FOLLOWER.groups[0], blocks=(BlockSnapshot(1, 0, version, digest),))
        return "\n".join(command.lines((NODE, replace(FOLLOWER, groups=(group,)))))

    assert "equal" in drawn(7, "ab" * 16)
    assert "equal" in drawn(6, "cd" * 16)
    assert "DIFFER in block 0" in drawn(7, "cd" * 16)


def test_damaged_replica_is_shown() -> None:
    broken = replace(FOLLOWER, groups=(replace(FOLLOWER.groups[0], role="", problem="group 1: damage in segment 3"),))
    text = "\n".join(command.lines((NODE, broken)))
    assert "up, 1 replica not well" in text
    assert "DAMAGED" in text
    assert "! node 2, group 1: damage in segment 3" in text


def test_a_full_disk_is_shown_while_it_is_full() -> None:
    """FAULTS 10: heartbeats and reads go on, so nothing else would show it."""
    full = replace(FOLLOWER, disk_full=True)
    assert "up, DISK FULL" in "\n".join(command.lines((NODE, full)))
    assert "DISK FULL" not in "\n".join(command.lines((NODE, FOLLOWER)))
    assert [node["disk_full"] for node in command.as_json((NODE, full))["nodes"]] == [False, True]


def test_json() -> None:
    shown = json.loads(json.dumps(command.as_json((NODE, Unreachable("b:1", "gone")))))
    assert shown["leaders"] == {"1": 1}
    assert shown["nodes"][0]["groups"][0]["blocks"][0]["version"] == 7
    assert shown["unreachable"] == [{"address": "b:1", "cause": "gone", "node": 0}]


def test_a_deposed_leader_is_outvoted() -> None:
    newer = replace(FOLLOWER, groups=(replace(FOLLOWER.groups[0], role="leader", term=4),))
    found = leader_of((NODE, newer), 1)
    assert found is not None
    assert found.node == 2
    assert leaders((NODE, FOLLOWER)) == {1: 1}
    assert leader_of((FOLLOWER,), 1) is None


MEMBERS = (
    MemberSnapshot(1, 1, "voter", 9),
    MemberSnapshot(65_536, 4, "incoming", 9),
    MemberSnapshot(2, 2, "outgoing", 9),
    MemberSnapshot(65_537, 5, "learner", 2),
)


def test_members_moves_and_states_of_nodes_are_told() -> None:
    leading = replace(NODE, node_uuid="ab" * 16, address="h:1", groups=(replace(GROUP, members=MEMBERS, joint=True),))
    view = ClusterView(
        5,
        (node(1, state="no leaders"), node(2, state="draining"), node(3, state="removed", up=False), node(6)),
        (),
        (move(7, 1, 2, 4, stage="swap"),),
        (),
    )
    answers = (leading, Unreachable("h:2", "refused"), Unreachable("h:6", "refused"))
    shown = command.lines(answers, view=view)
    rows = [line.split() for line in shown]
    assert ["1", "1", "1", "5", "node", "4", "enters,", "node", "2", "leaves"] in rows
    assert ["1", "h:1", "up,", "no", "leaders", "2", "0.1.0"] in rows
    assert ["2", "h:2", "draining,", "UNREACHABLE", "(refused)"] in rows
    assert ["3", "h:3", "removed"] in rows
    assert ["6", "h:6", "UNREACHABLE", "(refused)"] in rows
    assert "group 1: replica 65536 on node 4 is taking its place as a voter" in shown
    placement = command.as_json(answers, view)["placement"]
    assert [one["state"] for one in placement["nodes"]] == ["no leaders", "draining", "removed", "active"]
    assert placement["moves"][0]["stage"] == "swap"


def test_without_a_leader_of_group_0_the_rest_is_told() -> None:
    shown = "\n".join(command.lines((NODE,)))
    assert "group 0 has no leader that answers" in shown
    assert command.as_json((NODE,))["placement"] is None


def test_problems_and_alarms_are_shown_to_their_end() -> None:
    """Where the repair stands; damage that names places made sentences of 250 characters."""
    problem, alarm = "damaged at " + "x" * 300 + ", replace it", "a disk " + "y" * 300 + ", make room"
    node = replace(NODE, groups=(replace(GROUP, problem=problem),), alarms=(alarm,))
    text = "\n".join(command.lines((node, FOLLOWER)))
    assert ", replace it" in text
    assert ", make room" in text
