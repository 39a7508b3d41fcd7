"""What the documentation shows is run: the blocks of README and docs/embedding.md, and the files of examples/."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from paramserver.lab.cluster import Cluster

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
DOCUMENTED = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        running.start()
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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("embed_asyncio.py", r"rank 0: version 150, digest ([0-9a-f]+), b = (1\.0|0\.99).*\nrank 1: .* digest \1, b"),
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
