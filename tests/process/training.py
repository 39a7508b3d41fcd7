"""Ranks that train the bundled digits on a cluster, and the bits they must end with.

Owns the workers' progress, read as they write it, and the comparison with the faultless run in plain NumPy, which
shares no code with servers. Must not know: what is done to the cluster meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from paramserver.lab import records
from paramserver.lab.chaos import reference
from paramserver.lab.cluster import Cluster, WorkerOptions

RANKS = 2
SEED = 3
MODEL = "digits"
RUN_TIMEOUT_S = 100.0


class Training:
    """Starts the workers; they train until the model has made `steps` steps."""

    def __init__(self, cluster: Cluster, steps: int, *, network: str = "mlp") -> None:
        self._cluster, self.steps, self._network = cluster, steps, network
        cluster.start_workers(
            WorkerOptions(
                rank=rank,
                ranks=RANKS,
                steps=steps,
                model_name=MODEL,
                seed=SEED,
                device="numpy",
                flags=(f"--model={network}",),
            )
            for rank in range(RANKS)
        )
        self._tails = {rank: records.Tail(worker.record) for rank, worker in cluster.workers.items()}
        self._completed = dict.fromkeys(self._tails, 0)

    def completed(self) -> int:
        """Steps completed by the slowest worker."""
        for rank, tail in self._tails.items():
            for event in tail.read():
                if isinstance(event, records.Step):
                    self._completed[rank] = max(self._completed[rank], event.step + 1)
        return min(self._completed.values())

    def until(self, step: int) -> None:
        self._cluster.wait_for(lambda: self.completed() >= step, f"step {step}", RUN_TIMEOUT_S)

    @contextmanager
    def held(self) -> Iterator[None]:
        """One rank stands still, and the others wait for it: steps are left for what follows."""
        self._cluster.workers[0].pause()
        try:
            yield
        finally:
            self._cluster.workers[0].resume()

    def finish(self) -> None:
        """All workers end well, with the bits of the faultless run."""
        self._cluster.await_workers(RUN_TIMEOUT_S)
        ends = [records.read(worker.record, rank).end for rank, worker in self._cluster.workers.items()]
        expected = reference.whole_digest(SEED, RANKS, self.steps, self._network)
        assert [end and end.digest for end in ends] == [expected] * RANKS
