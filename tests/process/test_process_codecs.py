"""bf16 and fp16 on real processes: a leader is killed in the middle, and the bits are those of plain numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paramserver
from paramserver.lab.cluster import Cluster
from paramserver.lab.simulation.reference import rounded
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.v1 import paramserver_pb2_grpc as services
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import Codec, decode
from tests.process.raw_client import Client
from tests.process.small import SMALL

ELEMENTS, STEPS, KILL_AT, RATE = 40_000, 8, 4, np.float32(0.25)
PUSH = (Codec.FP16, Codec.BF16)
"""By rank; weights come back to both in bf16, and sums are logged in bf16."""


def gradient(rank: int, step: int, weights: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng((rank, step)).standard_normal(ELEMENTS, dtype=np.float32)
    return weights * np.float32(0.5) + noise


@pytest.mark.timeout(120)
def test_a_run_whose_leader_is_killed_has_the_bits_of_plain_numpy_on_every_replica(tmp_path: Path) -> None:
    initial = np.random.default_rng(7).standard_normal(ELEMENTS, dtype=np.float32)
    kept = initial
    with Cluster(3, folder=tmp_path, options=SMALL) as cluster:
        cluster.await_leaders(range(4))
        addresses = list(cluster.addresses.values())
        with paramserver.connect(addresses) as one, paramserver.connect(addresses) as other:
            ranks = [
                client.model(
                    "m",
                    {"w": (ELEMENTS,)},
                    optimizer=paramserver.sgd(float(RATE)),
                    ranks=2,
                    rank=rank,
                    initial={"w": initial},
                    block_bytes=16384,
                    codec=PUSH[rank],
                    weights_codec="bf16",
                    log_codec="bf16",
                )
                for rank, client in enumerate((one, other))
            ]
            weights = [rank.pull() for rank in ranks]
            killed = 0
            for step in range(STEPS):
                seen = rounded(Codec.BF16, kept)
                assert [got.flat.tobytes() for got in weights] == [seen.tobytes()] * 2, f"weights of step {step}"
                gradients = [gradient(number, step, got["w"]) for number, got in enumerate(weights)]
                futures = [rank.push_pull({"w": made}) for rank, made in zip(ranks, gradients, strict=True)]
                if step == KILL_AT:
                    killed = cluster.leader_of(1)
                    cluster.kill(killed)
                weights = [future.result() for future in futures]
                total = rounded(PUSH[0], gradients[0]) + rounded(PUSH[1], gradients[1])
                kept = kept - RATE * (rounded(Codec.BF16, total) / np.float32(2))
            cluster.start_server(killed)
            reader = one.model("m")
            newest = reader.pull()
            assert (newest.version, newest.flat.tobytes()) == (STEPS, kept.tobytes())
            assert reader.pull(if_newer_than=STEPS) is None
            assert reader.pull(if_newer_than=STEPS - 1).flat.tobytes() == kept.tobytes()
        with Client(cluster, "reader") as raw:
            raw.open_session()
            model = raw.call("DescribeModel", pb.DescribeModelRequest(name="m"))
            for node in cluster.addresses:
                for codec in Codec:
                    assert _pulled(cluster, raw, model, node, codec).tobytes() == rounded(codec, kept).tobytes()


def _pulled(cluster: Cluster, raw: Client, model: Any, node: int, codec: Codec) -> np.ndarray:
    """All blocks of the last version at that node; it waits until that version is there."""
    stub: Any = services.DataStub(raw.channel(cluster.addresses[node]))
    parts: dict[int, np.ndarray] = {}
    for shard in model.shards:
        request = pb.PullRequest(
            cluster=raw.cluster_id,
            group=shard.group,
            model=model.model,
            generation=model.generation,
            placement_epoch=model.placement_epoch,
            version=STEPS,
            codec=int(codec),
        )
        for frame in stub.Pull(request, timeout=20):
            assert (frame.header.codec, frame.header.crc) == (codec, crc32c(frame.payload))
            parts[frame.header.block] = decode(codec, frame.payload, len(frame.payload) // (4 if codec == 1 else 2))
    return np.concatenate([parts[block] for block in sorted(parts)])
