"""Bad input 5 to 8, 12 and 13 as a user of the Python API meets it: what test_worker_arrays.py does not show. Each
message says what was wrong, by the name that the caller knows it by, what was expected, and what came."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import paramserver
from paramserver.catalogue.mismatch import mismatch
from paramserver.wire.spec import ModelSpec, TensorSpec, sgd
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import client_of, gradients, initial, model_of
from worker import errors
from worker.client import Client
from worker.model import Model


@pytest.fixture
def client() -> Iterator[Client]:
    with client_of(FakeCluster()) as made:
        yield made


@pytest.fixture
def model(client: Client) -> Model:
    return model_of(client)


# --- 5 and 6: numbers


@pytest.mark.parametrize("partial", [False, True])
def test_row_5_what_float32_cannot_hold_is_an_error_and_no_warning(model: Model, partial: bool) -> None:
    large = np.ones(3000)
    large[5] = 1e300
    given = {"b": large} if partial else {**gradients(0), "b": large}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(errors.NonFinite, match="step 0: inf in tensor 'b' at element 5; nothing was sent"):
            model.push_pull(given, partial=partial)
        step = model.begin()
        with pytest.raises(errors.NonFinite, match="inf in tensor 'b' at element 5"):
            step.put("b", large)


@pytest.mark.parametrize("partial", [False, True])
def test_row_6_an_absurd_norm_says_which_tensor_it_comes_from(client: Client, partial: bool) -> None:
    model = model_of(client, reject_norm=10.0)
    given: dict[str, Any] = {"b": np.full(3000, 1e3), "c": np.full(1, 3e30)}
    if not partial:
        given["a"] = np.full((40, 50), 1e9)
    words = "step 0: expected a norm of at most 10, received 3e.*30, most of it in tensor 'c'; nothing was sent"
    with pytest.raises(errors.NormTooLarge, match=words):
        model.push_pull(given, partial=partial)


# --- 7: initial values, and what exists already


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b": np.zeros(5)}, r"initial: tensor 'b': expected shape \(3000,\), received shape \(5,\)"),
        ({"b": np.zeros(3000, int)}, "initial: tensor 'b': expected floats, received int64"),
        ({"b": None}, "initial: tensor 'b': expected an array of floats, received NoneType"),
        ({"d": np.zeros(5)}, "initial: tensor 'd': expected a tensor of the model, received an unknown one"),
        ("ndarray", "initial: ndarray; expected a mapping of tensor names to arrays"),
        ("nothing", "initial: NoneType; expected a mapping of tensor names to arrays"),
    ],
)
def test_row_7_initial_values_that_are_none(client: Client, change: Any, words: str) -> None:
    values: Any = {"ndarray": np.zeros(3), "nothing": lambda: None}.get(change) if isinstance(change, str) else None
    with pytest.raises(errors.InvalidArgument, match=words):
        model_of(client, initial={**initial(), **change} if values is None else values)
    assert model_of(client).step == 0


def spec(tensors: dict[str, tuple[int, ...]]) -> ModelSpec:
    return ModelSpec("m", tuple(TensorSpec(name, shape) for name, shape in tensors.items()), sgd(0.1), 1)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"w": (3,), "b": (2,)}, "it has tensors[1] 'b' of shape (1,); asked was tensors[1] 'b' of shape (2,)"),
        ({"b": (1,), "w": (3,)}, "it has tensors[0] 'w' of shape (3,); asked was tensors[0] 'b' of shape (1,)"),
        ({"w": (3,)}, "it has tensors 2 tensors, with 'b' of shape (1,); asked was tensors 1 tensors"),
        (
            {"w": (3,), "b": (1,), "c": (7, 2)},
            "it has tensors 2 tensors; asked was tensors 3 tensors, with 'c' of shape (7, 2)",
        ),
    ],
)
def test_row_7_another_spec_names_the_tensor(asked: dict[str, tuple[int, ...]], words: str) -> None:
    refusal = mismatch(spec({"w": (3,), "b": (1,)}), spec(asked))
    assert words in refusal.message


# --- 7 and 8: a tensor by its name, not by its place


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"w": (2,), "b": (0,)}, r"tensor 'b': shape: expected dimensions >= 1, received \(0,\)"),
        ({"w": (2,), "b": (1,) * 33}, "tensor 'b': shape: expected at most 32 dimensions, received 33 dimensions"),
        ({"w": (2,), "x/y": (1,)}, "tensor 'x/y': name: expected no path"),
        ({"w": (2,), "x\x1b[2J": (1,)}, r"tensor 'x\\x1b\[2J': name: expected printable"),
        ([TensorSpec("w", (2,)), TensorSpec("w", (3,))], "tensor 'w': name: expected a name of its own"),
    ],
)
def test_rows_7_and_8_a_tensor_of_a_spec_by_its_name(tensors: Any, words: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=words) as caught:
        paramserver.Spec(tensors, paramserver.sgd(0.1))
    assert str(caught.value).isprintable()


# --- 12: steps


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model.set_learning_rate(0.1, from_step="3"), "from_step '3'; expected a whole number from 0"),
        (lambda model: model.set_learning_rate(0.1, from_step=-1), "from_step -1; expected 0 to"),
        (lambda model: model.set_learning_rate("0.1"), "value '0.1'; expected a number, the learning rate"),
        (lambda model: model.set_learning_rate(None), "value None; expected a number"),
        (lambda model: model.set_learning_rate(float("nan")), "value: expected a finite float32 >= 0, received nan"),
        (lambda model: model.save("x.npz", step="last"), "step 'last'; expected a whole number from 0"),
        (lambda model: model.save("x.npz", step=-1), "step -1; expected 0 to"),
    ],
)
def test_row_12_steps_of_other_calls(model: Model, call: Callable[[Model], Any], words: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=words):
        call(model)


def test_rows_13_and_15_a_step_that_others_have_not_pushed_says_so(client: Client) -> None:
    """The servers are up; it is another rank that is missing."""
    model = model_of(client, ranks=2)
    with pytest.raises(
        errors.DeadlineExceeded, match=r"block.*; other ranks may not have pushed it \(absent_ranks\(\)"
    ):
        model.push_pull(gradients(0), timeout=0.2).result()
