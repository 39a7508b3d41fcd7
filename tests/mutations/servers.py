"""Real clusters whose servers have a known bug: `paramserver chaos run` must find it.

    python -m tests.mutations.servers [NAME...]        (`make chaos-mutants`)

Each case is a mutation, the one fault that shows it, and what the run then has to count. Prints a line each, last
`N caught, M missed`, and exits with 1 when any was missed. Owns the cases, and how a server gets its bug: through
`startup/sitecustomize.py`, by the environment of its process. Nothing in the product knows of it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paramserver.lab.chaos import nemesis
from paramserver.lab.chaos.plan import Entry, Plan
from paramserver.lab.chaos.result import ChaosResult
from paramserver.lab.chaos.run import ChaosOptions, run_chaos

ROOT = Path(__file__).resolve().parents[2]
MUTATION = "PARAMSERVER_TEST_MUTATION"
SETTLE_S = 3.0
"""A broken cluster does not become whole: nobody waits long for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """`counts`: the figure of the summary that must not be 0. `ends`: or a server must have noticed by itself, and
    ended with these words, before anything could be counted. `seed` draws who is struck, and how."""

    name: str
    mutation: str
    kind: str
    seed: int
    counts: str
    ends: str = ""


BROKEN = (
    Broken(
        name="acknowledges before commit", mutation="leader_commits_alone", kind="partition_leader", seed=1,
        counts="lost", ends="which is committed",
    ),
    Broken(
        name="skips deduplication", mutation="steps_not_told_apart", kind="partition_one_way", seed=2,
        counts="duplicated",
    ),
    Broken(
        name="answers linearizable reads without confirming its leadership", mutation="reads_of_unconfirmed_state",
        kind="pause_leader", seed=1, counts="stale_reads",
    ),
)  # fmt: skip


def run(broken: Broken, *, mutated: bool = True) -> ChaosResult:
    """`mutated` False: the same run of sound servers, which must find nothing."""
    plan = Plan(
        name=broken.mutation.replace("_", "-"),
        margin=2,
        rest_s=(0.2, 0.3),
        baseline_s=0.2,
        hang_s=4.0,
        counting_pace_ms=10.0,
        node_reads_pace_ms=30.0,
        faults=(Entry(kind=broken.kind, ranges={"hold_s": (1.5, 1.5)}),),
    )
    environment = {"PYTHONPATH": str(ROOT)}
    if mutated:
        environment = {"PYTHONPATH": f"{ROOT}/tests/mutations/startup:{ROOT}", MUTATION: broken.mutation}
    folder = Path(tempfile.mkdtemp(prefix="paramserver-broken-"))
    settle_s, nemesis.SETTLE_S = nemesis.SETTLE_S, SETTLE_S if mutated else nemesis.SETTLE_S
    try:
        command = f"python -m tests.mutations.servers {broken.mutation}"
        options = ChaosOptions(
            plan=plan, seed=broken.seed, command=command, replay=command, folder=folder, environment=environment
        )
        return run_chaos(options, lambda _: None)
    finally:
        nemesis.SETTLE_S = settle_s
        shutil.rmtree(folder, ignore_errors=True)


def found(broken: Broken, result: ChaosResult) -> str:
    """What of it the run told; empty when it told nothing."""
    if count := getattr(result.summary, broken.counts):
        return f"{broken.counts} {count}"
    said = [problem for problem in result.problems if broken.ends and broken.ends in problem]
    return said[0] if said else ""


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations.servers", description="break real servers")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutations (default: all)")
    options = parser.parse_args(words)
    unknown = set(options.names) - {one.mutation for one in BROKEN}
    if unknown:
        parser.error(f"no {', '.join(sorted(unknown))}; there are: {', '.join(one.mutation for one in BROKEN)}")
    missed = 0
    chosen = [one for one in BROKEN if not options.names or one.mutation in options.names]
    for one in chosen:
        began_s = time.monotonic()
        result = run(one)
        said = found(one, result)
        missed += not said
        seconds = time.monotonic() - began_s
        print(f"{'caught' if said else 'MISSED'}  {one.mutation:<28} {one.name}; {one.kind}: {said} ({seconds:.1f} s)")
        if not said:
            print(*result.problems, sep="\n")
        sys.stdout.flush()
    print(f"{len(chosen) - missed} caught, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
