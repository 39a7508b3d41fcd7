"""Followers that have fallen far behind while something fails (FAULTS 2, 4, 8, 24, 25), and what it may cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from consensus.core.interface import NodeId
from consensus.simulation.cluster import SimulationOptions, small_runtime_options, small_wal_options
from consensus.simulation.faults import FaultKind
from consensus.simulation.profile import Profile
from consensus.simulation.schedule import MS
from consensus.transport.interface import Envelope, SnapshotChunk
from tests.simulation.single_fault import (
    SMALL_SNAPSHOTS,
    fault,
    follower_away,
    lagging,
    of_leader,
    prepare,
)

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
    follower_away(run, 600)
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
