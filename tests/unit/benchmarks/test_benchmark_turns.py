"""What benchmarks make of recorded steps: rates, ratios, the floor, batches that fit into memory."""

import json
from pathlib import Path

import pytest

from benchmarks import push_pull, terms
from benchmarks.pushpull import pacing, report, rows
from benchmarks.pushpull.case import Case
from benchmarks.pushpull.comparing import Found, compare, fitting
from benchmarks.pushpull.ours import OurOptions
from benchmarks.pushpull.peers import environment
from benchmarks.pushpull.system import System, SystemFailed, Unavailable
from benchmarks.pushpull.turns import Effort, Turn, Turns, interleaved, take_turn


class Recorded(System):
    """Takes no step itself: every grant is met by steps of a given length."""

    name = "recorded"

    def __init__(self, case: Case, step_s: float) -> None:
        super().__init__(case)
        self.step_s = step_s
        self.now_s = 100.0
        self.failing = False

    def start(self) -> None:
        pass

    def step(self, steps: int, timeout_s: float) -> tuple[int, int]:
        if self.failing:
            raise SystemFailed("it fails")
        first = self.gate.granted
        self.gate.grant(steps)
        self.now_s += 1000.0  # it slept for long: the time between turns must not count
        for number in range(steps):
            length_s = 50.0 if number == 0 else self.step_s
            for record in self.records:
                with record.open("ab") as file:
                    file.write(pacing._RECORD.pack(self.now_s, self.now_s + length_s))
            self.now_s += length_s
        return first, steps


def turns(name: str, rates: list[float], replicas: int = 1, workers: int = 2) -> Turns:
    system = Recorded(Case(model_mb=64, workers=workers), 1.0)
    system.name, system.replicas = name, replicas
    system.close()
    made = [
        Turn(
            steps=3,
            mb_per_s=rate,
            lengths_ms=[1.0],
            cpu_s_per_gb=1.0,
            server_cpu_s_per_gb=[0.5],
            server_peak_bytes=10**9,
            elsewhere=0.0,
        )
        for rate in rates
    ]
    return Turns(system, made)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_rate_counts_fp32_bytes_both_ways_over_all_ranks_and_leaves_the_first_step_out(workers: int) -> None:
    with Recorded(Case(model_mb=64, workers=workers, codec="bf16"), 0.5) as system:
        turn = take_turn(system, seconds=2.0, step_s=0.5)
    assert turn.steps == 4
    assert turn.mb_per_s == pytest.approx(2 * 64 * 2**20 * workers / 0.5 / 1e6)
    assert turn.lengths_ms == pytest.approx([500.0] * 4 * workers)


def test_a_system_that_fails_takes_no_further_turn_and_says_why() -> None:
    with Recorded(Case(model_mb=1, workers=1), 0.01) as good, Recorded(Case(model_mb=1, workers=1), 0.01) as bad:
        assert isinstance(bad, Recorded)
        bad.failing = True
        one, other = interleaved([good, bad], Effort(rounds=2, seconds=0.01, warm_up_mb=1))
    assert (len(one.turns), one.failure) == (2, "")
    assert (len(other.turns), other.failure) == (0, "it fails")


def test_a_ratio_is_the_median_over_rounds_of_what_happened_in_the_same_round() -> None:
    ours, theirs = turns("paramserver", [100, 50, 10], 3), turns("torch-rpc", [200, 200, 5])
    alone = turns("paramserver", [200, 100, 40], 1)
    assert rows.ratios(ours, [theirs, alone]) == {
        "fp32_64mb_w2_vs_torch-rpc": 0.5,
        "fp32_64mb_w2_replicas3_vs_1": 0.5,
    }


def test_a_row_has_what_is_promised() -> None:
    row = rows.row(turns("paramserver", [100, 300, 200]))
    assert row["mb_per_s"] == 200
    assert set(row) >= {"system", "model_mb", "workers", "replicas", "codec", "durability", "step_ms", "cpu_s_per_gb"}
    assert set(row["step_ms"]) == {"p50", "p99"}


def test_peers_that_do_not_fit_side_by_side_run_in_batches() -> None:
    assert fitting({"a": 10, "b": 10, "c": 25, "d": 90}, 10, 40) == [["a", "b"], ["c"], ["d"]]
    assert fitting({}, 10, 40) == [[]]


def test_a_peer_that_is_missing_is_named_instead_of_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(module: str) -> str:
        raise Unavailable(environment.INSTALL)

    def ours_only(make: object, others: dict, effort: object, found: Found, what: str) -> tuple[Turns, list[Turns]]:
        for name, one in others.items():
            with pytest.raises(Unavailable) as why:
                one()
            found.missing[f"{name} {what}"] = str(why.value)
        return turns("paramserver", [1.0]), []

    monkeypatch.setattr("benchmarks.pushpull.peers.torch_rpc.interpreter", nowhere)
    monkeypatch.setattr("benchmarks.pushpull.comparing.side_by_side", ours_only)
    found = compare(Case(model_mb=1, workers=1), OurOptions(), peers=["torch-rpc"], effort=Effort())
    install = "make install-peers"
    assert found.missing == {"torch-rpc fp32_1mb_w1": install, "torch-rpc-plain fp32_1mb_w1": install}
    assert [row["system"] for row in found.rows] == ["paramserver"]


def test_a_gate_lets_no_rank_go_further_than_was_granted(tmp_path: Path) -> None:
    gate = pacing.Gate(tmp_path / "gate")
    gate.grant(2)
    steps = pacing.Pace(tmp_path / "gate", tmp_path / "record").steps()
    assert [next(steps), next(steps)] == [0, 1]
    assert pacing.taken(tmp_path / "record") == 1, "the second step is still being taken"
    gate.grant(1)
    assert next(steps) == 2
    (first,) = pacing.read(tmp_path / "record", 0, 1)
    assert first.begin_s <= first.end_s


def test_the_floor_is_the_sum_of_its_shares_and_falls_with_workers() -> None:
    found = {"transport": 0.45, "sum": 0.1, "wal": 0.25, "apply_sgd": 0.1, "apply_adam": 0.4, "digest": 0.05}
    for workers in (1, 2, 4):
        shares = terms.shares(found, workers)
        assert sum(shares.values()) == pytest.approx(terms.floor(found, workers), abs=0.005)
    # As the design counts: 0.45 + 0.1 + 2 x 0.45 + 0.45 + 3 x (0.25 + 0.1 + 0.05) per GB of model, pushed and pulled.
    assert terms.floor(found, 1) == pytest.approx(3.1 / 2)
    assert terms.floor(found, 1) > terms.floor(found, 2) > terms.floor(found, 4)


@pytest.mark.parametrize(
    "flags", [["--model-mb", "0"], ["--workers", "65"], ["--codec", "int8"], ["--peers", "mpi"], ["--suite", "profile"]]
)
def test_flags_that_mean_nothing_are_refused(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        push_pull.parsed(flags)
    assert ended.value.code == 2


def test_targets_are_judged_by_ratios_and_rows() -> None:
    row = rows.row(turns("paramserver", [100.0], replicas=3, workers=1)) | {"model_mb": 1}
    row["step_ms"] = {"p50": 4.0, "p99": 9.0}
    result = {
        "suite": "figures",
        "rows": [row],
        "ratios": {"fp32_64mb_w2_vs_torch-rpc": 0.6, "fp32_64mb_w1_vs_torch-rpc": 0.41},
    }
    judged = {one["name"]: one for one in report.targets([result])}
    assert judged["fp32_64mb_w2_vs_torch-rpc"]["met"] is False
    assert judged["fp32_64mb_w1_vs_torch-rpc"]["met"] is True
    assert judged["fp32_64mb_w4_vs_torch-rpc"]["met"] is None
    assert (judged["step_1mb_w1_p50_ms"]["met"], judged["step_1mb_w1_p50_ms"]["aim_met"]) == (True, False)
    json.dumps(judged)
