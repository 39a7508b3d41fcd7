"""A CNN on a cluster that loses its leader and a worker, against the same training in plain NumPy, bit by bit."""

from pathlib import Path

from paramserver.lab import records
from paramserver.lab.chaos import reference
from paramserver.lab.cluster import Cluster
from paramserver.lab.final import find_model, read_final
from paramserver.wire.checksum import digest
from tests.process.small import SMALL
from tests.process.training import MODEL, RANKS, SEED, Training

STEPS = 40


def test_a_killed_leader_and_a_killed_worker_leave_the_bits_of_a_cnn_as_they_are(tmp_path: Path) -> None:
    """Batches, augmentation and convolutions are repeated exactly by the worker that comes back (RULES S7)."""
    with Cluster(folder=tmp_path, options=SMALL) as cluster:
        training = Training(cluster, STEPS, network="cnn")
        training.until(10)
        model = find_model(cluster.statuses(), MODEL)
        killed = cluster.leader_of(min(shard.group for shard in model.shards if shard.blocks))
        cluster.kill(killed)
        training.until(20)
        cluster.workers[1].kill()
        cluster.workers[1].start()
        cluster.start_server(killed)
        cluster.await_workers(60.0)
        ends = [records.read(worker.record, rank).end for rank, worker in cluster.workers.items()]
        final = block_digests(cluster)
    assert len({end.digest for end in ends if end is not None}) == 1
    assert None not in ends
    expected = reference.digests(SEED, RANKS, [0, STEPS], network="cnn")
    assert final == dict.fromkeys((1, 2, 3), expected[STEPS])
    assert expected[0] != expected[STEPS]


def block_digests(cluster: Cluster) -> dict[int, tuple[str, ...]]:
    """Node -> digest of each block."""
    found: dict[int, dict[int, str]] = {}
    for key, copies in read_final(cluster, MODEL, STEPS).blocks.items():
        for node, copy in copies.items():
            found.setdefault(node, {})[key.block] = digest([copy.weights]).hex()
    return {node: tuple(one for _, one in sorted(blocks.items())) for node, blocks in found.items()}
