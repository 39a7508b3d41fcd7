"""Training on a simulated cluster: shards behind real consensus, ranks that retry, crash and come back.

Whatever happens, every version of every block that a rank is given, and the final state on every replica, has the bits
of a plain numpy run without servers. A failing seed prints itself, its faults and its trace;
`paramserver.lab.simulation.run_seed(seed)` brings it back.
"""

from collections import Counter

import pytest

from consensus.simulation.faults import Fault, FaultKind
from consensus.simulation.profile import Profile
from consensus.simulation.schedule import MS
from paramserver.lab.simulation import reference, run_seed

MET = (
    "kill",
    "power cut",
    "rank killed",
    "rank: DUPLICATE",
    "rank: NOT_LEADER",
    "rank: VIEW_CHANGED",
    "rank: pulled",
    "pushes repeated",
    "sums dropped",
    "streams parked",
    "snapshots written",
    "snapshots sent",
    "sums logged in BF16",
    "sums logged in FP16",
    "gradients in BF16",
    "gradients in FP16",
    "weights in BF16",
    "weights in FP16",
)


@pytest.mark.timeout(300)
def test_seeds_break_nothing_and_meet_what_they_are_for() -> None:
    """A run that met no fault, or did nothing, proves nothing."""
    counts: Counter[str] = Counter()
    acknowledged = 0
    for seed in range(32):
        report = run_seed(seed)
        report.raise_if_failed()
        counts.update(report.counts)
        counts.update(report.faults)
        acknowledged += report.acknowledged
    assert acknowledged > 1500
    assert not [what for what in MET if not counts[what]], counts


@pytest.mark.parametrize("what", ["sums logged in BF16", "gradients in BF16", "weights in BF16"])
def test_one_rounding_more_or_less_would_be_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference run leaves out what the servers, or a rank, do."""
    seed = {"sums logged in BF16": 27, "gradients in BF16": 4, "weights in BF16": 8}[what]
    right = run_seed(seed)
    right.raise_if_failed()
    assert right.counts[what]
    monkeypatch.setattr(reference, "rounded", lambda _codec, values: values)
    assert "other bits" in str(run_seed(seed).failure)


def test_a_step_sent_again_counts_once() -> None:
    """HAZARDS 31: the log takes so long that ranks lose patience and send again what is on its way; leaders go.
    What they don't know the outcome of is neither lost nor applied twice."""
    slow_log = Profile(sync_us=(20 * MS, 150 * MS), delay_us=(500, 5 * MS))
    kills = tuple(
        Fault(at_ms=at_ms, kind=FaultKind.KILL, leader_of=1 + at_ms // 1000 % 2, for_ms=300)
        for at_ms in range(1500, 5000, 500)
    )
    repeated = 0
    for seed in range(8):
        report = run_seed(seed, profile=slow_log, plan=kills, size=(3, 2, 3))
        report.raise_if_failed()
        repeated += report.counts["pushes repeated"]
    assert repeated > 10


def test_a_seed_replays_exactly() -> None:
    assert run_seed(7) == run_seed(7)
