"""One generation of the simulated model: what its bits must be, and how far its ranks have seen it go.

Owns the reference run of that generation, the changes of the learning rate that group 0 settled for it, and when the
end of each of its steps was first seen. A generation that was loaded goes on from the run that its file was saved of.
Must not know: workers' processes, servers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping

from consensus.simulation.cluster import Cluster
from consensus.simulation.errors import Violated
from paramserver.catalogue.state import Model, RateChange, RateStage
from paramserver.lab.simulation.reference import Training


class Course:
    def __init__(self, cluster: Cluster, model: Model, training: Training) -> None:
        self.cluster = cluster
        self.model = model.model
        self.training = training
        self.goal: int | None = None
        """Where its ranks rest; None: they go on and on."""
        self.first = model.loaded.step if model.loaded is not None else 0
        self.steps = self.first
        """The end of so many steps was seen by some rank."""
        self._seen_at_us: list[int] = [0] * (self.first + 1)
        """[steps]: when a rank first saw the end of that many."""
        self._settled = {one.number: one for one in model.rates if one.stage is RateStage.DONE}
        training.rate_at = self.rate_at

    @property
    def settled(self) -> Mapping[int, RateChange]:
        """Changes of the learning rate whose step is final, by number."""
        return self._settled

    def decided(self, model: Model) -> None:
        """As group 0 has it now, on some replica."""
        for change in model.rates:
            if change.stage is RateStage.HOLDING:
                continue
            known = self._settled.get(change.number)
            if known is None:
                if change.step < self.training.computed:
                    raise Violated(f"{change} was settled after the step was done somewhere")
                self._settled[change.number] = change
            elif (known.step, known.learning_rate) != (change.step, change.learning_rate):
                raise Violated(f"one replica of group 0 settled {known}, another one {change}")

    def rate_at(self, step: int) -> float | None:
        """By the changes that are settled: the last one of the latest step up to this one."""
        begun = [change for change in self._settled.values() if change.step <= step]
        return max(begun, key=lambda one: (one.step, one.number)).learning_rate if begun else None

    def step_done(self, rank: int, step: int) -> None:
        self.steps = max(self.steps, step)
        while len(self._seen_at_us) <= self.steps:
            self._seen_at_us.append(self.cluster.scheduler.now_us)
        self.cluster.trace.add(f"rank {rank}", f"has version {step} of everything")

    def steps_seen(self, at_us: int) -> int:
        """The end of so many steps had been seen by then."""
        return max(bisect_right(self._seen_at_us, at_us) - 1, self.first)
