"""Within how many seeds the simulator notices a mutation: `python -m tests.mutations.seeds [NAME ...] [--seeds 60]`.

The seeds are those of `paramserver sim run --seeds 0:N`, in order. Prints a line a mutation: how many seeds until the
first that was violated, and what the simulator said; or that none was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence

import pytest

from paramserver.lab.simulation.campaign import KINDS, run_one
from tests.mutations import catalogue

SECONDS_MAX = 300.0


def first_failing(name: str, seeds: int, kind: str, seconds: float = SECONDS_MAX) -> tuple[int, str]:
    """(seeds until the first that fails, what was violated); (0, how far it got) when none fails."""
    began = time.monotonic()
    patch = pytest.MonkeyPatch()
    catalogue.find(name).install(patch)
    try:
        for seed in range(seeds):
            if time.monotonic() - began > seconds:
                return 0, f"none within {seed} seeds"
            try:
                report = run_one(seed, kind=kind)
            except Exception as error:  # The bug broke the simulator itself, which is noticed as well.
                return seed + 1, f"{type(error).__name__}: {error}"[:160]
            if not report.ok:
                return seed + 1, str(report.failure).splitlines()[0][:160]
        return 0, f"none within {seeds} seeds"
    finally:
        patch.undo()


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations.seeds", description="what does chance find?")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutations (default: all)")
    parser.add_argument("--seeds", type=int, default=60, help="look at this many seeds at most (default: 60)")
    parser.add_argument("--kind", choices=["", *KINDS], default="", help="one kind for all seeds (default: as drawn)")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (default: 1)")
    options = parser.parse_args(words)
    names = options.names or [mutation.name for mutation in catalogue.load_all()]
    # A process for each, for a mutation may reach what was made before it.
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        running = [pool.apply_async(first_failing, (name, options.seeds, options.kind)) for name in names]
        for name, found in zip(names, running, strict=True):
            count, words_found = found.get()
            print(f"{name:<40} {count or '-':>4}  {words_found}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
