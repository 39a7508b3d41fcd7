"""Processes forked while a client works, such as those that load batches, do their work and end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from paramserver.lab.cluster import Cluster

ROOT = Path(__file__).parents[2]
ROUNDS, CHILDREN = 3, 2
SCRIPT = f"""
import gc, multiprocessing, sys
import numpy as np
import paramserver

def child(queue):
    for _ in range(50):
        queue.put(float(np.ones(1000).sum()))
    gc.collect()

with paramserver.connect(sys.argv[1]) as client:
    zeros = {{"w": np.zeros(100_000, np.float32)}}
    model = client.model("forks", zeros, optimizer=paramserver.sgd(0.1), rank=0, initial=zeros)
    fork = multiprocessing.get_context("fork")
    codes = []
    for _ in range({ROUNDS}):
        queue = fork.Queue()
        children = [fork.Process(target=child, args=(queue,)) for _ in range({CHILDREN})]
        future = model.push_pull(zeros)
        for one in children:
            one.start()
        for _ in range({CHILDREN} * 50):
            queue.get(timeout=15)
        future.result()
        model.push_pull(zeros).result()
        for one in children:
            one.join(15)
            codes.append(one.exitcode)
    print(codes, model.step)
"""


def test_forked_children_do_their_work_and_the_client_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "forks.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    with Cluster() as cluster:
        cluster.start()
        ran = subprocess.run(
            [sys.executable, str(script), cluster.endpoints],
            env={**environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=90,
        )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"{[0] * ROUNDS * CHILDREN} {2 * ROUNDS}\n"
    assert "fork" not in ran.stderr
