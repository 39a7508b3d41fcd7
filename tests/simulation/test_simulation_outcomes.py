"""What some faults must come to, measured on simulated clusters with that fault alone: how many leaders, how long
without one or without progress. That nothing is lost, applied twice or read too old is checked in every run anyway."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest

from consensus.runtime.interface import Applied
from consensus.simulation.cluster import Cluster, SimulationOptions
from consensus.simulation.faults import Fault, FaultKind
from consensus.simulation.load import Counting, LedgerLoad
from consensus.simulation.profile import Profile
from consensus.simulation.report import Report
from consensus.simulation.run import run_seed
from consensus.simulation.schedule import MS

FINE = Profile()
TIMEOUT_MS = 300
NODES = (1, 2, 3)
LINKS = tuple((a, b) for a in NODES for b in NODES if a != b)
LOAD_MS = 4000


class Watch:
    """Runs a group on three nodes, and notes when replicas began to serve as leaders and when anything was applied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.led: list[int] = []
        self.applied: list[int] = []
        self._clusters: list[Cluster] = []
        begin, leading, applied = LedgerLoad.begin, Counting.leading, Counting.applied

        def begun(load: LedgerLoad, cluster: Cluster) -> None:
            self._clusters = [cluster]
            begin(load, cluster)

        def led(listener: Counting, term: int) -> None:
            self.led.append(self.now_ms)
            leading(listener, term)

        def noted(listener: Counting, batch: Sequence[Applied]) -> None:
            self.applied.append(self.now_ms)
            applied(listener, batch)

        monkeypatch.setattr(LedgerLoad, "begin", begun)
        monkeypatch.setattr(Counting, "leading", led)
        monkeypatch.setattr(Counting, "applied", noted)

    @property
    def now_ms(self) -> int:
        return self._clusters[0].scheduler.now_us // MS

    def run(self, seed: int, *plan: Fault, profile: Profile = FINE, clients_ms: int = LOAD_MS) -> Report:
        self.led.clear()
        self.applied.clear()
        options = SimulationOptions(load_ms=clients_ms, heal_some=False)
        report = run_seed(seed, plan=plan, profile=profile, size=(3, 1, 3), options=options)
        report.raise_if_failed()
        return report

    def leaders(self, after_ms: int = 0, until_ms: int = LOAD_MS) -> int:
        return sum(after_ms <= when < until_ms for when in self.led)

    def longest_pause_ms(self, after_ms: int, until_ms: int) -> int:
        """Between two moments at which something was applied, wherever."""
        times = [after_ms, *(when for when in self.applied if after_ms <= when < until_ms), until_ms]
        return max(later - earlier for earlier, later in pairwise(times))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.mark.parametrize("seed", range(3))
def test_a_follower_that_dies_again_and_again_costs_no_leader_and_no_pause(watch: Watch, seed: int) -> None:
    """FAULTS 2."""
    kills = [Fault(at_ms=at, kind=FaultKind.KILL, nodes=(3,), for_ms=150) for at in range(1000, 3500, 300)]
    report = watch.run(seed, *kills)
    assert report.faults["kill"] == len(kills)
    assert watch.leaders() == 1
    assert watch.longest_pause_ms(1000, 3500) < TIMEOUT_MS
    assert report.acknowledged > 100


@pytest.mark.parametrize("side", ["both ways", "leader is not heard", "leader hears nothing"])
def test_a_leader_cut_off_is_followed_by_one_other_and_no_more(watch: Watch, side: str) -> None:
    """FAULTS 12 and 13: it steps down by itself; those who still hear it, or whom it hears, don't keep it."""
    links = {
        "both ways": [link for link in LINKS if 1 in link],
        "leader is not heard": [link for link in LINKS if link[0] == 1],
        "leader hears nothing": [link for link in LINKS if link[1] == 1],
    }[side]
    for seed in range(3):
        watch.run(seed, Fault(at_ms=1500, kind=FaultKind.CUT, links=tuple(links), for_ms=1500))
        assert watch.leaders(until_ms=1500) == 1
        assert watch.leaders(1500, 3000) == 1, f"seed {seed}"
        assert watch.longest_pause_ms(1500, 3000) < 5 * TIMEOUT_MS


@pytest.mark.parametrize("pair", [(1, 2), (1, 3), (2, 3)])
def test_two_that_do_not_see_each_other_and_a_third_that_sees_both(watch: Watch, pair: tuple[int, int]) -> None:
    """FAULTS 13: at most one disruption, no term inflation, and work goes on meanwhile."""
    for seed in range(3):
        cut = Fault(at_ms=1500, kind=FaultKind.CUT, links=(pair, pair[::-1]), for_ms=1500)
        report = watch.run(seed, cut)
        assert watch.leaders(1500) <= 1, f"seed {seed}"
        assert report.terms <= 3
        assert watch.longest_pause_ms(1500, 3000) < 4 * TIMEOUT_MS


@pytest.mark.parametrize("seed", range(4))
def test_links_clogged_one_by_one_and_released_in_another_order(watch: Watch, seed: int) -> None:
    """FAULTS 14: bounded leader changes, progress after."""
    source = Random(seed)
    order = source.sample(LINKS, len(LINKS))
    storm = [
        Fault(
            at_ms=1000 + 100 * place,
            kind=FaultKind.CLOG,
            links=(link,),
            amount=2000,
            for_ms=source.randrange(300, 2000),
        )
        for place, link in enumerate(order)
    ]
    report = watch.run(seed, *storm)
    assert report.faults["clog"] == len(LINKS)
    assert watch.leaders() <= 1 + len(LINKS)
    assert report.healed_ms < 10 * TIMEOUT_MS


@pytest.mark.parametrize("seed", range(4))
def test_loss_of_30_duplication_of_50_and_delays_up_to_5_seconds(watch: Watch, seed: int) -> None:
    """FAULTS 15: slower, and no livelock: it goes on within the bad time, and well after it."""
    awful = Profile(
        ordered=False,
        loss_permille=300,
        duplicate_permille=500,
        delay_us=(25 * MS, 125 * MS),
        late_permille=30,
        late_us=(200 * MS, 5000 * MS),
    )
    report = watch.run(seed, profile=awful, clients_ms=8000)
    during = [when for when in watch.applied if 2000 <= when < 8000]
    assert len(during) > 5
    assert report.healed_ms < 10 * TIMEOUT_MS


@pytest.mark.parametrize("ppm", [-300_000, 300_000])
@pytest.mark.parametrize("node", [1, 2])
def test_a_clock_that_runs_a_third_too_fast_or_slow_deposes_nobody(watch: Watch, node: int, ppm: int) -> None:
    """FAULTS 18, for the monotonic clock; the wall clock is not read at all."""
    watch.run(1, Fault(at_ms=1000, kind=FaultKind.CLOCK, nodes=(node,), amount=ppm, for_ms=2500))
    assert watch.leaders() == 1


@pytest.mark.parametrize("kind", [FaultKind.PAUSE, FaultKind.STALL])
def test_a_leader_that_stood_still_costs_one_election(watch: Watch, kind: FaultKind) -> None:
    """FAULTS 17 and 19: those who wait elect another one, and it does not come back as a leader."""
    for seed in range(3):
        watch.run(seed, Fault(at_ms=1500, kind=kind, leader_of=1, for_ms=2000))
        assert watch.leaders(1500) == 1, f"seed {seed}"
        assert watch.longest_pause_ms(1500, 3500) < 5 * TIMEOUT_MS


@pytest.mark.timeout(120)
def test_after_a_restart_of_everything_there_is_a_leader_within_ten_timeouts(watch: Watch) -> None:
    """FAULTS 20, in every one of these seeds."""
    waits = []
    for seed in range(30):
        how = Fault(at_ms=1000, kind=FaultKind.RESTART_ALL, nodes=NODES, amount=seed, for_ms=100)
        watch.run(seed, how, clients_ms=1500)
        waits.append(min(when for when in watch.led if when > 1000) - 1000)
    assert max(waits) < 10 * TIMEOUT_MS, waits
