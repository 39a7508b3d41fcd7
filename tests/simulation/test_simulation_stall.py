"""A disk that takes seconds in the simulator: noticed, led by others, taken up again (HAZARDS 16, FAULTS 11)."""

import pytest

from consensus.core.interface import Role
from consensus.core.raft import RaftCore
from consensus.simulation.faults import Fault, FaultKind
from consensus.simulation.run import run_seed


def test_a_leader_on_a_slow_disk_is_told_hands_over_and_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[bool, bool]] = []
    """(stalled, it still led after it heard)."""
    storage = RaftCore.storage

    def hear(self: RaftCore, *, stalled: bool) -> None:
        storage(self, stalled=stalled)
        told.append((stalled, self.status().role is Role.LEADER))

    monkeypatch.setattr(RaftCore, "storage", hear)
    plan = [Fault(at_ms=2000, kind=FaultKind.SLOW_DISK, leader_of=1, amount=2500, for_ms=4000)]
    for seed in range(3):
        told.clear()
        report = run_seed(seed, plan=plan, size=(3, 1, 3))
        report.raise_if_failed()
        assert any(stalled for stalled, _ in told), f"seed {seed}: nobody noticed"
        assert not all(stalled for stalled, _ in told), f"seed {seed}: never over"
        assert report.terms >= 2, f"seed {seed}: the stalled leader stayed"
