"""Pulls alone: four readers of one model, from whatever replica their policy chooses, against the leader only.

All data lies in one group where servers can be told so (`--groups 1`): then one node leads all of it. On one machine
three servers share the same cores, so what spreading is worth is told by CPU seconds: a model is served no faster than
its busiest server can, and three machines have a core each for what here shares one.
"""

from __future__ import annotations

import argparse
import inspect
from dataclasses import dataclass
from typing import Any

import paramserver
from benchmarks.pushpull import rows
from benchmarks.pushpull.case import Case
from benchmarks.pushpull.comparing import Found
from benchmarks.pushpull.ours import OurOptions, Ours
from benchmarks.pushpull.system import System, SystemFailed
from benchmarks.pushpull.turns import Effort, interleaved
from paramserver.cli import server as server_command

READERS = 4
MODEL_MB = 64
WRITTEN = 3
"""Steps pushed before anybody reads."""
STEP_TIMEOUT_S = 120.0
LEADER = "leader"
POLICIES = ("least_outstanding", "round_robin", LEADER)


@dataclass(frozen=True, slots=True, kw_only=True)
class PullCase(Case):
    @property
    def step_bytes(self) -> int:
        """Only pulled."""
        return self.model_bytes * self.workers


class Readers(System):
    """Processes that pull from a cluster which runs already; CPU time is of its servers, too."""

    name = "paramserver"
    durability = "fsync"

    def __init__(self, case: Case, cluster: Ours, policy: str) -> None:
        super().__init__(case)
        self.tree = cluster.tree
        self.replicas = cluster.replicas
        self.policy = policy
        self._ours = cluster

    def start(self) -> None:
        for number in range(self.case.workers):
            flags: list[object] = ["--servers", self._ours.cluster.endpoints, "--version", WRITTEN]
            flags += ["--gate", self.gate_file, "--record", self.record_file(number)]
            flags += ["--policy", self.policy] if takes_policy() else []
            self.module(f"reader {number}", "benchmarks.pushpull.reader", *flags)

    def server_pids(self) -> list[int]:
        return self._ours.server_pids()


def takes_policy() -> bool:
    return "pull_policy" in inspect.signature(paramserver.connect).parameters


def run(options: argparse.Namespace, effort: Effort) -> Found:
    found = Found()
    model_mb = 1 if options.quick else MODEL_MB
    case = PullCase(model_mb=model_mb, workers=READERS)
    one_group = any(flag.name == "--groups" for flag in server_command.FLAGS)
    if not one_group:
        found.missing["one group"] = (
            "no --groups in this version: each node leads a share, so the leaders' load is spread"
        )
    ours = OurOptions(replicas=options.replicas, server_flags=("--groups", "1") if one_group else ())
    policies: tuple[str, ...] = POLICIES
    if not takes_policy():
        policies = (LEADER,)
        found.missing["policies"] = "connect() takes no pull_policy in this version: pulls ask the leader first"
    with Ours(Case(model_mb=model_mb, workers=1), ours) as cluster:
        assert isinstance(cluster, Ours)
        cluster.step(WRITTEN, STEP_TIMEOUT_S)
        systems = [Readers(case, cluster, policy) for policy in policies]
        try:
            for system in systems:
                system.start()
            turns = interleaved(systems, effort)
        finally:
            for system in systems:
                system.close()
    for one in turns:
        if not one.turns:
            raise SystemFailed(one.failure)
        assert isinstance(one.system, Readers)
        row = rows.row(one, pulls_only=True, policy=one.system.policy, groups=1 if one_group else None)
        found.add_row(row | machines(row))
    by_policy = dict(zip(policies, turns, strict=True))
    for policy in policies[:-1]:
        value = rows.ratio(by_policy[policy], by_policy[LEADER])
        if value is not None:
            found.ratios[f"pull_{READERS}readers_{policy}_vs_leader"] = value
        bounds = {row["policy"]: row["server_bound_mb_per_s_per_core"] for row in found.rows}
        if bounds.get(policy) and bounds.get(LEADER):
            found.ratios[f"pull_{READERS}readers_{policy}_vs_leader_by_cpu"] = round(bounds[policy] / bounds[LEADER], 3)
    return found


def machines(row: rows.Row) -> dict[str, Any]:
    """What servers on machines of their own would give, by their CPU alone: MB/s for each core that every machine has
    for it."""
    busiest = max(row["server_cpu_s_per_gb"])
    return {"server_bound_mb_per_s_per_core": round(1000 / busiest) if busiest else None}
