"""A seed decides everything: the same one gives the same trace, in any process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from consensus.core.raft.durability import Durability
from consensus.simulation.errors import Violated
from consensus.simulation.run import run_seed
from paramserver.lab.simulation import run_seed as train_seed
from paramserver.lab.simulation.system import run_system_seed

ROOT = Path(__file__).resolve().parents[2]
CODE = """
from consensus.simulation.run import run_seed
from paramserver.lab.simulation import run_seed as train_seed
from paramserver.lab.simulation.system import run_system_seed

print(run_seed(3).trace_hash, run_seed(5).trace_hash, train_seed(7).trace_hash, run_system_seed(3).trace_hash)
"""


def test_a_seed_replays_exactly() -> None:
    assert run_seed(3) == run_seed(3)
    assert run_seed(3).trace_hash != run_seed(4).trace_hash


def test_hash_seeds_of_the_process_change_nothing() -> None:
    hashes = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        )
        hashes.append(done.stdout)
    assert hashes[0] == hashes[1]
    here = [run_seed(3), run_seed(5), train_seed(7), run_system_seed(3)]
    assert hashes[0].split() == [report.trace_hash for report in here]


def test_a_failure_shows_seed_faults_and_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's vote is durable any more: some replica votes twice in a term, or comes back in an earlier one."""
    monkeypatch.setattr(Durability, "issue_hard_state", lambda self, number, *, commit_hint: None)
    monkeypatch.setattr(Durability, "hard_state_due", lambda self: False)
    failed = next(report for report in map(run_seed, range(20)) if report.failure.startswith("Violated: group"))
    text = failed.text()
    assert f"seed {failed.seed}: Violated: group" in text
    assert failed.plan
    assert all(fault in text for fault in failed.plan)
    assert "AppendRequest t" in text
    assert "starts life " in text
    with pytest.raises(Violated, match=failed.trace_hash):
        failed.raise_if_failed()
