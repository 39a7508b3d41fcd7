"""A replica whose state is not to be trusted: it votes and appends, and gets another state (RULES D1)."""

import pytest

from consensus.core.interface import Role, SnapshotMeta
from consensus.runtime import RuntimeOptions
from consensus.runtime.interface import Committed, Outcome, Refused
from consensus.runtime.keeping import SnapshotKeeping
from consensus.storage.snapshots import CHUNK_BYTES
from consensus.transport.interface import SnapshotChunk
from tests.unit.runtime.cluster import Cluster, Node
from tests.unit.runtime.test_runtime_snapshots import SMALL, behind, numbered
from tests.unit.runtime.test_snapshot_transfer import NARROW, Wire

QUIET = RuntimeOptions(snapshot_log_bytes_min=1 << 30)
"""No snapshots but those that are asked for."""


def spoilt(cluster: Cluster) -> Node:
    """A follower with a wrong state."""
    node = cluster.followers()[0]
    node.machine.commands[3] = b"something else"
    return node


def states_agree(cluster: Cluster) -> bool:
    return len({tuple(node.machine.commands) for node in cluster.nodes.values()}) == 1


def whole(cluster: Cluster) -> bool:
    return states_agree(cluster) and not any(node.handle.distrusted for node in cluster.nodes.values())


@pytest.mark.parametrize("options", [QUIET, SMALL], ids=["whole log", "compacted log"])
def test_it_gets_the_state_of_its_leader_and_goes_on_from_its_own_log(options: RuntimeOptions) -> None:
    cluster = Cluster(options=options)
    for start in range(0, 60, 10):
        cluster.commit(*numbered(10, start))
    node = spoilt(cluster)
    applied = len(node.machine.commands)
    node.handle.distrust("spoilt by hand")
    cluster.network.cut(cluster.leader().runtime.node, node.runtime.node)
    cluster.quiet()
    for payload in numbered(10, 60):
        cluster.propose(payload)
    cluster.quiet()
    assert node.handle.status().distrusted == "spoilt by hand"
    assert len(node.machine.commands) == applied
    cluster.network.heal()
    cluster.until(lambda: whole(cluster), ms=5000)
    assert node.machine.commands == numbered(70)
    assert node.listener.of("restored")
    cluster.commit(b"and on")
    assert node.machine.commands[-1] == b"and on"


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "last word lost"])
def test_it_can_be_rebuilt_again_soon_after(heard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the first time is in the way of the second, whatever got lost."""
    if not heard:
        monkeypatch.setattr(SnapshotKeeping, "_say_held", lambda *_, installed: None)
    cluster = Cluster(options=QUIET)
    cluster.commit(*numbered(20))
    for start in (20, 40, 60):
        node = spoilt(cluster)
        node.handle.distrust("spoilt by hand")
        cluster.until(lambda: whole(cluster), ms=5000)
        cluster.commit(*numbered(20, start))
    assert states_agree(cluster)


def test_what_broke_off_is_asked_for_again_and_goes_on() -> None:
    """The log lacks nothing, so nobody else would begin again, and half of a file is kept for half a minute
    (`test_simulation_diverging.py`, seed 20 with connections that break, of leaders)."""
    cluster = Cluster(options=NARROW)
    for start in range(0, 200, 10):
        cluster.commit(*numbered(10, start, 30_000))
    node = spoilt(cluster)
    wire = Wire(cluster, node)
    wire.stop_at = 3 * CHUNK_BYTES
    node.handle.distrust("spoilt by hand")
    cluster.until(lambda: len(wire.chunks) == 3)
    cluster.run(100)
    cluster.network.leave(node.runtime.node)
    cluster.run(100)
    wire.stop_at = 1 << 60
    cluster.network.join(node.runtime.node, node.runtime)
    wire.chunks.clear()
    wire = Wire(cluster, node)
    cluster.network.connect(node.runtime.node)
    cluster.until(lambda: whole(cluster), ms=3000)
    assert wire.offsets[0] == 3 * CHUNK_BYTES


def test_a_state_in_doubt_is_sent_to_nobody_who_is_merely_behind() -> None:
    """His copy would count as a second opinion."""
    cluster, leader, third = behind()
    leader.handle.hold_snapshots(held=True)
    cluster.restart(third)
    cluster.run(3000)
    assert len(cluster.nodes[third].machine.commands) < len(leader.machine.commands)
    leader.handle.hold_snapshots(held=False)
    cluster.until(lambda: states_agree(cluster), ms=5000)


def test_while_a_state_is_in_doubt_the_log_stays_for_who_is_behind() -> None:
    """Without it he could have no opinion of his own, and nobody would ever be right (`test_simulation_diverging.py`,
    seed 12)."""
    cluster = Cluster(options=SMALL)
    cluster.commit(b"first")
    leader, third = cluster.leader(), cluster.followers()[-1].runtime.node
    cluster.kill(third)
    leader.handle.hold_snapshots(held=True)
    for start in range(0, 200, 10):
        cluster.commit(*numbered(10, start))
    assert leader.handle.status().snapshots_written > 0
    assert leader.handle.status().core.first_index == 1
    cluster.restart(third)
    cluster.until(lambda: states_agree(cluster), ms=5000)
    assert leader.handle.status().snapshots_sent == 0
    leader.handle.hold_snapshots(held=False)
    cluster.commit(*numbered(100, 200))
    assert leader.handle.status().core.first_index > 1


def test_who_is_wrong_is_rebuilt_from_a_state_in_doubt() -> None:
    """Of two that differ one found out by itself: then there is no doubt about the other."""
    cluster = Cluster(nodes=2, options=QUIET)
    cluster.commit(*numbered(20))
    node = spoilt(cluster)
    cluster.leader().handle.hold_snapshots(held=True)
    node.handle.distrust("spoilt by hand")
    cluster.until(lambda: whole(cluster), ms=5000)


def test_it_votes_and_acknowledges_all_the_time() -> None:
    """With one replica down the group needs its vote and its log."""
    cluster = Cluster(options=QUIET)
    cluster.commit(*numbered(20))
    node = spoilt(cluster)
    leader = cluster.leader()
    other = next(each for each in cluster.followers() if each is not node)
    cluster.kill(other.runtime.node)
    node.lanes.held.add("files")
    node.handle.distrust("spoilt by hand")
    outcomes = cluster.propose(b"needs a majority", at=leader)
    cluster.run(100)
    assert isinstance(outcomes[0], Committed)
    cluster.restart(other.runtime.node)
    cluster.run(200)
    cluster.kill(leader.runtime.node)
    cluster.until(lambda: cluster.nodes[other.runtime.node].handle.ready_to_serve, ms=3000)
    assert node.handle.distrusted


def test_it_never_campaigns() -> None:
    cluster = Cluster(options=QUIET)
    cluster.commit(*numbered(20))
    node = spoilt(cluster)
    node.handle.distrust("spoilt by hand")
    term = node.handle.leader()[2]
    for member in [member for member in cluster.nodes if member != node.runtime.node]:
        cluster.kill(member)
    cluster.run(5000)
    status = node.handle.status().core
    assert status is not None
    assert (status.role, status.term) == (Role.FOLLOWER, term)


def test_a_leader_hands_over_first() -> None:
    cluster = Cluster(options=QUIET)
    cluster.commit(*numbered(20))
    leader = cluster.leader()
    leader.machine.commands[3] = b"something else"
    waiting = cluster.propose(b"under way", at=leader)
    leader.handle.distrust("spoilt by hand")
    refused: list[Outcome] = []
    leader.handle.propose(b"x", 0, refused.append)
    assert isinstance(refused[0], Refused)
    assert "rebuilt" in refused[0].reason
    reads: list[object] = []
    leader.handle.read_index(reads.append)
    assert isinstance(reads[0], Refused)
    cluster.until(lambda: cluster.leader() is not leader, ms=1000)
    assert len(waiting) == 1
    cluster.until(lambda: whole(cluster), ms=5000)
    assert b"something else" not in leader.machine.commands


def test_of_two_replicas_the_one_in_doubt_hands_over_too() -> None:
    """It knows by itself; the other one can only lead with its vote."""
    cluster = Cluster(nodes=2, options=QUIET)
    cluster.commit(*numbered(20))
    leader = cluster.leader()
    leader.machine.commands[3] = b"something else"
    leader.handle.distrust("spoilt by hand")
    cluster.until(lambda: whole(cluster), ms=5000)
    assert cluster.leader() is not leader


@pytest.mark.parametrize("end", ["kill", "crash"])
def test_a_restart_does_not_make_it_trustworthy(end: str) -> None:
    """Its own snapshots may hold the wrong state."""
    cluster = Cluster(options=SMALL)
    for start in range(0, 60, 10):
        cluster.commit(*numbered(10, start))
    node = spoilt(cluster)
    name = node.runtime.node
    cluster.commit(*numbered(40, 60))
    assert node.handle.status().snapshots_written > 2
    node.handle.distrust("spoilt by hand")
    while node.lanes.queues["files"]:
        node.lanes.work()
    (cluster.kill if end == "kill" else cluster.crash)(name)
    again = cluster.restart(name)
    again.lanes.work()
    again.lanes.work()
    cluster.run(10)
    assert "spoilt by hand" in again.handle.distrusted
    assert again.machine.commands == []
    cluster.until(lambda: whole(cluster), ms=5000)
    assert again.machine.commands == numbered(100)
    cluster.run(100)
    cluster.crash(name)
    third = cluster.restart(name)
    cluster.run(500)
    assert third.handle.distrusted == ""
    cluster.until(lambda: whole(cluster), ms=5000)


def test_without_a_snapshot_of_its_own_a_restart_makes_the_state_anew_from_the_log() -> None:
    cluster = Cluster(options=QUIET)
    cluster.commit(*numbered(20))
    node = spoilt(cluster)
    name = node.runtime.node
    leader = cluster.leader().runtime.node
    cluster.network.cut(leader, name)
    node.handle.distrust("spoilt by hand")
    cluster.quiet()
    cluster.kill(name)
    cluster.network.heal()
    cluster.restart(name)
    cluster.until(lambda: whole(cluster), ms=5000)
    assert cluster.nodes[leader].handle.status().snapshots_sent == 0


def test_a_replica_that_lags_behind_the_leaders_snapshot_is_rebuilt_by_its_install() -> None:
    cluster, _, third = behind()
    started = cluster.restart(third)
    started.handle.distrust("spoilt by hand")
    cluster.until(lambda: whole(cluster), ms=5000)
    assert cluster.disks[third].listdir("snapshots/group-1") != []
    assert "distrusted" not in cluster.disks[third].listdir("snapshots/group-1")


def test_a_leader_ahead_of_nobody_writes_a_snapshot_that_goes_far_enough() -> None:
    """The odd replica applied more than the leader's newest snapshot holds: it must not go back in time."""
    cluster = Cluster(options=QUIET)
    cluster.commit(*numbered(10))
    leader = cluster.leader()
    leader.handle._snapshots.want()
    cluster.run(50)
    cluster.commit(*numbered(10, 10))
    node = spoilt(cluster)
    node.handle.distrust("spoilt by hand")
    cluster.until(lambda: whole(cluster), ms=5000)
    assert leader.handle.status().snapshots_written == 2
    assert node.listener.of("restored") == [("restored", 21)]


# --- reports --------------------------------------------------------------------------------------------------------


def test_reports_go_between_a_leader_and_its_followers_only() -> None:
    cluster = Cluster(options=QUIET)
    leader, (one, two) = cluster.leader(), cluster.followers()
    one.handle.report(leader.runtime.node, b"from one")
    leader.handle.report(two.runtime.node, b"to two")
    one.handle.report(two.runtime.node, b"nothing")
    one.handle.report(leader.runtime.node, bytes(5000))
    cluster.quiet()
    assert leader.listener.notes == [(one.runtime.node, b"from one")]
    assert two.listener.notes == [(leader.runtime.node, b"to two")]
    assert two.runtime.dropped["report_unexpected"] == 1
    assert one.runtime.dropped["note_too_long"] == 1


def test_what_a_leader_in_doubt_holds_goes_to_nobody() -> None:
    """A wrong state that travelled would be two of three, and the right one the odd one."""
    cluster, leader, third = behind()
    other = cluster.followers()[0]
    other.handle.storage(stalled=True)  # it does not take over
    leader.machine.commands[3] = b"something else"
    leader.handle.distrust("spoilt by hand")
    away = cluster.restart(third)
    cluster.run(2000)
    assert leader.handle.status().snapshots_sent == 0
    assert away.machine.commands == []
    other.handle.storage(stalled=False)
    cluster.until(lambda: whole(cluster), ms=10_000)
    assert b"something else" not in away.machine.commands


def test_a_transfer_under_way_ends_when_its_sender_is_in_doubt() -> None:
    cluster, leader, third = behind()
    other = cluster.followers()[0]
    other.handle.storage(stalled=True)
    leader.lanes.held.add("files")
    away = cluster.restart(third)
    cluster.until(lambda: leader.handle.status().snapshots_sent == 1)
    leader.handle.distrust("spoilt by hand")
    leader.lanes.held.clear()
    cluster.run(1000)
    assert away.machine.commands == []
    other.handle.storage(stalled=False)
    cluster.until(lambda: whole(cluster), ms=10_000)


def test_doubt_while_a_snapshot_is_recorded_leaves_one_slot_for_snapshots() -> None:
    """RULES W6: one at a time on a node."""
    cluster = Cluster(options=QUIET)
    cluster.commit(*numbered(20))
    node = cluster.followers()[0]
    node.writer.held = True
    node.handle.want_snapshot()
    cluster.run(20)
    assert node.writer.queue
    node.handle.distrust("spoilt by hand")
    node.writer.held = False
    cluster.run(50)
    assert node.handle.status().snapshots_written == 1
    assert node.runtime._services.writing._free == 1
    cluster.until(lambda: whole(cluster), ms=5000)


def test_a_snapshot_that_the_core_does_not_take_is_asked_for_again() -> None:
    """Its leader was deposed while the last chunk was written. The log may end below it for long: it must not be waited
    for."""
    cluster = Cluster(options=QUIET)
    cluster.commit(*numbered(20))
    node = spoilt(cluster)
    node.handle.distrust("spoilt by hand")
    cluster.quiet()
    rebuilding, status = node.handle._snapshots.rebuilding, node.handle.status().core
    assert rebuilding is not None
    assert status is not None
    meta = SnapshotMeta(status.last_index + 5, status.term, cluster.configuration, "of-a-leader-of-the-past")
    late = SnapshotChunk(
        sender=status.leader,
        to=node.handle.replica,
        term=status.term - 1,
        incarnation=1,
        meta=meta,
        offset=0,
        data=b"",
        crc=0,
        last=True,
    )
    with node.runtime.input():
        rebuilding.arrived(meta, late)
    assert not rebuilding.has_arrived
    cluster.until(lambda: whole(cluster), ms=5000)
