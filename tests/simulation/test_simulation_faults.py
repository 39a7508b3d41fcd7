"""Each fault of FAULTS.md that the simulator must show, one by one, with what it may cost.

Each run has load before, during and after the fault, and ends with all checks of the simulator: nothing acknowledged is
lost or applied twice, histories are linearizable, replicas are equal. What a test asserts beyond that is its row's
outcome. Times are virtual milliseconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from consensus.core.interface import NodeId, Role, Status
from consensus.runtime.interface import Committed, ReadOutcome, Refused, Transferred
from consensus.simulation import damage
from consensus.simulation.administrator import _Goal
from consensus.simulation.case import spread_groups
from consensus.simulation.cluster import Cluster, SimulationOptions, small_runtime_options, small_wal_options
from consensus.simulation.faults import Fault, FaultKind
from consensus.simulation.ledger import Ledger, encode
from consensus.simulation.load import LedgerLoad
from consensus.simulation.network import Wire
from consensus.simulation.node import SimulatedNode
from consensus.simulation.plans import HOUR_MS, _draw_storm
from consensus.simulation.profile import Profile
from consensus.simulation.report import Report
from consensus.simulation.schedule import MS
from consensus.storage.checksum import crc32c
from consensus.transport.interface import Envelope, SnapshotChunk
from paramserver.lab.simulation import run_seed as train_seed

TIMEOUT_MS = small_runtime_options().raft.election_timeout_ms
ELECTION_MS = 1200
"""Longer than an election in good surroundings takes, the delay of the last place included."""
PROBE_MS = 4
STEADY = 1 << 30
"""The number of a client that is no other's."""


@dataclass
class Run:
    """A ledger under a fault, and what was seen of it."""

    cluster: Cluster
    load: LedgerLoad
    report: Report = field(init=False)
    seen: list[tuple[int, NodeId, int]] = field(default_factory=list)
    """(time in ms, node that leads, its term) whenever that changed."""
    commits: list[int] = field(default_factory=list)
    """Times in ms at which more was known committed than before."""
    committed: int = 0

    def at(self, ms: int, action: Callable[[], None]) -> None:
        self.cluster.scheduler.at(ms * MS, action)

    @property
    def now_ms(self) -> int:
        return self.cluster.scheduler.now_us // MS

    def leader(self) -> SimulatedNode:
        node = self.cluster.leader_of(1)
        assert node is not None
        return self.cluster.nodes[node]

    def followers(self) -> list[SimulatedNode]:
        leader = self.leader()
        return [node for node in self.cluster.nodes.values() if node is not leader]

    def status(self, node: SimulatedNode) -> Status | None:
        handle = node.handles.get(1)
        return handle.status().core if handle is not None else None

    def watch(self, look: Callable[[], None], every_ms: int = PROBE_MS) -> None:
        def again() -> None:
            look()
            self.cluster.scheduler.after(every_ms * MS, again)

        again()

    def look_for_leaders(self) -> None:
        node = self.cluster.leader_of(1)
        if node is not None:
            status = self.status(self.cluster.nodes[node])
            assert status is not None
            if status.commit_index > self.committed:
                self.committed = status.commit_index
                self.commits.append(self.now_ms)
            if not self.seen or self.seen[-1][1:] != (node, status.term):
                self.seen.append((self.now_ms, node, status.term))

    def elections(self, from_ms: int, to_ms: int = 1 << 60) -> list[tuple[int, NodeId, int]]:
        return [one for one in self.seen if from_ms < one[0] <= to_ms]

    def term(self) -> int:
        """The highest that any replica is in."""
        statuses = [self.status(node) for node in self.cluster.nodes.values()]
        return max(status.term for status in statuses if status is not None)

    def acknowledged(self, from_ms: int, to_ms: int) -> int:
        lines = self.load._histories[1]._lines.values()
        return sum(from_ms * MS <= line.acknowledged_us < to_ms * MS for line in lines)

    def propose_steadily(self) -> None:
        """One command after the other at whoever leads: clients lose their time at those who are away."""
        number = 1

        def answered(outcome: object) -> None:
            nonlocal number
            number += isinstance(outcome, Committed)
            self.cluster.scheduler.after(5 * MS, propose)

        def propose() -> None:
            node = self.cluster.leader_of(1)
            if node is None:
                self.cluster.scheduler.after(5 * MS, propose)
                return
            payload = encode(STEADY, number, b"")
            self.cluster.nodes[node].handles[1].propose(payload, crc32c(payload), answered)

        propose()

    def longest_gap(self, from_ms: int, to_ms: int) -> int:
        """The longest time without a commit."""
        times = [from_ms, *(ms for ms in self.commits if from_ms < ms < to_ms), to_ms]
        return max(after - before for before, after in pairwise(times))

    def run(self, faulty: tuple[int, int], *, during: bool = True) -> Run:
        """`faulty`: from when to when something was wrong. `during`: whether writes went through meanwhile."""
        self.watch(self.look_for_leaders)
        self.report = self.cluster.run()
        self.report.raise_if_failed()
        assert self.acknowledged(0, faulty[0]), "no load before"
        assert not during or self.acknowledged(*faulty), "no load during"
        assert self.acknowledged(faulty[1], 1 << 40), "no load after"
        return self


def prepare(
    plan: Sequence[Fault] = (),
    *,
    seed: int = 1,
    nodes: int = 3,
    replicas: int = 0,
    profile: Profile | None = None,
    load_ms: int = 3000,
    clients: int = 3,
    options: SimulationOptions | None = None,
    wire: Wire | None = None,
) -> Run:
    ids = tuple(range(1, nodes + 1))
    load = LedgerLoad(seed=seed, clients=clients, commands=3)
    cluster = Cluster(
        seed=seed,
        nodes=ids,
        groups=spread_groups(ids, (1,), replicas or nodes),
        application=load,
        profile=profile or Profile(),
        plan=tuple(plan),
        options=replace(options or SimulationOptions(), load_ms=load_ms, heal_some=False, keep_trace=True),
        wire=wire,
        administrator=True,
    )
    return Run(cluster, load)


def fault(kind: FaultKind, at_ms: int, for_ms: int, **rest: object) -> Fault:
    return Fault(at_ms=at_ms, kind=kind, for_ms=for_ms, **rest)  # type: ignore[arg-type]


def of_leader(kind: FaultKind, at_ms: int, for_ms: int, amount: int = 0) -> Fault:
    return fault(kind, at_ms, for_ms, leader_of=1, amount=amount)


SMALL_SNAPSHOTS = SimulationOptions(
    runtime=replace(small_runtime_options(), snapshot_log_bytes_min=4096, keep_bytes_max=0), snapshot_chunk_bytes=1024
)


# --- processes and machines that end --------------------------------------------------------------------------------


def test_fault_01_a_killed_leader_is_replaced_within_tens_of_ms() -> None:
    gaps = []
    for seed in range(5):
        run = prepare([of_leader(FaultKind.KILL, 1200, 600)], seed=seed).run((1200, 1800))
        gaps.append(run.elections(1200)[0][0] - 1200)
    assert sorted(gaps)[2] < 120
    assert max(gaps) < 2 * TIMEOUT_MS


def test_fault_02_a_follower_that_restarts_again_and_again_costs_nobody_anything() -> None:
    run = prepare()
    run.at(500, run.propose_steadily)

    def loop() -> None:
        victim = run.followers()[0]
        for number in range(6):
            run.at(1000 + 250 * number, lambda: victim.kill("killed again"))
            run.at(1100 + 250 * number, victim.start)

    run.at(1000, loop)
    run.run((1000, 2500))
    assert run.elections(1000, 3000) == []
    assert run.longest_gap(1000, 2500) < 50


def test_fault_03_without_a_majority_nothing_is_answered_and_then_it_goes_on_by_itself() -> None:
    run = prepare()
    reads: list[ReadOutcome] = []

    def kill_two() -> None:
        for node in run.followers():
            node.kill("killed")
            run.at(2400, node.start)
        leader = run.leader()
        run.at(1000 + ELECTION_MS, lambda: leader.handles[1].read_index(reads.append))

    run.at(1000, kill_two)
    run.run((1000 + TIMEOUT_MS, 2400), during=False)
    assert run.acknowledged(1050, 2400) == 0
    assert [type(outcome) for outcome in reads] == [Refused]


@pytest.mark.parametrize("seed", range(4))
def test_fault_04_a_power_cut_of_everything_loses_nothing_acknowledged(seed: int) -> None:
    everybody = fault(FaultKind.RESTART_ALL, 1300, 200, nodes=(1, 2, 3), amount=1)
    prepare([everybody], seed=seed).run((1300, 1500), during=False)


def test_fault_06_torn_tails_are_discarded_and_it_starts() -> None:
    torn = 0
    for seed in (3, 7, 8):
        cuts = [fault(FaultKind.POWER, 800 + 450 * i, 60, nodes=(1 + i % 3,)) for i in range(6)]
        slow = Profile(sync_us=(5 * MS, 20 * MS))
        run = prepare(cuts, seed=seed, profile=slow, clients=8, load_ms=3600).run((800, 3100))
        torn += run.report.counts["torn tails"]
    assert torn


# --- disks ----------------------------------------------------------------------------------------------------------


def test_fault_07_a_flipped_bit_below_commit_takes_vote_and_service_until_refilled() -> None:
    noticed = 0
    for seed in range(4):
        run = prepare([of_leader(FaultKind.FLIP, 1200, 200, amount=7)], seed=seed)
        forgetful: list[NodeId] = []

        def look(run: Run = run, forgetful: list[NodeId] = forgetful) -> None:
            for node in run.cluster.nodes.values():
                status = run.status(node)
                if status is not None and status.forgetful:
                    forgetful.append(node.node)
                    assert status.role is Role.FOLLOWER
                    assert not status.ready_to_serve

        run.watch(look)
        run.run((1200, 1400))
        assert run.report.faults == {"bit flip": 1}
        assert not run.cluster.roster.impaired, "it is whole again, or another took its place"
        noticed += bool(forgetful)
    assert noticed >= 2, "the others hit what is no part of the log any more"


@pytest.mark.parametrize("seed", range(2))
def test_fault_08_a_flipped_bit_in_a_snapshot_is_noticed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "SNAPSHOT_CHANCE", 1.0)
    flip = of_leader(FaultKind.FLIP, 1500, 200, amount=seed)
    run = prepare([flip], seed=seed, options=SMALL_SNAPSHOTS).run((1500, 1700))
    assert ".snapshot" in run.report.trace
    assert not run.cluster.roster.impaired


def test_fault_08_a_chunk_that_was_changed_on_the_way_is_asked_for_again() -> None:
    spoilt: list[int] = []
    sent: list[int] = []

    def spoil(_: NodeId, envelopes: Sequence[Envelope]) -> Sequence[Envelope]:
        out = []
        for envelope in envelopes:
            chunk = envelope.message
            if isinstance(chunk, SnapshotChunk) and spoilt:
                sent.append(chunk.offset)
            if isinstance(chunk, SnapshotChunk) and len(spoilt) < 4 and len(chunk.data):
                spoilt.append(chunk.offset)
                other = bytes((chunk.data[0] ^ 1,)) + bytes(chunk.data[1:])
                envelope = Envelope(envelope.group, replace(chunk, data=other))
            out.append(envelope)
        return out

    run = lagging(wire=spoil).run((700, 2000))
    assert len(spoilt) == 4
    assert set(spoilt) <= set(sent)
    assert run.report.counts["snapshots sent"]


def test_fault_09_a_failed_sync_ends_the_process_and_nothing_unsynced_was_acknowledged() -> None:
    run = prepare([of_leader(FaultKind.SYNC_FAILS, 1200, 400)]).run((1200, 1600))
    assert "ends by itself: syncing the log" in run.report.trace


@pytest.mark.parametrize("lag_ms", [1000, 5000])
def test_fault_11_a_leader_with_a_slow_disk_hands_over(lag_ms: int) -> None:
    run = prepare([of_leader(FaultKind.SLOW_DISK, 1000, 2500, amount=lag_ms)], load_ms=4000)
    before: list[NodeId] = []
    run.at(999, lambda: before.append(run.leader().node))
    run.run((1000, 3500))
    changes = run.elections(1000, 3500)
    assert [node for _, node, _ in changes if node not in before], "somebody else leads"
    assert changes[0][0] < 1000 + ELECTION_MS
    assert len(changes) <= 2
    assert run.acknowledged(1000 + ELECTION_MS, 3500) > 20


def test_fault_11_a_follower_with_a_slow_disk_has_no_effect() -> None:
    run = prepare()
    run.at(500, run.propose_steadily)

    def slow() -> None:
        victim = run.followers()[0]
        victim.disk_lag_us = 3000 * MS
        run.at(2600, lambda: setattr(victim, "disk_lag_us", 0))

    run.at(1000, slow)
    run.run((1000, 2600))
    assert run.elections(1000, 2600) == []
    assert run.longest_gap(1000, 2600) < 50


# --- networks -------------------------------------------------------------------------------------------------------


def cut(run: Run, links: Sequence[tuple[NodeId, NodeId]], to_ms: int) -> None:
    run.cluster.network.cut(links)
    run.at(to_ms, lambda: run.cluster.network.heal(links))


def test_fault_12_a_leader_on_the_minority_side_steps_down_and_answers_no_read() -> None:
    run = prepare()
    answered: list[ReadOutcome] = []
    old: list[SimulatedNode] = []

    def part() -> None:
        leader = run.leader()
        old.append(leader)
        cut(
            run,
            [link for other in run.followers() for link in ((leader.node, other.node), (other.node, leader.node))],
            2400,
        )
        for at_ms in range(1010, 2390, 60):
            run.at(at_ms, lambda: leader.handles[1].read_index(answered.append))

    def stepped_down() -> None:
        status = run.status(old[0])
        assert status is not None
        assert status.role is not Role.LEADER

    run.at(1000, part)
    run.at(1000 + 2 * TIMEOUT_MS, stepped_down)
    run.run((1000, 2400))
    assert len(answered) >= 20
    assert {type(outcome) for outcome in answered} == {Refused}


LINKS_OF_THREE: dict[str, Callable[[int, int, int], list[tuple[int, int]]]] = {
    "leader and a follower can't see each other": lambda a, b, c: [(a, b), (b, a)],
    "two followers can't see each other": lambda a, b, c: [(b, c), (c, b)],
    "a follower is not heard": lambda a, b, c: [(b, a), (b, c)],
    "a follower hears nobody": lambda a, b, c: [(a, b), (c, b)],
    "the leader is not heard by one": lambda a, b, c: [(a, b)],
    "the leader does not hear one": lambda a, b, c: [(b, a)],
    "the leader is not heard": lambda a, b, c: [(a, b), (a, c)],
    "the leader hears nobody": lambda a, b, c: [(b, a), (c, a)],
}


@pytest.mark.parametrize("shape", LINKS_OF_THREE)
def test_fault_13_partial_partitions_cost_at_most_one_election_and_inflate_no_term(shape: str) -> None:
    run = prepare(load_ms=4000)
    terms: list[int] = []

    def part() -> None:
        terms.append(run.term())
        leader, (second, third) = run.leader(), run.followers()
        cut(run, LINKS_OF_THREE[shape](leader.node, second.node, third.node), 3000)

    run.at(1000, part)
    run.at(3900, lambda: terms.append(run.term()))
    run.run((1000, 3000))
    # One when it begins, and where the healed one comes back at most one more.
    assert len(run.elections(1000, 3000)) <= 1
    assert terms[1] - terms[0] <= 2
    assert run.acknowledged(1000 + ELECTION_MS, 3000) > 20


@pytest.mark.parametrize("seed", range(3))
def test_fault_14_links_clogged_one_by_one_change_leaders_a_bounded_number_of_times(seed: int) -> None:
    storm = _draw_storm(random.Random(seed), 1000, (1, 2, 3, 4, 5))
    end_ms = max(one.at_ms + one.for_ms for one in storm)
    run = prepare(storm, seed=seed, nodes=5, load_ms=end_ms + 800).run((1000, end_ms))
    assert len(run.elections(1000, end_ms)) <= 2 + (end_ms - 1000) // (2 * TIMEOUT_MS)
    assert run.elections(end_ms + ELECTION_MS) == []


@pytest.mark.parametrize("seed", range(2))
def test_fault_15_loss_duplication_and_seconds_of_delay_make_it_slower_and_never_wrong(seed: int) -> None:
    wild = Profile(
        ordered=False,
        delay_us=(25 * MS, 125 * MS),
        late_permille=20,
        late_us=(100 * MS, 5000 * MS),
        loss_permille=300,
        duplicate_permille=500,
        client_loss_permille=50,
    )
    run = prepare(seed=seed, profile=wild, load_ms=8000)
    run.run((3000, 8000))
    assert run.acknowledged(3000, 8000) > 5, "no livelock"


# --- time -----------------------------------------------------------------------------------------------------------


def test_fault_17_a_leader_that_slept_answers_no_read_before_it_is_confirmed_again() -> None:
    for seed in range(3):
        run = prepare([of_leader(FaultKind.PAUSE, 1000, 1500)], seed=seed)
        answered: list[ReadOutcome] = []

        def ask(run: Run = run, answered: list[ReadOutcome] = answered) -> None:
            node = run.leader()
            # Of all that waits when it goes on, this comes first.
            node.later(0, "a read from before its sleep", lambda: node.handles[1].read_index(answered.append))

        run.at(1001, ask)
        run.run((1000 + ELECTION_MS, 2500))
        assert [type(outcome) for outcome in answered] == [Refused]


@pytest.mark.parametrize("ms", [400, 60_000, 5 * HOUR_MS])
def test_fault_18_a_clock_that_jumps_by_hours_is_a_pause_at_most(ms: int) -> None:
    jumps = [fault(FaultKind.CLOCK_JUMP, 900 + 500 * node, 1, nodes=(node,), amount=ms) for node in (1, 2, 3)]
    run = prepare(jumps, load_ms=3500).run((1400, 2900))
    assert len(run.elections(1000, 3500)) <= 1
    assert run.acknowledged(1400, 3500) > 100


@pytest.mark.parametrize("ppm", [-900_000, -300_000, 300_000, 1_000_000])
def test_fault_18_a_clock_that_drifts_costs_at_most_one_election(ppm: int) -> None:
    run = prepare([of_leader(FaultKind.CLOCK, 1000, 1500, amount=ppm)]).run((1000, 2500))
    assert len(run.elections(1000, 2500)) <= 1


@pytest.mark.parametrize("leads", [True, False])
def test_fault_19_a_stalled_loop_costs_at_most_one_election(leads: bool) -> None:
    run = prepare(load_ms=4500)

    def hang() -> None:
        node = run.leader() if leads else run.followers()[0]
        node.stall()
        run.at(3000, node.unstall)

    run.at(1000, hang)
    run.run((1000, 3000))
    assert len(run.elections(1000, 4500)) == leads


def test_fault_20_when_everything_restarts_a_leader_is_there_within_ten_timeouts() -> None:
    """At p99 over seeds: of 100, one may take longer; in all surroundings but lossy ones none does."""
    waits = []
    for seed in range(100):
        nodes = (3, 5)[seed % 2]
        everybody = fault(FaultKind.RESTART_ALL, 700, 100, nodes=tuple(range(1, nodes + 1)), amount=seed)
        profile = Profile(
            ordered=seed % 3 > 0,
            delay_us=((100, 1000), (2 * MS, 20 * MS))[seed % 4 == 0],
            sync_us=((100, 2000), (5 * MS, 40 * MS))[seed % 5 == 0],
        )
        run = prepare([everybody], seed=seed, nodes=nodes, profile=profile, load_ms=810, clients=1)
        run.watch(run.look_for_leaders)
        run.cluster.run().raise_if_failed()
        waits.append(run.elections(800)[0][0] - 800)
    assert sorted(waits)[98] <= 10 * TIMEOUT_MS
    assert sorted(waits)[50] <= 3 * TIMEOUT_MS


# --- changes that are asked for -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies", [False, True])
def test_fault_21_a_transfer_ends_within_an_election_timeout_also_when_the_target_dies(dies: bool) -> None:
    for seed in range(3):
        run = prepare(seed=seed)
        ended: list[tuple[int, object]] = []

        def hand_over(run: Run = run, ended: list[tuple[int, object]] = ended) -> None:
            leader, target = run.leader(), run.followers()[-1]

            def done(outcome: object) -> None:
                ended.append((run.now_ms, outcome))

            leader.later(0, "hands over", lambda: leader.handles[1].transfer(target.node, done))
            if dies:
                run.cluster.scheduler.after(300, lambda: target.kill("killed as it is to lead"))
                run.at(2000, target.start)

        run.at(1000, hand_over)
        run.run((1000, 2000))
        assert len(ended) == 1
        assert ended[0][0] <= 1000 + TIMEOUT_MS + 250, "an election timeout, and the drain before it"
        assert isinstance(ended[0][1], Refused if dies else Transferred)


def replacing(run: Run, old: Callable[[], NodeId], new: NodeId) -> None:
    """From 800 ms on the administrator gives the group a new member in place of an old one."""

    def order() -> None:
        administrator = run.cluster.administrator
        assert administrator is not None
        administrator.settle()  # it hurts nobody by chance
        configuration = run.cluster.roster.latest(1)
        made = {administrator._new_id(1): new}
        voters = tuple(voter for voter in configuration.voters if voter != old())
        administrator._begin(1, _Goal((*voters, *made), configuration.learners, made))

    run.at(800, order)


def in_force(status: Status, *, learners: bool, joint: bool, committed: bool) -> bool:
    """The new member is a learner, or a voter, in the joint or the final configuration."""
    configuration = status.configuration
    if configuration is None or learners != bool(configuration.learners) or joint != bool(configuration.outgoing):
        return False
    new = max(configuration.voters) > 65535
    return new != learners and committed == (status.commit_index >= status.configuration_index)


STAGES: dict[str, Callable[[Status], bool]] = {
    "learner": lambda status: in_force(status, learners=True, joint=False, committed=False),
    "learner, committed": lambda status: in_force(status, learners=True, joint=False, committed=True),
    "joint": lambda status: in_force(status, learners=False, joint=True, committed=False),
    "final": lambda status: in_force(status, learners=False, joint=False, committed=False),
    "final, committed": lambda status: in_force(status, learners=False, joint=False, committed=True),
}


def four_nodes_three_replicas(seed: int) -> Run:
    return prepare(seed=seed, nodes=4, replicas=3, load_ms=2500, options=SMALL_SNAPSHOTS)


@pytest.mark.parametrize("victim", ["leader", "new member"])
@pytest.mark.parametrize("stage", STAGES)
def test_fault_22_a_crash_at_each_stage_of_a_membership_change(stage: str, victim: str) -> None:
    power = len(stage) % 2
    run = four_nodes_three_replicas(seed=len(stage))
    struck: list[int] = []
    replacing(run, lambda: run.followers()[0].node, 4)

    def look() -> None:
        node = run.cluster.leader_of(1)
        status = run.status(run.cluster.nodes[node]) if node is not None else None
        if struck or status is None or not STAGES[stage](status):
            return
        struck.append(run.now_ms)
        hit = run.cluster.nodes[4] if victim == "new member" else run.leader()
        if power:
            hit.power_cut("struck")
        else:
            hit.kill("killed")
        run.cluster.scheduler.after(300 * MS, hit.start)

    run.watch(look, every_ms=1)
    run.run((800, 1800))
    assert struck
    assert run.report.counts["membership changes finished"] == 1
    assert max(run.cluster.roster.latest(1).voters) == 65536


def test_fault_22_the_leader_is_removed() -> None:
    run = four_nodes_three_replicas(seed=3)
    replacing(run, lambda: run.leader().node, 4)
    run.run((800, 2000))
    assert run.report.counts["membership changes finished"] == 1
    assert len(run.elections(800, 3500)) <= 2


def test_fault_22_a_dead_node_is_replaced() -> None:
    run = four_nodes_three_replicas(seed=4)
    dead: list[SimulatedNode] = []

    def strike() -> None:
        dead.append(run.followers()[0])
        dead[0].power_cut("dead")

    run.at(790, strike)
    replacing(run, lambda: dead[0].node, 4)

    def replaced() -> None:
        assert set(run.cluster.roster.latest(1).voters) == {1, 2, 3, 65536} - {dead[0].node}

    run.at(2400, replaced)
    run.run((800, 2000))


@pytest.mark.parametrize("seed", range(3))
def test_fault_23_a_wiped_disk_comes_back_under_a_new_replica_id(seed: int) -> None:
    run = prepare([of_leader(FaultKind.WIPE, 1200, 300)], seed=seed).run((1200, 1500), during=False)
    assert run.report.faults == {"wiped disk": 1}
    assert max(run.cluster.roster.latest(1).voters) >= 65536
    assert len(run.cluster.roster.latest(1).voters) == 3


# --- snapshots ------------------------------------------------------------------------------------------------------


def lagging(
    plan: Sequence[Fault] = (), *, seed: int = 1, profile: Profile | None = None, wire: Wire | None = None
) -> Run:
    """A follower is away until only a snapshot helps it."""
    run = prepare(plan, seed=seed, profile=profile, options=SMALL_SNAPSHOTS, load_ms=3500, clients=5, wire=wire)

    def away() -> None:
        victim = run.followers()[0]
        victim.kill("killed, for long")
        run.at(1700, victim.start)

    run.at(700, away)
    return run


NOTHING_IN_MEMORY = SimulationOptions(
    runtime=replace(
        small_runtime_options(),
        raft=replace(small_runtime_options().raft, unloaded_after_bytes=0, inflight_stored_bytes_max=4096),
        snapshot_log_bytes_min=1 << 30,
    ),
    wal=replace(small_wal_options(), recovered_bytes_max=0, open_copy_bytes_max=0),
)
"""What is applied is read back from the log for whoever needs it, and no snapshot helps."""


@pytest.mark.parametrize(
    ("kind", "amount", "for_ms"),
    [
        (None, 0, 0),
        (FaultKind.KILL, 0, 300),
        (FaultKind.POWER_DURING_IO, 3, 200),
        (FaultKind.SLOW_DISK, 60, 300),
        (FaultKind.TRANSFER, 0, 1),
    ],
    ids=["nothing", "killed", "power", "slow disk", "hand-over"],
)
def test_fault_02_a_follower_far_behind_is_caught_up_from_its_leaders_disk(
    kind: FaultKind | None, amount: int, for_ms: int
) -> None:
    """While load goes on, and whatever becomes of the leader that reads."""
    plan = [of_leader(kind, 1703, for_ms, amount=amount)] if kind is not None else []
    run = prepare(plan, options=NOTHING_IN_MEMORY, load_ms=3500)
    run.at(300, run.propose_steadily)

    def away() -> None:
        victim = run.followers()[0]
        victim.kill("killed, for long")
        run.at(1700, victim.start)

    run.at(600, away)
    run.run((600, 1700))
    assert run.report.counts["entries read back"] > 100
    assert run.report.counts["snapshots sent"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_fault_04_a_power_cut_of_everything_with_nothing_of_the_log_in_memory(seed: int) -> None:
    everybody = fault(FaultKind.RESTART_ALL, 1300, 200, nodes=(1, 2, 3), amount=1)
    run = prepare([everybody], seed=seed, options=NOTHING_IN_MEMORY)
    run.at(300, run.propose_steadily)
    run.run((1300, 1500), during=False)
    assert run.report.counts["entries read back"] > 100, "what was applied again"


@pytest.mark.parametrize("power", [0, 1], ids=["kill", "power"])
def test_fault_24_the_receiver_of_a_snapshot_ends_in_the_middle(power: int) -> None:
    strikes = [fault(FaultKind.RECEIVER, 1000 + i, 100, amount=2 * i + power) for i in range(3)]
    run = lagging(strikes).run((700, 2500))
    assert run.report.faults["receiver struck"] >= 2
    assert run.report.counts["snapshots sent"]


def test_fault_24_a_snapshot_over_a_network_that_loses_doubles_and_reorders() -> None:
    bad = Profile(ordered=False, delay_us=(500, 8 * MS), loss_permille=150, duplicate_permille=500)
    run = lagging(profile=bad).run((700, 2500))
    assert run.report.counts["snapshots sent"]


def test_fault_24_a_transfer_that_is_cut_goes_on() -> None:
    resets = [fault(FaultKind.RESET, at_ms, 1, links=((1, 2), (1, 3), (2, 3))) for at_ms in range(1702, 1760, 6)]
    run = lagging(resets).run((700, 2500))
    assert run.report.counts["snapshots sent"]


def test_fault_25_a_follower_slower_than_compaction_gets_snapshots_and_the_leader_keeps_little() -> None:
    run = prepare(options=SMALL_SNAPSHOTS, load_ms=4000, clients=6)
    options = SMALL_SNAPSHOTS.runtime
    most: list[int] = [0]

    def slow() -> None:
        victim = run.followers()[0]
        victim.disk_lag_us = 250 * MS
        run.at(3800, lambda: setattr(victim, "disk_lag_us", 0))

    def look() -> None:
        node = run.cluster.leader_of(1)
        status = run.status(run.cluster.nodes[node]) if node is not None else None
        if status is not None:
            log = run.cluster.nodes[node or 0].handles[1].core._log  # type: ignore[union-attr]
            most[0] = max(most[0], log.bytes_above(status.first_index - 1))

    run.at(600, slow)
    run.watch(look)
    run.run((600, 3800))
    assert run.report.counts["snapshots sent"]
    state = options.snapshot_log_multiple * 24 * 1024
    kept = options.keep_bytes_max + options.transfer_keep_bytes_max
    assert most[0] <= options.snapshot_log_bytes_min + state + kept + options.raft.uncommitted_bytes_max


# --- workers, and states that are wrong -----------------------------------------------------------------------------


def test_fault_27_a_worker_killed_in_the_middle_of_a_push_has_it_applied_once_or_not_at_all() -> None:
    killed = acknowledged = 0
    for seed in range(5):
        report = train_seed(seed, plan=(), profile=Profile(), size=(3, 1, 3))
        report.raise_if_failed()
        killed += report.counts.get("rank killed", 0)
        acknowledged += report.acknowledged
    assert killed >= 3
    assert acknowledged > 100


def test_fault_31_a_replica_with_a_wrong_state_neither_leads_nor_serves_and_is_rebuilt() -> None:
    """How it is noticed, by digests, `test_shard_digests` shows; this is what becomes of it among faults."""
    run = prepare([of_leader(FaultKind.KILL, 2000, 300)])
    odd: list[SimulatedNode] = []

    def spoil() -> None:
        node = run.followers()[0]
        odd.append(node)
        machine = node.machines[1].inner
        assert isinstance(machine, Ledger)
        machine.lines[0] = (999, 999)
        machine._chain[-1] = bytes(16)
        node.later(0, "is told that its state is odd", lambda: node.handles[1].distrust("another digest"))

    def look() -> None:
        if odd and 1 in odd[0].handles and odd[0].handles[1].status().distrusted:
            status = run.status(odd[0])
            assert status is None or not status.ready_to_serve
            seen.append(run.now_ms)

    seen: list[int] = []
    run.at(1000, spoil)
    run.watch(look)
    run.run((1000, 2000))
    assert seen
    assert not odd[0].handles[1].status().distrusted
