"""Bad input 5 to 8, 12, 13 and 15 of FAULTS.md as a user of the API meets them, and arrays of other libraries.

In each case the message names what was wrong, what was expected, and what came; nothing is sent."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import paramserver
from paramserver.wire.errors import Reason, Refusal
from tests.unit.worker.fake import LEARNING_RATE, FakeCluster
from tests.unit.worker.helpers import SHAPES, client_of, gradients, initial, model_of
from worker import errors
from worker.model import Model


class Exported:
    """What another library's array is to us: DLPack and nothing else."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self._array, self._device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


class Unready(Exported):
    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("Can't export tensors that require gradient")


def refused(change: dict[str, Any], words: str, kind: type[Exception] = errors.InvalidArgument) -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.frames.clear()

        def accumulated(given: dict[str, Any]) -> None:
            model.accumulate(given)
            model.push_pull()

        for call in (model.push_pull, model.push, accumulated):
            with pytest.raises(kind, match=words):
                call({**gradients(0), **change})
        assert cluster.frames == []
        assert model.push_pull(gradients(0)).result().version == 1


# --- arrays of other libraries


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_anything_with_dlpack_is_read_where_it_lies(dtype: Any) -> None:
    with client_of(FakeCluster()) as client:
        model = model_of(client)
        strided = Exported(np.full((80, 50), 2, dtype)[::2])
        given = {"a": strided, "b": Exported(np.full(3000, 2, dtype)), "c": [2.0]}
        after = model.push_pull(given).result()
        for name in SHAPES:
            assert np.array_equal(after[name], initial()[name] - LEARNING_RATE * 2), name


def test_an_array_on_a_device_is_copied_by_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_dlpack(value: Exported) -> Any:
        asked.append(value)
        return types.SimpleNamespace(get=lambda: value._array)

    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(from_dlpack=from_dlpack))
    with client_of(FakeCluster()) as client:
        model = model_of(client)
        on_device = Exported(np.full(3000, 2, np.float32), (2, 0))
        after = model.push_pull({**gradients(0), "b": on_device}).result()
        assert asked == [on_device]
        assert np.array_equal(after["b"], initial()["b"] - LEARNING_RATE * 2)


def test_an_array_on_a_device_without_cupy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it was not installed
    words = r"tensor 'b': expected an array in host memory, received .*Exported on CUDA:1.*CuPy.*tensor\.cpu\(\)"
    refused({"b": Exported(np.zeros(3000, np.float32), (2, 1))}, words)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Exported(np.zeros(3000, np.float32), (8, 0)), "'b': expected .*host memory or on CUDA, .* on Metal:0"),
        (Unready(np.zeros(3000, np.float32)), r"'b': .*Unready cannot be read: .*require gradient.*detach\(\)"),
        (np.zeros(5, np.float32), r"'b'.*shape \(3000,\).*shape \(5,\)"),
        (Exported(np.zeros(5, np.float32)), r"'b'.*shape \(3000,\).*shape \(5,\)"),
        (np.zeros(3000, np.int64), "'b'.*floats.*int64"),
        (np.zeros(3000, np.complex64), "'b'.*floats.*complex64"),
        (["x"] * 3000, "'b'.*floats"),
        (object(), "'b': expected an array of floats, received object"),
        (None, "'b': expected an array of floats, received NoneType"),
    ],
)
def test_what_is_no_gradient_names_its_tensor(value: Any, words: str) -> None:
    refused({"b": value}, words)


def test_gradients_that_are_no_mapping() -> None:
    with client_of(FakeCluster()) as client:
        with pytest.raises(errors.InvalidArgument, match="gradients: ndarray; expected a mapping"):
            model_of(client).push_pull(np.zeros(3))  # type: ignore[arg-type]


# --- rows of FAULTS.md


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_row_5_not_finite(value: float) -> None:
    bad = np.ones(3000, np.float32)
    bad[17] = value
    refused({"b": bad}, f"step 0: {value} in tensor 'b' at element 17", errors.NonFinite)


def test_row_5_is_counted() -> None:
    with client_of(FakeCluster()) as client:
        model = model_of(client, non_finite=paramserver.NonFinite.SKIP)
        model.push_pull({**gradients(0), "c": np.full(1, np.nan)}).result()
        assert (model.counts.skipped, model.counts.rejected) == (1, 0)
        other = client.model("strict", SHAPES, optimizer=paramserver.sgd(0.5), rank=0, initial=initial)
        with pytest.raises(errors.NonFinite):
            other.push_pull({**gradients(0), "c": np.full(1, np.nan)})
        assert (other.counts.skipped, other.counts.rejected) == (0, 1)


def test_row_6_an_absurd_norm() -> None:
    with client_of(FakeCluster()) as client:
        model = model_of(client, reject_norm=10.0)
        with pytest.raises(errors.NormTooLarge, match="at most 10, received 3e"):
            model.push_pull({**gradients(0), "c": np.full(1, 3e30, np.float32)})


def test_row_7_create_again_says_both_specs() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        with pytest.raises(errors.SpecMismatch) as caught:
            model_of(client, optimizer=paramserver.adam(0.1))
        assert caught.value.found == model.spec
        assert str(caught.value.asked.optimizer).startswith("Adam(")
        assert caught.value.code == "ALREADY_EXISTS"
        with pytest.raises(errors.NotFound, match="'nothing'"):
            client.model("nothing")
        with pytest.raises(errors.InvalidArgument, match="tensor 'nothing': expected one of the model"):
            model.pull(["nothing"])


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "a\x1b[31m", "../x", "/x", "~x", ".x", " x", 5, None, b"x"])
def test_row_8_names(name: Any) -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        sent = len(cluster.calls)
        for call in (
            lambda: client.model(name),
            lambda: client.model(name, SHAPES, optimizer=paramserver.sgd(0.1)),
            lambda: client.model("m", {name: (3,)}, optimizer=paramserver.sgd(0.1)),
            lambda: paramserver.Spec([paramserver.TensorSpec(name, (3,))], paramserver.sgd(0.1)),
        ):
            with pytest.raises(errors.InvalidArgument, match=r"name|string") as caught:
                call()
            assert str(caught.value).isprintable(), "terminals are safe"
        assert len(cluster.calls) == sent
    if name is not None:
        with pytest.raises(errors.InvalidArgument, match=r"name|string"):
            client_of(cluster, name=name)


@pytest.mark.parametrize("shape", [(0,), (-1,), (2.5,), "ab", 3, None, (1,) * 33, (2**40,)])
def test_row_7_shapes_that_there_are_not(shape: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="shape"):
        paramserver.Spec({"w": shape}, paramserver.sgd(0.1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model.push_pull(gradients(0), step=1), "step 1 cannot be pushed.*the next step is 0"),
        (lambda model: model.push(gradients(0), step=2**40), "too far ahead.*the next step is 0"),
        (lambda model: model.push_pull(gradients(0), step=-1), "step -1.*expected 0 to"),
        (lambda model: model.push(gradients(0), step=1.5), "step 1.5.*whole number"),
        (lambda model: model.pull(version=-1), "version -1.*expected 0 to"),
        (lambda model: model.pull(min_version="3"), "min_version '3'.*whole number"),
        (lambda model: paramserver.bounded(-5), "age_ms -5.*from 1 to"),
    ],
)
def test_row_12_steps_and_versions(call: Callable[[Model], Any], words: str) -> None:
    with client_of(FakeCluster()) as client:
        with pytest.raises((errors.InvalidArgument, errors.FailedPrecondition), match=words):
            call(model_of(client))


def test_row_13_a_rank_that_is_taken_or_is_none() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as one, client_of(cluster) as other:
        model_of(one, ranks=2)
        with pytest.raises(errors.RankTaken, match=r"rank 0 is taken by session 1, lease ends in 7.0 s"):
            model_of(other, ranks=2)
        for rank in (2, -1, "0", True, 1.0):
            with pytest.raises(errors.InvalidArgument, match=r"rank .*expected 0 to 1"):
                model_of(other, ranks=2, rank=rank)
        with pytest.raises(errors.InvalidArgument, match=r"rank 7.*expected 0 to 1"):
            other.model("demo", rank=7)


def test_row_15_deadlines() -> None:
    with client_of(FakeCluster(), timeout=0.3) as client:
        model = model_of(client)
        with pytest.raises(errors.DeadlineExceeded, match=r"pull of 'demo' was not done within 0.1 s") as caught:
            model.pull(version=9, timeout=0.1)
        assert caught.value.retryable
        with pytest.raises(errors.DeadlineExceeded, match=r"0.3 s"):
            model.pull(version=9)  # none of its own: the client's
        for timeout in (10 * 365 * 86_400, 0, -1, float("nan"), float("inf"), "5"):
            for call in (
                lambda given: model.pull(timeout=given),
                lambda given: model.push_pull(gradients(0), timeout=given),
                lambda given: client.model("demo", timeout=given),
                lambda given: client_of(FakeCluster(), timeout=given),
            ):
                with pytest.raises(errors.InvalidArgument, match=r"timeout of .*at most 86400 seconds"):
                    call(timeout)
        assert model.push_pull(gradients(0)).result().version == 1


def test_what_a_server_refuses_is_said_in_the_same_words() -> None:
    """Its check of finiteness (RULES S10) names rank, tensor and step; nothing of gRPC is seen."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client, non_finite=paramserver.NonFinite.ALLOW)
        cluster.refuse = [Refusal(Reason.NON_FINITE, "rank 0: nan in tensor 'b', step 0", hint="look at the loss")]
        cluster.set_view(cluster.models[1])
        with pytest.raises(errors.NonFinite, match="rank 0: nan in tensor 'b', step 0; look at the loss"):
            model.push_pull({**gradients(0), "b": np.full(3000, np.nan)}).result()
