"""The peers' drill: what its records say, and what its tables make of it; without any peer."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.peers import __main__ as command
from benchmarks.faults.peers import judge, ledger, report
from benchmarks.faults.peers.judge import Watched
from benchmarks.pushpull.system import Unavailable


def worker(rank: int, *events: tuple[str, float, int], final: list[int] | None = None, struck: bool = False) -> Watched:
    lines: list[dict[str, Any]] = [{"event": event, "time": at, "step": step} for event, at, step in events]
    for line in lines:
        if line["event"] == "error":
            line["what"] = f"Lost: step {line['step']}"
    if final is not None:
        lines.append({"event": "final", "time": 99.0, "counts": {str(rank): final}})
    return Watched(f"worker {rank}", lines, (rank,), struck)


def steps(*times: float) -> list[tuple[str, float, int]]:
    return [(event, at, step) for step, at in enumerate(times) for event in ("begin", "step")]


def test_lost_and_doubled_updates_do_not_cancel_out() -> None:
    lost = worker(0, *steps(1.0, 2.0, 3.0), final=[3, 3, 2, 3])
    doubled = worker(1, *steps(1.0, 2.0, 3.0), final=[3, 4, 3, 3])
    assert judge.counted([lost, doubled]) == {"acknowledged": 6, "lost": 1, "duplicated": 1}


def test_an_update_without_an_answer_may_count_or_not_and_one_sent_again_counts_once() -> None:
    unanswered = [*steps(1.0), ("begin", 2.0, 1)]
    for final in ([1] * 4, [2] * 4):
        assert judge.counted([worker(0, *unanswered, final=final)]) == {"acknowledged": 1, "lost": 0, "duplicated": 0}
    again = [*steps(1.0), ("begin", 2.0, 1), ("begin", 3.0, 1), ("step", 3.1, 1)]
    assert judge.counted([worker(0, *again, final=[3] * 4)])["duplicated"] == 1


def test_what_cannot_be_read_at_the_end_is_not_called_fine() -> None:
    found = judge.counted([worker(0, *steps(1.0, 2.0), final=[2] * 4), worker(1, *steps(1.0, 2.0))])
    assert found == {"acknowledged": 4, "lost": None, "duplicated": None}


def test_a_stall_is_the_longest_gap_after_the_fault_less_the_median_step_of_workers_that_were_not_struck() -> None:
    some = worker(0, *steps(1.0, 1.1, 1.2, 3.2, 3.3))
    struck = worker(1, *steps(1.0, 1.1, 1.2, 9.2, 9.3), struck=True)
    assert judge.stall_ms([some, struck], 1.25) == pytest.approx(1900, abs=1)
    assert judge.stall_ms([some], 3.5) is None


def test_the_first_error_after_the_fault_counts() -> None:
    some = worker(0, ("error", 0.5, 0), ("error", 2.5, 1), ("error", 2.6, 1))
    struck = worker(1, ("error", 2.1, 1), struck=True)
    assert judge.errors([some, struck], 2.0) == [(0.5, "Lost: step 1")]


def test_a_worker_that_is_started_again_goes_on_behind_its_record(tmp_path: Path) -> None:
    record, stop = tmp_path / "record", tmp_path / "stop"
    first = ledger.Ledger(record, stop)
    for step in first.steps():
        if step == 3:
            break
    with record.open("ab") as file:
        file.write(b'{"event": "step", "ti')  # killed in the middle of a line
    assert ledger.first_unacknowledged(record) == 3
    stop.touch()
    assert list(ledger.Ledger(record, stop).steps()) == []


def test_a_push_that_fails_is_written_down_and_sent_again(tmp_path: Path) -> None:
    record, stop = tmp_path / "record", tmp_path / "stop"
    tries = []

    def push(step: int) -> None:
        tries.append(step)
        if len(tries) == 1:
            raise ConnectionError("gone\nand more")
        if step == 1:
            stop.touch()

    ledger.Ledger(record, stop).insist(push, ConnectionError)
    assert tries == [0, 0, 1]
    events = [(line["event"], line["step"]) for line in ledger.read(record)]
    assert events == [("begin", 0), ("error", 0), ("step", 0), ("begin", 1), ("step", 1)]
    assert next(line["what"] for line in ledger.read(record) if line["event"] == "error") == "ConnectionError: gone"


def test_a_peer_that_is_missing_is_named_in_place_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> dict[str, str]:
        raise Unavailable("install it")

    for peer in command.PEERS:
        monkeypatch.setattr(peer, "versions", staticmethod(missing))
    options = argparse.Namespace(peers=None, faults="kill_server", repetitions=1, seed=1, jobs=1, quick=True)
    found = command.run(options)
    assert found["episodes"] == []
    assert found["missing"] == {peer.name: "install it" for peer in command.PEERS}
    with pytest.raises(SystemExit, match="no peer gloo; there are: torch-rpc"):
        command.run(argparse.Namespace(**{**vars(options), "peers": "gloo"}))


def episode(**changes: Any) -> dict[str, Any]:
    plain = {
        "peer": "store", "fault": "kill_server", "seed": 1, "seen": "nothing", "what": None, "after_ms": None,
        "goes_on": True, "restarted": False, "stall_ms": 1000.0, "acknowledged": 10, "lost": 0, "duplicated": 0,
        "steps_redone": None,
    }  # fmt: skip
    return {**plain, **changes}


def test_cells_say_what_was_seen_and_never_call_what_is_not_known_nothing() -> None:
    error = episode(seen="error", what="Broken: <b>|x|</b>", after_ms=3.4, goes_on=False, stall_ms=None, lost=None)
    assert report.sees([error]) == "`Broken:  b  x  /b `"
    assert report.sees([error], brief=True) == "`Broken`"
    assert report.sees([error, episode(), episode()]) == "nothing (2 of 3), `Broken:  b  x  /b ` (1 of 3)"
    assert (report.lost([error]), report.stall([error]), report.after([error])) == ("all", "for good", "3")
    assert report.lost([error, episode(lost=4)]) == "4; all in 1 of 2"
    assert report.goes_on([error]) == "no: the job must be restarted"
    assert report.goes_on([error, episode()]) == "1 of 2"
    assert report.lost([episode(restarted=True, steps_redone=7)]) == "7 steps done again"


def test_rows_of_ours_come_from_a_chaos_run_and_leave_out_what_is_invalid() -> None:
    from paramserver.lab.chaos.result import to_json
    from tests.unit.lab.chaos_results import fault, result

    faults = (
        fault(recovery_stall_ms=60.0), fault(kind="pause_leader", hang=True),
        fault(kind="kill_worker", invalid="no load"),
        fault(kind="delay"), fault(kind="kill_worker", error="DeadlineExceeded", lost=2),
    )  # fmt: skip
    found = report.from_chaos(json.loads(json.dumps(to_json(result(faults=faults)))))
    assert [(one["fault"], one["seen"], one["lost"]) for one in found] == [
        ("kill_server", "nothing", 0), ("pause_server", "hang", 0), ("kill_worker", "error", 2),
    ]  # fmt: skip
    assert [one["stall_ms"] for one in found] == [41.5, 41.5, 41.5]
