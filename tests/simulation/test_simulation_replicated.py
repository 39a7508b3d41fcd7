"""Durability `replicated` (RULES W7, W8): what a majority wrote is acknowledged before it is synced. Any number of
processes may be killed; machines stop by minorities, and come back forgetful until their groups filled them again."""

from dataclasses import replace

import pytest

from consensus.simulation.case import draw_case, draw_replicated
from consensus.simulation.cluster import Cluster, SimulationOptions
from consensus.simulation.faults import Fault, FaultKind
from consensus.simulation.node import SimulatedNode
from consensus.simulation.report import Report
from consensus.simulation.run import run_case, run_seed
from consensus.storage.interface import Recovery

OPTIONS = SimulationOptions(replicated=True, load_ms=4000)


def run(seed: int, plan: list[Fault], size: tuple[int, int, int] = (3, 1, 3)) -> Report:
    return run_seed(seed, plan=plan, size=size, options=OPTIONS)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nodes that found at a start that they may have forgotten something, once a group."""
    nodes: list[int] = []
    recovered = Cluster.recovered

    def look(self: Cluster, node: SimulatedNode, recovery: Recovery) -> None:
        recovered(self, node, recovery)
        nodes.extend(node.node for group in recovery.groups.values() if group.forgetful)

    monkeypatch.setattr(Cluster, "recovered", look)
    return nodes


def test_all_processes_killed_at_once_forget_nothing(forgetful: list[int]) -> None:
    kills = [
        Fault(at_ms=at_ms, kind=FaultKind.KILL, nodes=(1, 2, 3), for_ms=100) for at_ms in (700, 1300, 1900, 2500, 3100)
    ]
    for seed in range(4):
        report = run(seed, kills)
        report.raise_if_failed()
        assert report.faults["kill"] == 5
    assert not forgetful


def test_a_stopped_machine_is_filled_again_before_it_counts(forgetful: list[int]) -> None:
    for seed in range(6):
        run(seed, leaders_stop()).raise_if_failed()
    assert len(forgetful) >= 6


def test_one_that_does_not_know_it_forgot_breaks_promises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consensus.storage.lifemark.forgotten", lambda filesystem, folder: "")
    assert any(not run(seed, leaders_stop()).ok for seed in range(20, 40))


@pytest.mark.parametrize("seed", [seed for seed in range(60) if draw_replicated(seed)])
def test_drawn_faults_break_no_promise(seed: int) -> None:
    case = draw_case(seed)
    assert case.options.replicated
    run_case(replace(case, options=replace(case.options, load_ms=2500))).raise_if_failed()


def leaders_stop() -> list[Fault]:
    """Power cuts of leaders, soon after they were elected too, and others that are killed beside them."""
    plan = [Fault(at_ms=at_ms, kind=FaultKind.POWER, leader_of=1, for_ms=60) for at_ms in range(600, 3800, 400)]
    plan += [Fault(at_ms=at_ms, kind=FaultKind.KILL, leader_of=1, for_ms=30) for at_ms in range(700, 3800, 400)]
    return sorted(plan, key=lambda fault: fault.at_ms)
