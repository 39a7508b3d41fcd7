"""The digits' faultless run, without servers: `python -m paramserver.lab.chaos.reference`.

Owns what every block of the bundled training must hold after each step: the model's own gradients, and the plain NumPy
training that simulations are held against for sums and updates, which shares no code with servers. A process of its own
(`digests`), because the bits of a matrix product depend on how many threads share it, and that is settled before NumPy
is imported: one, as in `paramserver worker`.

Standard input: {"seed", "ranks", "network", "versions": [...]}; standard output: {version: {"whole": digest, "blocks":
[digest of each]}}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from paramserver.lab.errors import LabError

ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
S_PER_STEP_MAX = 0.05


def digests(seed: int, ranks: int, versions: Iterable[int], network: str = "mlp") -> Mapping[int, tuple[str, ...]]:
    """Version -> xxh3-128 of each block's weights. `network`: as in `paramserver worker --model`."""
    found = _computed(seed, ranks, set(versions), network)
    return {version: tuple(one["blocks"]) for version, one in found.items()}


def whole_digest(seed: int, ranks: int, version: int, network: str = "mlp") -> str:
    """xxh3-128 of all weights, as workers record it at their end."""
    return str(_computed(seed, ranks, {version}, network)[version]["whole"])


def _computed(seed: int, ranks: int, versions: set[int], network: str) -> dict[int, dict[str, Any]]:
    if not versions:
        return {}
    done = subprocess.run(
        [sys.executable, "-m", "paramserver.lab.chaos.reference"],
        input=json.dumps({"seed": seed, "ranks": ranks, "network": network, "versions": sorted(versions)}),
        capture_output=True,
        text=True,
        env={**os.environ, **ONE_THREAD},
        timeout=60.0 + S_PER_STEP_MAX * max(versions),
        check=False,
    )
    if done.returncode != 0:
        raise LabError("the faultless run could not be computed", done.stderr.strip()[-500:])
    return {int(version): found for version, found in json.loads(done.stdout).items()}


def compute(seed: int, ranks: int, versions: set[int], name: str) -> dict[int, dict[str, Any]]:
    from dataclasses import replace

    import numpy as np

    from paramserver.lab.simulation.reference import Block, tree_sum
    from paramserver.wire.checksum import digest
    from paramserver.wire.layout import Layout
    from worker.reference.config import TrainConfig, parse_optimizer

    config = TrainConfig(
        servers="127.0.0.1:1", ranks=ranks, seed=seed, network=name, optimizer=parse_optimizer("adam", name)
    )
    spec, network, data = config.spec(), config.build(), config.load()
    batches = [replace(config, rank=rank).batches(data) for rank in range(ranks)]
    layout = Layout(spec)
    places = [layout.block_slice(block) for block in range(layout.blocks)]
    weights = layout.flatten(network.initial(seed))
    blocks = [Block(spec.optimizer, weights[place]) for place in places]
    found = {}
    for version in range(max(versions) + 1):
        if version in versions:
            blocks_found = [digest([weights[place].data.cast("B")]).hex() for place in places]
            found[version] = {"whole": digest([weights.data.cast("B")]).hex(), "blocks": blocks_found}
        gradients = []
        for rank in range(ranks):
            batch = batches[rank].make(version)
            _, gradient = network.loss_and_gradient(layout.unflatten(weights), batch.images, batch.labels)
            gradients.append(layout.flatten(gradient))
        total = tree_sum(gradients)
        assert total is not None
        mean = total / np.float32(ranks)
        after = weights.copy()
        for place, block in zip(places, blocks, strict=True):
            after[place] = block.update(weights[place], mean[place])
        weights = after
    return found


def main() -> None:
    asked = json.load(sys.stdin)
    json.dump(compute(asked["seed"], asked["ranks"], set(asked["versions"]), asked["network"]), sys.stdout)


if __name__ == "__main__":
    main()
