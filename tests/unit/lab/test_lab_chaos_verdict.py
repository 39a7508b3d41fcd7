"""Each verdict goes red on a history that was doctored for it, and only that one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from paramserver.lab.chaos import verdict
from paramserver.lab.chaos.figures import distribution, stall_ms, without_answer_ms
from paramserver.lab.chaos.growth import unwatched
from paramserver.lab.chaos.kinds import During
from paramserver.lab.chaos.observed import Counted, Digests, ErrorSeen, Observed, Read
from paramserver.lab.chaos.result import FaultResult, Growth, Stage
from paramserver.lab.chaos.verdict import Conditions, Struck
from tests.unit.lab.chaos_results import GROWTH

CONDITIONS = Conditions(stage="processes", origin_s=100.0, margin=10, proxied=False)
STEP_S = 0.02
BITS = {version: (f"a{version}", f"b{version}") for version in range(1000)}
FAULTS = ((103.0, 103.5), (106.0, 106.5))
"""When each began and was taken back; a second later all is whole."""


def steps(start_s: float, end_s: float) -> list[float]:
    return [start_s + STEP_S * number for number in range(int((end_s - start_s) / STEP_S))]


def history() -> Observed:
    """Two loads of two ranks that stall for 60 ms at each fault; reads and looks at the digits all the while."""
    seen = Observed()
    for load in ("digits", "counting"):
        for rank in range(2):
            worker = seen.worker(load, rank)
            times = [*steps(101.0, 103.0), *steps(103.06, 106.0), *steps(106.06, 109.0)]
            for number, time_s in enumerate(times):
                worker.completed(number, time_s)
            worker.pushed = worker.steps
    for number in range(160):
        ended_s = 101.0 + number * 0.05
        seen.reads.append(Read(ended_s - 0.005, ended_s, 0, 0, 0, 0))
        seen.digests.append(Digests(ended_s, (number, number), BITS[number]))
    return seen


def struck(**changes: Any) -> list[Struck]:
    found = []
    before_s = 101.0
    for number, (start_s, end_s) in enumerate(FAULTS):
        found.append(
            Struck(
                kind="kill_leader",
                repetition=number,
                during=During.STEPS,
                follower=False,
                target="node 1",
                before_s=before_s,
                start_s=start_s,
                end_s=end_s,
                healed_s=end_s + 1.0,
                until_s=end_s + 2.0,
                commits=(0, 100, 120, 200),
                terms=(4, 4, 5, 6),
            )
        )
        before_s = end_s + 1.0
    for name, value in changes.items():
        setattr(found[0], name, value)
    return found


def judged(seen: Observed, some: list[Struck] | None = None) -> tuple[FaultResult, ...]:
    return verdict.judge(some or struck(), seen, BITS, CONDITIONS)


def failures(seen: Observed, some: list[Struck] | None = None) -> list[str]:
    return list(verdict.problems(judged(seen, some), (), planned=2))


def test_a_sound_history_passes_with_its_figures() -> None:
    faults = judged(history())
    assert failures(history()) == []
    first = faults[0]
    assert first.stall_ms == pytest.approx(60.0, abs=1.0)
    assert (first.steps.before, first.steps.during, first.steps.after) == (100, 22, 50)
    assert (first.commits.before, first.commits.during, first.commits.after) == (100, 20, 80)
    assert (first.leader_changes, first.error, first.start_ms) == (2, "none", 3000.0)
    assert first.reads_unavailable_ms == first.writes_unavailable_ms == 0.0
    assert first.step_p99_ratio is not None
    assert first.step_p99_ratio > 1.0
    counted = verdict.summary(faults, ())
    assert (counted.faults, counted.invalid, counted.lost, counted.hangs) == (2, 0, 0, 0)
    assert counted.stall_ms["kill_leader"].n == 2


def missing(seen: Observed) -> None:
    seen.replicas += [Counted(105.0, 3, 0, node=2), Counted(107.0, 3, 0, node=2)]


def doubled(seen: Observed) -> None:
    seen.workers[2].counted.append(Counted(104.0, 0, 2))


def doubled_in_a_read(seen: Observed) -> None:
    seen.reads.append(Read(103.9, 104.0, 0, 0, 0, 1))


def stale(seen: Observed) -> None:
    seen.reads.append(Read(103.9, 104.0, 3, 1, 0, 0))


def older_than_acknowledged(seen: Observed) -> None:
    seen.reads.append(Read(103.9, 104.0, 3, 0, 4, 0))


def flipped(seen: Observed) -> None:
    seen.digests.append(Digests(104.0, (50, 50), ("a50", "other"), node=3))


def of_a_version_that_never_was(seen: Observed) -> None:
    seen.digests.append(Digests(104.0, (5000, 50), ("a50", "b50")))


@pytest.mark.parametrize(
    ("doctor", "field", "value", "said"),
    [
        (missing, "lost", 3, "3 acknowledged updates are lost"),
        (doubled, "duplicated", 2, "2 updates were applied twice"),
        (doubled_in_a_read, "duplicated", 1, "1 updates were applied twice"),
        (stale, "stale_reads", 1, "1 linearizable reads were stale"),
        (older_than_acknowledged, "stale_reads", 1, "1 linearizable reads were stale"),
        (flipped, "bit_identical", False, "other bits than without faults"),
        (of_a_version_that_never_was, "bit_identical", False, "other bits than without faults"),
    ],
)
def test_what_went_wrong_is_counted_at_the_fault_after_which_it_was_seen(
    doctor: Callable[[Observed], None], field: str, value: object, said: str
) -> None:
    seen = history()
    doctor(seen)
    first, second = judged(seen)
    assert getattr(first, field) == value
    assert getattr(second, field) == getattr(judged(history())[1], field), "once, not again"
    assert failures(seen) == [f"kill_leader 0 (node 1): {said}"]


def test_what_is_first_seen_at_the_end_counts_there() -> None:
    seen = history()
    seen.replicas.append(Counted(200.0, 2, 1, node=1))
    assert verdict.beyond(struck(), seen) == (2, 1)
    stage = Stage(
        name="processes", nodes=3, proxied=False, seams=False, start_ms=0, end_ms=1, undisturbed={},
        final=("2 acknowledged updates are lost",), lost=2, duplicated=1, bit_identical=False,
    )  # fmt: skip
    counted = verdict.summary(judged(seen), (stage,))
    assert (counted.lost, counted.duplicated, counted.not_identical) == (2, 1, 1)
    assert verdict.problems((), (stage,), planned=0) == ("end of stage processes: 2 acknowledged updates are lost",)


def test_a_hang_and_an_exception_are_told() -> None:
    seen = history()
    for worker in seen.workers:
        worker.times = [time_s for time_s in worker.times if time_s < 103.0]
    first = judged(seen, struck(hang=True))[0]
    assert first.hang
    assert first.stall_ms is None
    assert "hang: no progress" in failures(seen, struck(hang=True))[0]
    seen = history()
    seen.workers[3].errors.append(ErrorSeen(103.2, "DeadlineExceeded"))
    assert judged(seen)[0].error == "DeadlineExceeded"


@pytest.mark.parametrize(
    ("doctor", "said"),
    [
        (lambda seen: seen.workers[1].times.__delitem__(slice(0, 95)), "5 steps before it, not 10"),
        (
            lambda seen: seen.workers[1].times.__setitem__(
                slice(None), [time_s for time_s in seen.workers[1].times if not 103.0 <= time_s < 103.48]
            ),
            "1 steps while it was there, not 3",
        ),
        (
            lambda seen: seen.workers[2].times.__setitem__(
                slice(None), [time_s for time_s in seen.workers[2].times if not 104.5 <= time_s < 105.5]
            ),
            "0 steps after it, not 10",
        ),
        (lambda seen: seen.reads.clear(), "no linearizable read ended well"),
        (lambda seen: seen.digests.clear(), "nobody looked at the digits' bits"),
    ],
)
def test_without_load_around_it_a_fault_proves_nothing(doctor: Callable[[Observed], None], said: str) -> None:
    seen = history()
    doctor(seen)
    first = judged(seen)[0]
    assert said in first.invalid
    assert any(f"invalid: {first.invalid}" in one for one in failures(seen))
    assert verdict.summary(judged(seen), ()).invalid >= 1


def test_what_training_has_to_wait_for_needs_no_step_meanwhile() -> None:
    seen = history()
    for worker in seen.workers:
        worker.times = [time_s for time_s in worker.times if not 103.0 <= time_s < 103.6]
    assert judged(seen)[0].invalid
    first = judged(seen, struck(during=During.WAITS))[0]
    assert not first.invalid
    assert first.writes_unavailable_ms == pytest.approx(600.0, abs=25.0)


def test_a_fault_that_was_not_injected_and_growth_are_failures() -> None:
    assert verdict.problems(judged(history()), (), planned=3) == ("1 of 3 faults were not injected",)
    growing: Growth = replace(GROWTH, rss_mb_per_minute=11.0, descriptors_per_minute=3.0)
    assert len(verdict.grows(growing)) == 2
    assert verdict.grows(GROWTH) == []


def test_each_of_several_acts_has_its_own_stall() -> None:
    first = judged(history(), struck(acts=[102.9, 103.2]))[0]
    assert first.parameters["stalls_ms"] == pytest.approx([60.0, 0.0], abs=1.0)
    assert verdict.summary([first], ()).stall_ms["transfer"].n == 2


def test_stalls_and_times_without_an_answer() -> None:
    times = [*steps(0.0, 1.0), *steps(1.5, 2.0)]
    assert stall_ms([times], 1.0, 1.2) == pytest.approx(500.0, abs=1.0)
    assert stall_ms([times, times[:50]], 1.0, 1.2) is None, "one of them never came back"
    assert without_answer_ms(times, 1.1, 2.0, 0.1) == pytest.approx(400.0, abs=1.0)
    assert without_answer_ms(times, 1.1, 1.3, 0.1) == pytest.approx(200.0, abs=1.0)
    assert without_answer_ms(times, 0.2, 0.8, 0.1) == 0.0
    assert distribution([3.0, 1.0, 2.0]).p50 == 2.0
    assert distribution([]).max is None


def test_what_the_last_linearizable_read_lacks_is_lost_and_what_a_later_one_holds_is_not() -> None:
    seen = history()
    seen.reads.append(Read(109.0, 109.1, 0, 0, 3, 0))
    assert verdict.beyond(struck(), seen) == (3, 0)
    seen.reads.append(Read(109.1, 109.2, 2, 0, 5, 0))  # of one node by itself: it may be behind
    seen.reads.append(Read(109.2, 109.3, 0, 0, 0, 0))
    assert verdict.beyond(struck(), seen) == (0, 0)


def test_what_is_seen_between_two_faults_counts_at_the_next_one() -> None:
    some = struck()
    some[1].start_s = 106.2  # prepared for 700 ms, such as a node whose groups others take over before
    seen = history()
    seen.reads.append(Read(105.6, 105.7, 3, 1, 0, 0))
    seen.digests.append(Digests(105.7, (50, 50), ("a50", "other"), node=3))
    first, second = judged(seen, some)
    assert (first.stale_reads, first.bit_identical) == (0, True)
    assert (second.stale_reads, second.bit_identical) == (1, False)


def test_what_is_seen_before_the_first_fault_and_after_the_last_counts() -> None:
    seen = history()
    seen.reads.append(Read(101.5, 101.6, 1, 1, 0, 0))
    seen.reads.append(Read(108.9, 109.0, 1, 1, 0, 0))
    assert [one.stale_reads for one in judged(seen)] == [1, 0]
    assert verdict.stale_beyond(struck(), seen) == 1
    stage = Stage(
        name="processes", nodes=3, proxied=False, seams=False, start_ms=0, end_ms=1, undisturbed={}, final=(),
        stale_reads=1,
    )  # fmt: skip
    assert verdict.summary(judged(seen), (stage,)).stale_reads == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"problem": "server 1 ended with 1, not 74"}, "server 1 ended with 1, not 74"),
        ({"unseen": ["node 3 did not serve version 9"]}, "not seen: node 3 did not serve version 9"),
    ],
)
def test_a_fault_that_went_wrong_or_was_not_looked_at_is_invalid(changes: dict[str, Any], said: str) -> None:
    found = judged(history(), struck(**changes))
    assert said in found[0].invalid
    counted = verdict.summary(found, ())
    assert (counted.faults, counted.invalid) == (1, 1)


def test_the_way_back_is_not_blamed_for_the_next_fault() -> None:
    seen = history()
    for worker in seen.workers:
        worker.times = [time_s for time_s in worker.times if not 105.48 <= time_s < 106.4]
    first = judged(seen)[0]
    assert first.recovery_stall_ms is not None
    assert first.recovery_stall_ms < 100.0


def test_a_hang_has_no_stall_that_could_be_taken_for_a_short_one() -> None:
    seen = history()
    for worker in seen.workers:
        worker.times = [time_s for time_s in worker.times if time_s < 103.1]
    first = judged(seen, struck(hang=True, during=During.WAITS))[0]
    assert first.stall_ms is None


def test_a_long_soak_without_a_life_to_watch_says_so() -> None:
    short = replace(GROWTH, rss_mb_per_minute=None)
    assert unwatched([GROWTH, short], 30.0) == []
    assert unwatched([short], 5.0) == [], "too short to ask for it"
    (said,) = unwatched([short], 30.0)
    assert "no server lived for 4 minutes" in said
    assert unwatched([], 30.0) != []
