"""A result survives its way through JSON; what is not one is refused, naming the place."""

from __future__ import annotations

import json
from typing import Any

import pytest

from paramserver.lab.chaos.result import ResultError, from_json, to_json
from tests.unit.lab.chaos_results import GROWTH, fault, result


def through_text(value: Any) -> Any:
    return json.loads(json.dumps(to_json(value)))


def test_a_result_comes_back_as_it_was() -> None:
    one = result(growth=(GROWTH,), faults=(fault(), fault(kind="delay", stall_ms=None, notes=("so",))))
    assert from_json(through_text(one)) == one


def test_what_is_no_result_is_refused_naming_the_place() -> None:
    for change, said in (
        (lambda data: data.update(format=2), "format: expected 1, received 2"),
        (lambda data: data.pop("seed"), "the result: missing seed"),
        (lambda data: data.update(seed="1"), "seed: expected int, received '1'"),
        (lambda data: data["faults"][0].update(losst=3), r"faults\[0\]: unknown losst"),
        (lambda data: data["faults"][0]["steps"].update(before=True), r"faults\[0\].steps.before: expected int"),
        (lambda data: data.update(timeline=[]), "timeline: expected an object, received list"),
        (lambda data: data["timeline"].update(reads_ms=3), "timeline.reads_ms: expected a list, received int"),
    ):
        data = through_text(result())
        change(data)
        with pytest.raises(ResultError, match=said):
            from_json(data)
    with pytest.raises(ResultError, match="expected an object"):
        from_json([])
