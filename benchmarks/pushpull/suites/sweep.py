"""How a step's cost grows: over workers, over model sizes, over groups, and with delay between nodes.

Rows carry `sweep`, and what was varied. Torch RPC runs beside where it is asked for, over workers and sizes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks.pushpull import rows
from benchmarks.pushpull.case import Case
from benchmarks.pushpull.comparing import Found, compare, measured
from benchmarks.pushpull.links import OursThroughLinks
from benchmarks.pushpull.ours import OurOptions, Ours
from benchmarks.pushpull.trees import available_bytes
from benchmarks.pushpull.turns import Effort
from paramserver.cli import server as server_command

MODEL_MB = 64
WORKERS = (1, 2, 4, 8)
SIZES_MB = (1, 4, 16, 64, 256, 512)
GROUPS = (1, 2, 4, 8, 16)
DELAYS_MS = (0.0, 0.5, 2.0, 20.0)
DELAY_MODEL_MB = 16
LOAD_SHARE = 8
"""Models that a worker of ours and the peers beside take in memory, about."""
BESIDE = ("torch-rpc",)


def run(options: argparse.Namespace, effort: Effort) -> Found:
    found = Found()
    less = replace(effort, rounds=min(effort.rounds, 3))
    for name in options.parts or PARTS:
        for part in PARTS[name](options, less):
            found.add(part)
    return found


def over_workers(options: argparse.Namespace, effort: Effort) -> Iterator[Found]:
    for workers in (1, 2) if options.quick else WORKERS:
        case = Case(model_mb=1 if options.quick else MODEL_MB, workers=workers)
        yield beside(case, options, effort, sweep="workers")


def over_sizes(options: argparse.Namespace, effort: Effort) -> Iterator[Found]:
    """A size that would not fit into memory, going by what servers held at the size before, is named instead."""
    held_mb = 0.0
    for model_mb in (1,) if options.quick else SIZES_MB:
        case = Case(model_mb=model_mb, workers=1)
        need, room = options.replicas * held_mb * model_mb * 1e6 + LOAD_SHARE * case.model_bytes, available_bytes()
        if need > room:
            why = f"it would need about {need / 1e9:.0f} GB of memory, {room / 1e9:.0f} GB are available"
            yield Found(missing={f"sizes {case.name}": why})
            continue
        found = beside(case, options, effort, sweep="sizes")
        held_mb = found.rows[0]["server_peak_mb"] / model_mb
        yield found


def beside(case: Case, options: argparse.Namespace, effort: Effort, sweep: str) -> Found:
    peers = [one for one in options.peers if one in BESIDE]
    found = compare(case, OurOptions(replicas=options.replicas), peers=peers, effort=effort)
    found.rows = [{**row, "sweep": sweep} for row in found.rows]
    found.ratios = {f"{sweep}_{name}": value for name, value in found.ratios.items()}
    return found


def over_groups(options: argparse.Namespace, effort: Effort) -> Iterator[Found]:
    if not any(flag.name == "--groups" for flag in server_command.FLAGS):
        yield Found(missing={"groups": "`paramserver server` takes no --groups in this version"})
        return
    case = Case(model_mb=1 if options.quick else MODEL_MB, workers=2)
    for groups in (1,) if options.quick else GROUPS:
        ours = OurOptions(replicas=options.replicas, server_flags=("--groups", str(groups)))
        found = Found()
        found.add_row(measured(Ours(case, ours), effort, sweep="groups", groups=groups))
        yield found


def over_delays(options: argparse.Namespace, effort: Effort) -> Iterator[Found]:
    """The row without delay goes through the same links: what they cost by themselves."""
    case = Case(model_mb=1 if options.quick else DELAY_MODEL_MB, workers=2)
    for delay_ms in (0.5,) if options.quick else DELAYS_MS:
        found = Found()
        system = OursThroughLinks(case, OurOptions(replicas=options.replicas), delay_ms=delay_ms)
        found.add_row(measured(system, effort, sweep="delay", delay_ms=delay_ms))
        yield found


PARTS: dict[str, Callable[[argparse.Namespace, Effort], Iterator[Found]]] = {
    "workers": over_workers,
    "sizes": over_sizes,
    "groups": over_groups,
    "delay": over_delays,
}


def columns(found: list[rows.Row], sweep: str) -> list[rows.Row]:
    """The rows of one sweep."""
    return [row for row in found if row.get("sweep") == sweep]
