"""Figures made of workers' records (RULES F1)."""

import math
from pathlib import Path

from paramserver.lab import records
from paramserver.lab.records import End, Record, Start, Step, Tail, Wait


def record(*times: float, rank: int = 0) -> Record:
    return Record(rank, tuple(Step(number, time_s) for number, time_s in enumerate(times)))


def test_stall_is_the_longest_gap_less_the_median_step() -> None:
    calm = [number * 0.01 for number in range(100)]
    late = [1.0 + 0.2 + number * 0.01 for number in range(100)]
    some = [record(*calm, *late)]
    assert math.isclose(records.stall_ms(some, fault_s=0.995), 200.0, abs_tol=0.001)


def test_a_gap_elsewhere_is_not_this_faults() -> None:
    some = [record(0.0, 0.01, 0.5, 0.51, 0.52, 0.53, 2.0)]
    assert records.stall_ms(some, fault_s=0.505, until_s=0.525) < 1.0
    assert records.stall_ms(some, fault_s=1.0) > 1000.0


def test_the_worst_worker_counts() -> None:
    calm = record(*(number * 0.01 for number in range(100)))
    hit = record(*(number * 0.01 for number in range(50)), *(0.3 + number * 0.01 for number in range(50, 100)), rank=1)
    assert math.isclose(records.stall_ms([calm, hit], fault_s=0.495), 300.0, abs_tol=0.01)


def test_nobody_came_back() -> None:
    assert math.isnan(records.stall_ms([record(0.0, 0.1)], fault_s=5.0))


def test_lines_of_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_bytes(
        b'{"event": "start", "time": 1, "rank": 0, "pid": 5, "first_step": 0}\n'
        b'{"event": "step", "time": 2, "step": 0, "loss": 1.5, "accuracy": null}\n{"event": "st'
    )
    tail = Tail(path)
    assert tail.read() == [Start(1.0, 5, 0), Step(0, 2.0, 1.5, None)]
    with path.open("ab") as file:  # the next start ends the cut line and goes on
        file.write(b'\n{"event": "wait", "time": 3, "why": "no leader"}\n')
        file.write(b'{"event": "end", "time": 4, "accuracy": 0.5, "digest": "ab"}\n')
    assert tail.read() == [Wait(3.0, "no leader"), End(4.0, 0.5, "ab")]
    whole = records.read(path, 0)
    assert whole.last_step == 0
    assert whole.end == End(4.0, 0.5, "ab")


def test_steps_per_second_counts_each_step_once() -> None:
    some = [record(0.0, 0.5, 1.0), record(0.1, 0.6, 1.0, rank=1)]
    assert records.steps_per_s(some) == 2.0
    assert records.steps_per_s([record(1.0)]) == 0.0
