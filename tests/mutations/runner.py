"""Runs the tests that a mutation names, with the bug put back, and judges what happened.

`python -m tests.mutations.runner` (`make mutants`) does so for all of them, two at a time, after it has seen that the
same tests pass without any mutation. It prints a line each, last `N caught, M missed`, and exits with 1 when any was
missed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutations import catalogue
from tests.mutations.catalogue import Mutation

ROOT = Path(__file__).resolve().parents[2]
MUTATION_S_MAX = 180
CLEAN_S_MAX = 480
_FAILED = re.compile(r"^FAILED (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Verdict:
    """`output` is what pytest printed."""

    mutation: Mutation
    caught_by: str
    """The test that failed first; empty when none did."""
    seconds: float
    output: str

    def line(self) -> str:
        outcome = "caught" if self.caught_by else "MISSED"
        by = f"by {self.caught_by}" if self.caught_by else f"named: {' '.join(self.mutation.caught_by)}"
        return f"{outcome}  {self.mutation.name:<36} hazard {self.mutation.hazard}; {by} ({self.seconds:.1f} s)"


def pytest_run(*arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    # Inside pytest-xdist the child must not take itself for one of its workers, nor take options meant for us.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )


def judge(mutation: Mutation) -> Verdict:
    """Caught means: a named test ran and failed. A mutation that breaks collection or setting up proves nothing."""
    began = time.monotonic()
    try:
        done = pytest_run("-x", "--mutation", mutation.name, *mutation.caught_by, seconds=MUTATION_S_MAX)
    except subprocess.TimeoutExpired as error:
        return Verdict(mutation, "", time.monotonic() - began, f"no end within {MUTATION_S_MAX} s\n{error.output}")
    failed = _FAILED.search(done.stdout) if done.returncode == 1 else None
    return Verdict(mutation, failed.group(1) if failed else "", time.monotonic() - began, done.stdout)


def named_tests(mutations: Sequence[Mutation]) -> list[str]:
    return sorted({test for mutation in mutations for test in mutation.caught_by})


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations.runner", description="put known bugs back")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mutations (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default: 2)")
    options = parser.parse_args(words)
    mutations = [catalogue.find(name) for name in options.names] if options.names else catalogue.load_all()
    began = time.monotonic()
    clean = pytest_run("-n", str(options.jobs), *named_tests(mutations), seconds=CLEAN_S_MAX)
    if clean.returncode != 0:
        print(clean.stdout)
        print("without any mutation these tests must pass, and they don't: nothing is shown")
        return 1
    missed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(judge, mutations):
            print(verdict.line(), flush=True)
            if not verdict.caught_by:
                missed += 1
                print(verdict.output, flush=True)
    print(f"{len(mutations)} mutations in {time.monotonic() - began:.0f} s")
    print(f"{len(mutations) - missed} caught, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
