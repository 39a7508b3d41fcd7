"""`paramserver launch` with servers: a worker killed in the middle is back with its rank, and not a bit differs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from paramserver.lab.cluster import Cluster

ROOT = Path(__file__).parents[2]
STEPS = 400
TIMEOUT_S = 60


def launched(servers: str, model: str) -> subprocess.Popen[str]:
    words = ["launch", "-n", "2", "--servers", servers, "--", sys.executable, str(ROOT / "examples/embed_launch.py")]
    return subprocess.Popen(
        [sys.executable, "-m", "paramserver", *words, str(STEPS), model],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digests(out: str) -> dict[str, str]:
    """By rank."""
    return dict(re.findall(rf"^\[(\d)\] step {STEPS}, digest ([0-9a-f]+), w\[1\] = (?:1\.0|0\.99)", out, re.MULTILINE))


def test_a_killed_worker_changes_no_bit() -> None:
    with Cluster() as cluster:
        cluster.start()
        with launched(cluster.endpoints, "disturbed") as job:
            try:
                assert job.stdout is not None
                assert job.stderr is not None
                started = job.stderr.readline()
                pids = [int(pid) for pid in re.findall(r"\d+", started.partition("processes")[2])]
                before = ""
                while "[1] step 50\n" not in before:
                    line = job.stdout.readline()
                    assert line, job.stderr.read()
                    before += line
                os.kill(pids[1], signal.SIGKILL)
                # Not communicate(), which would miss what was read ahead.
                out, error = job.stdout.read(), job.stderr.read()
                job.wait(TIMEOUT_S)
            finally:
                job.kill()
        assert job.returncode == 0, error
        assert re.search(r"rank 1 was killed by SIGKILL after [\d.]+ s: restart 1 of 3", error), error

        with launched(cluster.endpoints, "undisturbed") as job:
            try:
                reference, error = job.communicate(timeout=TIMEOUT_S)
            finally:
                job.kill()
        assert job.returncode == 0, error
    assert set(digests(reference)) == {"0", "1"}, reference
    assert digests(out) == digests(reference), out
    assert len(set(digests(out).values())) == 1
