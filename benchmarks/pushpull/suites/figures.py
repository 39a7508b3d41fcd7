"""Ours against peers and against one replica: the cases that are asked for, or those of the documentation's table."""

from __future__ import annotations

import argparse

from benchmarks.pushpull.case import Case
from benchmarks.pushpull.comparing import Found, compare
from benchmarks.pushpull.ours import OurOptions
from benchmarks.pushpull.turns import Effort

TABLE: tuple[tuple[Case, tuple[str, ...] | None, bool], ...] = (
    (Case(model_mb=64, workers=1), None, True),
    (Case(model_mb=64, workers=2), None, True),
    (Case(model_mb=64, workers=4), None, True),
    (Case(model_mb=64, workers=2, codec="bf16"), ("torch-rpc",), False),
    (Case(model_mb=256, workers=2), ("torch-rpc",), False),
    (Case(model_mb=1, workers=1), ("torch-rpc",), False),
)
"""What targets are set for: the case, the peers (None: all that are asked for), whether against one replica too."""


def run(options: argparse.Namespace, effort: Effort) -> Found:
    found = Found()
    for case, peers, against_one in cases(options):
        wanted = [one for one in options.peers if peers is None or one in peers]
        ours = OurOptions(replicas=options.replicas, log_codec=options.log_codec)
        found.add(compare(case, ours, peers=wanted, against_one=against_one and options.against_one, effort=effort))
    return found


def cases(options: argparse.Namespace) -> list[tuple[Case, tuple[str, ...] | None, bool]]:
    if options.model_mb is None and options.workers is None and options.codec is None:
        return list(TABLE)
    return [
        (Case(model_mb=model_mb, workers=workers, codec=codec), None, True)
        for codec in options.codec or ["fp32"]
        for model_mb in options.model_mb or [64]
        for workers in options.workers or [1, 2, 4]
    ]
