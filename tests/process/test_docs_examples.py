"""What the documentation shows is run: the blocks of README and docs/embedding.md, and the files of examples/."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paramserver.lab.cluster import Cluster
from tests.process.small import SMALL

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
LAUNCHED_STEPS = 200
DOCUMENTED = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(options=SMALL) as running:
        yield running


def blocks(name: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize("page", ["README.md", "docs/embedding.md"])
def test_blocks_run(page: str, cluster: Cluster, tmp_path: Path) -> None:
    found = blocks(page)
    assert found, f"{page} shows no Python any more"
    for block in found:
        assert DOCUMENTED in block
        ran = subprocess.run(
            [sys.executable, "-c", block.replace(DOCUMENTED, cluster.endpoints)],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert ran.returncode == 0, ran.stderr


def test_example_with_two_ranks(cluster: Cluster, tmp_path: Path) -> None:
    """Both ranks end with the same bits, near the line that the data lie on."""
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "examples/embed_numpy.py"), cluster.endpoints, str(rank), "150"],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [rank.communicate(timeout=TIMEOUT_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    digests = set()
    for rank, (out, error) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, error
        digests.add(re.search(r"digest ([0-9a-f]+), b = (1\.0|0\.99)", out).group(1))
    assert len(digests) == 1


def launched(servers: str, model: str) -> subprocess.Popen[str]:
    words = ["launch", "-n", "2", "--servers", servers, "--", sys.executable, str(ROOT / "examples/embed_launch.py")]
    return subprocess.Popen(
        [sys.executable, "-m", "paramserver", *words, str(LAUNCHED_STEPS), model],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digests(out: str) -> dict[str, str]:
    """By rank."""
    words = rf"^\[(\d)\] step {LAUNCHED_STEPS}, digest ([0-9a-f]+), w\[1\] = (?:1\.0|0\.99)"
    return dict(re.findall(words, out, re.MULTILINE))


def test_a_launched_worker_that_is_killed_changes_no_bit(cluster: Cluster) -> None:
    """It is started again by the launcher, and takes its rank back at once."""
    with launched(cluster.endpoints, "disturbed") as job:
        try:
            assert job.stdout is not None
            assert job.stderr is not None
            pids = [int(pid) for pid in re.findall(r"\d+", job.stderr.readline().partition("processes")[2])]
            while (line := job.stdout.readline()) != "[1] step 50\n":
                assert line, job.stderr.read()
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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("embed_asyncio.py", r"rank 0: version 150, digest ([0-9a-f]+), b = (1\.0|0\.99).*\nrank 1: .* digest \1, b"),
        ("embed_cupy.py", r"numpy: step 200, loss 1\.\d+ -> 0\.[01]\d+"),
        ("embed_accumulate.py", r"step 150, b = (1\.0|0\.99)"),
    ],
)
def test_example_in_one_program(name: str, words: str, cluster: Cluster, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), cluster.endpoints],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(words, ran.stdout), ran.stdout
