"""A look at every replica of both models: what it holds of the count, and the digits' digests.

Owns asking each replica for itself, for a version that was acknowledged. Invariant: nothing is taken from one replica
on behalf of another; one that can't answer is a problem, not a gap. Must not know: faults, what the answers mean.
"""

from __future__ import annotations

import time

from paramserver.lab import status
from paramserver.lab.chaos import counting, raw
from paramserver.lab.chaos.load import COUNTING, DIGITS, Load
from paramserver.lab.chaos.observed import Counted, Digests
from paramserver.lab.cluster import Cluster
from paramserver.wire.checksum import digest

CALL_S = 10.0


class Replicas:
    """Of one cluster; models are described once and again when groups moved."""

    def __init__(self, cluster: Cluster, load: Load) -> None:
        self._cluster = cluster
        self._load = load
        self._nodes = raw.Nodes(cluster.addresses)
        self._models: dict[str, raw.Model] = {}

    def close(self) -> None:
        self._nodes.close()

    def look(self) -> list[str]:
        """Add to what was observed; returns what could not be seen."""
        self._nodes.addresses = dict(self._cluster.addresses)
        seen = self._load.look()
        counted = [worker for worker in seen.workers if worker.load == COUNTING]
        acknowledged, _ = counting.bounds([one.steps for one in counted], [one.pushed for one in counted])
        completed = max((one.steps for one in seen.workers if one.load == DIGITS), default=0)
        counts, count_problems = self._all(counting.MODEL, acknowledged[0])
        found, digit_problems = self._all(DIGITS, completed)
        now = time.monotonic()
        seen = self._load.look()
        _, attempted = counting.bounds([one.steps for one in counted], [one.pushed for one in counted])
        for node, blocks in counts.items():
            total = counting.check_all([values for _, values in blocks.values()], acknowledged, attempted)
            absent = sum(version < acknowledged[0] for version, _ in blocks.values())
            seen.replicas.append(Counted(now, max(total.missing, absent), total.extra, node))
        for node, blocks in found.items():
            some = sorted(blocks)
            versions = tuple(blocks[block][0] for block in some)
            hashes = tuple(digest([blocks[block][1].tobytes()]).hex() for block in some)
            seen.digests.append(Digests(now, versions, hashes, node, tuple(some)))
        return [*count_problems, *digit_problems]

    def _all(self, name: str, least: int) -> tuple[dict[int, dict[int, tuple[int, counting.Array]]], list[str]]:
        """Node -> block -> (version, weights), of all that hold a group of the model."""
        try:
            model = self._model(name)
        except raw.Failed as failed:
            return {}, [f"model {name}: {failed}"]
        found: dict[int, dict[int, tuple[int, counting.Array]]] = {}
        places, problems = self._places(model)
        for node, group in places:
            for again in (False, True):
                try:
                    blocks = model.pull(node, group, CALL_S, min_version=least)
                except raw.Failed as failed:
                    if again or failed.code not in ("FAILED_PRECONDITION", "UNAVAILABLE", "NOT_FOUND"):
                        problems.append(f"node {node} did not serve version {least} of {name}, group {group}: {failed}")
                        break
                    model.describe()
                else:
                    found.setdefault(node, {}).update(blocks)
                    break
        return found, problems

    def _model(self, name: str) -> raw.Model:
        if name not in self._models:
            self._models[name] = raw.Model(self._nodes, name)
        return self._models[name]

    def _places(self, model: raw.Model) -> tuple[list[tuple[int, int]], list[str]]:
        """(node, group) of every voter, and the groups whose voters nobody could tell."""
        answers = self._cluster.statuses()
        found, problems = [], []
        for group in model.groups:
            leader = status.leader_of(answers, group)
            state = leader.group(group) if leader is not None else None
            if state is None:
                problems.append(f"the replicas of group {group}: nobody said that it leads it")
                continue
            found += [(member.node, group) for member in state.members]
        return [(node, group) for node, group in found if node in self._cluster.addresses], problems
