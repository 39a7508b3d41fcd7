"""Plans: read from files with all their problems at once, and drawn by a seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paramserver.lab.chaos.kinds import all_kinds
from paramserver.lab.chaos.plan import LIMITS, Entry, Plan, PlanError, drawn, load, narrowed, parse, skipped
from paramserver.lab.chaos.suites import EVERY_KIND, SUITES
from paramserver.lab.errors import LabError

TOML = """
version = 1
margin = 7
rest_s = [0.5, 0.75]
[[faults]]
kind = "kill_leader"
repetitions = 3
hold_s = 0.25
[[faults]]
kind = "pause_worker"
"""


def test_every_kind_has_its_name_and_an_entry_in_the_suites() -> None:
    """The list is written out: its order is the order in which a seed draws, so that a replay stays one."""
    assert sorted(all_kinds()) == sorted(EVERY_KIND)
    for name in ("quick", "full", "soak"):
        assert tuple(entry.kind for entry in SUITES[name].faults) == EVERY_KIND


def test_a_kind_that_cannot_be_run_is_refused_with_the_reason() -> None:
    absent = [kind for kind in all_kinds().values() if kind.why_not]
    assert [kind.name for kind in absent] == ["rolling_upgrade"]
    for kind in absent:
        with pytest.raises(LabError, match=f"{kind.name} cannot be run: there is no tagged version"):
            next(kind.inject(None, None))  # type: ignore[arg-type]


def test_a_plan_is_read_from_toml_and_json(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    plan = load(tmp_path / "mine.toml")
    assert plan == Plan(
        name="mine",
        margin=7,
        rest_s=(0.5, 0.75),
        faults=(
            Entry(kind="kill_leader", repetitions=3, ranges={"hold_s": (0.25, 0.25)}),
            Entry(kind="pause_worker"),
        ),
    )
    (tmp_path / "mine.json").write_text(json.dumps(plan.as_file()))
    assert load(tmp_path / "mine.json") == plan
    for suite in SUITES.values():
        assert parse(json.loads(json.dumps(suite.as_file()))) == suite


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        parse(
            {
                "version": 2,
                "margins": 3,
                "nodes": 2,
                "rest_s": [2, 1],
                "faults": [
                    {"kind": "kil_leader"},
                    {"kind": "kill_leader", "repetitions": 0, "hold": 1},
                    {"kind": "delay", "ms": "many"},
                ],
            }
        )
    assert caught.value.problems == [
        "version: expected 1, received 2",
        "unknown key 'margins'; did you mean margin?",
        "nodes: expected a whole number from 3 to 7, received 2",
        "rest_s: expected [from, to], received 2 above 1, received [2, 1]",
        "faults[0].kind: 'kil_leader' is no kind of fault; did you mean kill_leader?",
        "faults[1].repetitions: expected a whole number from 1 to 10000, received 0",
        "faults[1].hold: unknown key; did you mean hold_s?; kill_leader has hold_s",
        "faults[2].ms: expected a number from 0 to 60000, received 'many'",
    ]


@pytest.mark.parametrize(("name", "text"), [("a.json", "{"), ("a.toml", "version =")])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PlanError, match=f"{name}: not"):
        load(tmp_path / name)
    with pytest.raises(PlanError, match="No such file"):
        load(tmp_path / "other.json")


def test_the_same_seed_draws_the_same_plan_and_another_one_does_not() -> None:
    def shape(seed: int) -> list[tuple[object, ...]]:
        return [
            (stage.name, one.kind.name, one.repetition, one.draw, one.hold_s, one.rest_s)
            for stage in drawn(SUITES["full"], seed)
            for one in stage.faults
        ]

    assert shape(4) == shape(4)
    assert shape(4) != shape(5)


def test_what_else_is_in_a_plan_changes_nothing_for_a_fault() -> None:
    alone = drawn(narrowed(SUITES["quick"], ["kill_leader"], 2), 9)
    among = drawn(narrowed(SUITES["quick"], ["pause_leader", "kill_leader"], 2), 9)
    draws = {one.repetition: one.draw for stage in among for one in stage.faults if one.kind.name == "kill_leader"}
    assert {one.repetition: one.draw for stage in alone for one in stage.faults} == draws


def test_what_needs_more_of_a_cluster_gets_one_of_its_own() -> None:
    plan = narrowed(SUITES["quick"], ["delay", "kill_leader"], None)
    assert [stage.name for stage in drawn(plan, 1)] == ["processes", "network"]
    from dataclasses import replace

    (one,) = drawn(replace(plan, together=True), 1)
    assert one.name == "network"
    assert {fault.kind.name for fault in one.faults} == {"delay", "kill_leader"}
    assert [stage.name for stage in drawn(replace(plan, links=True), 1)] == ["network"]


def test_what_cannot_be_run_is_left_out_and_said() -> None:
    plan = narrowed(SUITES["quick"], ["rolling_upgrade", "kill_leader"], None)
    assert [one.kind.name for stage in drawn(plan, 1) for one in stage.faults] == ["kill_leader"]
    assert "no tagged version" in skipped(plan)["rolling_upgrade"]


def test_only_kinds_there_are_can_be_chosen() -> None:
    with pytest.raises(PlanError, match="'kill_leadr' is no kind of fault; did you mean kill_leader"):
        narrowed(SUITES["quick"], ["kill_leadr"], None)


def test_every_range_of_a_kind_has_limits_and_its_own_values_lie_within() -> None:
    for kind in all_kinds().values():
        for name, (low, high) in kind.ranges.items():
            assert LIMITS[name][0] <= low <= high <= LIMITS[name][1], f"{kind.name} {name}"


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [("loss", "p", [0.1, 2.0]), ("transfer_storm", "transfers", 0), ("stall_leader", "stall_s", 61)],
)
def test_what_no_server_and_no_link_takes_is_refused_before_anything_starts(
    kind: str, name: str, value: object
) -> None:  # fmt: skip
    with pytest.raises(PlanError, match=rf"faults\[0\]\.{name}: expected a number from"):
        parse({"version": 1, "faults": [{"kind": kind, name: value}]})
    assert parse({"version": 1, "faults": [{"kind": "clock_jump", "hours": [-5, -2]}]}).faults


def test_a_plan_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(PlanError, match="nested too deep"):
        load(tmp_path / "deep.json")
