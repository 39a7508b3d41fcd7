"""push without weights, what is told of it, accumulation, norms, and arrays of the caller's to be filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unit.worker.fake import LEARNING_RATE, FakeCluster
from tests.unit.worker.helpers import BLOCKS, SHAPES, applied_once, client_of, gradients, initial, model_of, until
from worker import errors
from worker.tensors import Pushed


def test_a_push_brings_no_weights_back() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        for step in range(2):
            pushed = model.push(gradients(step), step=step).result()
            assert pushed == Pushed(step=step, version=step + 1, duplicates=0, duplicate=False)
        assert all(not hello.want_weights for hello in cluster.hellos)
        assert model.pull().version == model.step == 2
    assert applied_once(cluster, 2)


def test_a_push_of_a_step_that_is_done_is_a_duplicate() -> None:
    """FAULTS bad input 12: a step behind."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        model.push(gradients(0)).result()
        model.push(gradients(1)).result()
        sent = len(cluster.frames)
        assert model.push(gradients(0), step=0).result() == Pushed(step=0, version=2, duplicates=BLOCKS, duplicate=True)
        assert len(cluster.frames) == sent


def test_a_push_says_what_an_earlier_life_had_brought() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        with cluster.lock:
            for block in (0, 1):
                cluster.models[1].versions[block] = 1
        assert model.push(gradients(0)).result() == Pushed(step=0, version=1, duplicates=2, duplicate=False)


def test_a_push_that_ran_out_of_time_goes_on_with_wait() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        cluster.hold = True
        with pytest.raises(errors.DeadlineExceeded):
            model.push(gradients(0), timeout=0.1).result()
        with pytest.raises(errors.FailedPrecondition, match="in flight"):
            model.push(gradients(0))
        with cluster.lock:
            cluster.hold = False
            cluster.set_view(cluster.models[1])
        after = model.wait()
        assert after.version == 1
        assert np.array_equal(after["b"], initial()["b"] - LEARNING_RATE * gradients(0)["b"])
    assert applied_once(cluster, 1)


# --- accumulation


def test_what_is_accumulated_is_summed_in_float32_in_the_order_of_the_calls() -> None:
    draw = np.random.default_rng(5)
    pieces = [{name: draw.standard_normal(shape, np.float32) for name, shape in SHAPES.items()} for _ in range(3)]
    third = np.float32(1 / 3)
    expected = {name: (pieces[0][name] * third + pieces[1][name] * third) + pieces[2][name] * third for name in SHAPES}
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        assert [model.accumulate(piece, weight=1 / 3) for piece in pieces] == [1, 2, 3]
        cluster.payloads.clear()
        model.push_pull().result()
        sent = np.concatenate([np.frombuffer(payload, np.float32) for _, _, payload in sorted(cluster.payloads)])
        assert sent.tobytes() == np.concatenate([expected[name].ravel() for name in SHAPES]).tobytes()
        buffer = model.buffer()
        buffer.flat[:] = 3
        model.accumulate(buffer)
        assert model.accumulate(buffer) == 2, "the sum begins anew after a push"
        assert (buffer.flat == 3).all(), "what a caller gives is only read"
        before = model.pull()
        assert np.array_equal(model.push_pull().result()["b"], before["b"] - LEARNING_RATE * 6)


def test_what_accumulation_refuses() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        with pytest.raises(errors.InvalidArgument, match="nothing was accumulated"):
            model.push_pull()
        with pytest.raises(errors.InvalidArgument, match="weight nan"):
            model.accumulate(gradients(0), weight=float("nan"))
        model.accumulate(gradients(0))
        with pytest.raises(errors.InvalidArgument, match="1 that were accumulated"):
            model.push_pull(gradients(0))
        model.discard()
        cluster.hold = True
        model.push_pull(gradients(0), timeout=5)
        with pytest.raises(errors.FailedPrecondition, match="in flight"):
            model.accumulate(gradients(0))


def test_a_sum_that_overflows_names_its_tensor() -> None:
    with client_of(FakeCluster()) as client:
        model = model_of(client)
        huge = {name: np.full(shape, 3e38, np.float32) for name, shape in SHAPES.items()}
        model.accumulate(huge)
        model.accumulate(huge)
        with pytest.raises(errors.NonFinite, match="inf in tensor 'a' at element 0"):
            model.push_pull()
        assert model.accumulate(gradients(0)) == 1, "it begins anew"


# --- norms


def test_a_gradient_of_an_absurd_norm_is_clipped_or_rejected() -> None:
    """FAULTS bad input 6, RULES S10: judged as a whole, before its first frame."""
    elements = 5001
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client, clip_norm=1.0, reject_norm=1e6)
        cluster.payloads.clear()
        mine = gradients(0)
        model.push_pull(mine).result()
        (block,) = (payload for number, _, payload in cluster.payloads if number == 0)
        factor = np.float32(1 / np.sqrt(elements))
        assert np.frombuffer(block, np.float32).tobytes() == np.full(1024, factor, np.float32).tobytes()
        assert (mine["b"] == 1).all()
        sent = len(cluster.frames)
        with pytest.raises(errors.NormTooLarge, match=r"step 1: expected a norm of at most 1e\+06") as caught:
            model.push_pull({name: np.full(shape, 1e6, np.float32) for name, shape in SHAPES.items()})
        assert caught.value.norm == pytest.approx(1e6 * np.sqrt(elements))
        assert len(cluster.frames) == sent
        assert (model.counts.clipped, model.counts.rejected, model.counts.skipped) == (1, 1, 0)
        model.push_pull({name: np.full(shape, 1e-3, np.float32) for name, shape in SHAPES.items()}).result()
        assert model.counts.clipped == 1
        for bad in (0, -1, float("nan"), float("inf"), "1", True):
            with pytest.raises(errors.InvalidArgument, match="clip_norm"):
                model_of(client, clip_norm=bad)


# --- where weights go


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_the_caller_are_filled(dtype: Any) -> None:
    with client_of(FakeCluster()) as client:
        model = model_of(client)
        # Any strides: a transposed one, and every other element of a longer one.
        mine = {"a": np.zeros((50, 40), dtype).T, "b": np.zeros(6000, dtype)[::2], "c": np.zeros(1, dtype)}
        pulled = model.pull(out=mine)
        assert all(np.array_equal(mine[name], pulled[name]) for name in SHAPES)
        after = model.push_pull(gradients(0), out=mine).result()
        assert all(np.array_equal(mine[name], after[name]) for name in SHAPES)
        only = {"c": np.zeros(1, dtype)}
        assert model.pull(["c"], out=only)["c"] == only["c"]


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda out: out.pop("b"), r"tensor 'b': expected shape \(3000,\), received nothing"),
        (lambda out: out.update(d=np.zeros(1)), "tensor 'd': .* an unknown one"),
        (lambda out: out.update(b=np.zeros(2)), r"tensor 'b': expected shape \(3000,\), received shape \(2,\)"),
        (lambda out: out.update(b=np.zeros(3000, np.float16)), "tensor 'b': expected float32 or float64, .* float16"),
        (lambda out: out.update(b=read_only(np.zeros(3000))), "tensor 'b': .*read-only"),
        (lambda out: out.update(b=[0.0] * 3000), "tensor 'b': expected a NumPy or CuPy array, received list"),
    ],
)
def test_arrays_that_cannot_be_filled(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        out: dict[str, Any] = {name: np.zeros(shape) for name, shape in SHAPES.items()}
        change(out)
        cluster.pulls.clear()
        with pytest.raises(errors.InvalidArgument, match=words):
            model.pull(out=out)
        with pytest.raises(errors.InvalidArgument, match=words):
            model.push_pull(gradients(0), out=out)
        assert cluster.pulls == []


# --- callbacks


def test_who_calls_back_may_push_but_not_wait() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        found: list[Any] = []

        def goes_on(future: Any) -> None:
            found.append(future.result().version)
            try:
                model.pull()
            except errors.FailedPrecondition as error:
                found.append(error)
            found.append(model.push_pull(gradients(1)))

        first = model.push_pull(gradients(0))
        first.add_done_callback(goes_on)
        until(lambda: len(found) == 3)
        assert found[0] == 1
        assert "in a callback" in str(found[1])
        assert found[2].result().version == 2
        here: list[bool] = []
        first.add_done_callback(lambda future: here.append(future.done()))
        assert here == [True]


def test_a_pull_may_be_a_future() -> None:
    with client_of(FakeCluster()) as client:
        model = model_of(client)
        assert model.pull_later(["c"]).result().version == 0
        nothing = model.pull_later(if_newer_than=0)
        assert nothing.result() is None
        with pytest.raises(errors.InvalidArgument):
            model.pull_later(version=-1)
