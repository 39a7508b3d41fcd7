"""From a failing case to a smaller one that fails alike.

Owns the search: fewer faults (delta debugging), fewer groups, nodes and clients, a shorter load, calmer surroundings,
and again. Invariants: what it returns was run, and failed in the same words (numbers aside) as the case it began with;
bounded by a number of runs. Must not know: how a case is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from consensus.simulation.case import Case
from consensus.simulation.faults import last_end_ms
from consensus.simulation.report import Report

RUNS_MAX = 250
LOAD_MS_MIN = 200
MARGIN_MS = 300
"""Load goes on so long after the last fault of a shortened case."""


@dataclass(frozen=True, slots=True)
class Shrunk:
    case: Case
    report: Report
    runs: int


def likeness(failure: str) -> str:
    """What two failures must share to count as one: the words, without numbers, of the first line."""
    return re.sub(r"[^a-z ]+", "#", failure.partition("\n")[0].lower())[:80]


class _Search:
    def __init__(self, case: Case, report: Report, run: Callable[[Case], Report], runs_max: int) -> None:
        self.case = case
        self.report = report
        self.runs = 0
        self._run = run
        self._runs_max = runs_max
        self._like = likeness(report.failure)

    @property
    def exhausted(self) -> bool:
        return self.runs >= self._runs_max

    def take(self, candidate: Case) -> bool:
        """Whether it fails alike; then it is the case from now on."""
        if self.exhausted or candidate == self.case:
            return False
        self.runs += 1
        report = self._run(candidate)
        if report.ok or likeness(report.failure) != self._like:
            return False
        self.case, self.report = candidate, report
        return True

    def round(self) -> bool:
        """Try everything once; whether anything helped."""
        before = self.case
        self._fewer_faults()
        for make in (self._groups, self._nodes, self._clients, self._load, self._calm):
            while any(self.take(candidate) for candidate in make()):
                pass
        return self.case != before

    def _fewer_faults(self) -> None:
        """Delta debugging: leave out halves, then quarters, down to single faults."""
        size = len(self.case.plan)
        while size and not self.exhausted:
            start = 0
            while start < len(self.case.plan):
                plan = self.case.plan[:start] + self.case.plan[start + size :]
                if not self.take(replace(self.case, plan=plan)):
                    start += size
            size //= 2

    def _groups(self) -> Iterator[Case]:
        if self.case.groups > 1:
            yield self.case.with_fewer_groups(1)
            yield self.case.with_fewer_groups(self.case.groups - 1)

    def _nodes(self) -> Iterator[Case]:
        for nodes in sorted({1, 2, 3, self.case.nodes - 1}):
            if 0 < nodes < self.case.nodes:
                yield self.case.on_fewer_nodes(nodes)

    def _clients(self) -> Iterator[Case]:
        for clients in sorted({1, self.case.clients // 2, self.case.clients - 1}):
            if 0 < clients < self.case.clients:
                yield replace(self.case, clients=clients)

    def _load(self) -> Iterator[Case]:
        options = self.case.options
        least = max(LOAD_MS_MIN, last_end_ms(self.case.plan) + MARGIN_MS)
        for load_ms in sorted({least, options.load_ms // 2, options.load_ms * 3 // 4}):
            if LOAD_MS_MIN <= load_ms < options.load_ms:
                yield replace(self.case, options=replace(options, load_ms=load_ms))

    def _calm(self) -> Iterator[Case]:
        profile = self.case.profile
        for calmer in (
            replace(profile.calm(), ordered=True, codec=False, drift_ppm_max=0),
            replace(profile, loss_permille=0, duplicate_permille=0),
            replace(profile, late_permille=0),
            replace(profile, client_loss_permille=0),
        ):
            if calmer != profile:
                yield replace(self.case, profile=calmer)
        if self.case.options.heal_some:
            yield replace(self.case, options=replace(self.case.options, heal_some=False))


def shrink(case: Case, report: Report, run: Callable[[Case], Report], *, runs_max: int | None = None) -> Shrunk:
    """`report` is that of `case`, and a failure."""
    search = _Search(case, report, run, RUNS_MAX if runs_max is None else runs_max)
    while not search.exhausted and search.round():
        pass
    return Shrunk(search.case, search.report, search.runs)
