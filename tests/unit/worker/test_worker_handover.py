"""A step that is handed over tensor by tensor: what is sent when, what is refused, and that faults change nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

import paramserver
from tests.unit.worker.fake import LEARNING_RATE, FakeCluster, FakeNetwork
from tests.unit.worker.helpers import BLOCKS, SHAPES, applied_once, client_of, gradients, initial, model_of, until
from worker import aio, errors
from worker.model import Model


def opened_on(cluster: FakeCluster, client: paramserver.Client, **options: Any) -> Model:
    """What was sent for its initial values is forgotten."""
    model = model_of(client, **options)
    with cluster.lock:
        cluster.frames.clear()
        cluster.payloads.clear()
    return model


def blocks_of(cluster: FakeCluster, step: int) -> list[int]:
    return [block for _, block, at in cluster.frames if at == step]


def handed(model: Model, step: int, rank: int = 0) -> paramserver.Tensors:
    opened = model.begin(step=step)
    for name, gradient in gradients(step, rank).items():
        opened.put(name, gradient)
    return opened.finish().result()


def test_a_block_is_sent_as_soon_as_it_is_whole_and_never_before() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client)
        opened = model.begin()
        assert opened.streamed
        opened.put("a", gradients(0)["a"])
        until(lambda: blocks_of(cluster, 0) == [0])
        assert opened.missing == ("b", "c")
        assert cluster.models[1].versions[0] == 1, "it is applied while the rest is still computed"
        opened.put("c", gradients(0)["c"])  # in the last block, which "b" is still missing in
        opened.buffer["b"][:] = gradients(0)["b"]
        opened.put("b")
        after = opened.finish().result()
        assert after.version == model.step == 1
        for name, value in initial().items():
            assert np.array_equal(after[name], value - LEARNING_RATE * gradients(0)[name])
        assert sorted(blocks_of(cluster, 0)) == list(range(BLOCKS))
    assert applied_once(cluster, 1)


def test_blocks_wait_their_turn_within_their_group() -> None:
    """RULES S5. Groups 2 and 3 have two blocks each, 1-2 and 3-4: the last tensors come first."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client)
        opened = model.begin()
        opened.put("c", gradients(0)["c"])
        opened.put("b", gradients(0)["b"])
        # 2 waits for 1, which "a" is missing in; nothing holds group 3 back.
        until(lambda: blocks_of(cluster, 0) == [3, 4])
        opened.put("a", gradients(0)["a"])
        opened.finish().result()
        sent = blocks_of(cluster, 0)
        assert sent.index(1) < sent.index(2)
    assert applied_once(cluster, 1)


def test_handed_over_and_pushed_whole_are_the_same_bits() -> None:
    found = []
    for way in ("whole", "handed"):
        cluster = FakeCluster()
        with client_of(cluster) as client:
            model = opened_on(cluster, client, codec="bf16")
            for step in range(3):
                if way == "whole":
                    after = model.push_pull(gradients(step)).result()
                else:
                    after = handed(model, step)
            found.append((after.digest(), sorted(cluster.payloads)))
    assert found[0] == found[1]


@pytest.mark.parametrize("fault", ["leaders", "view"])
def test_a_stream_that_broke_sends_again_what_was_ready_and_no_more(fault: str) -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client)
        cluster.hold = True
        opened = model.begin()
        opened.put("a", gradients(0)["a"])
        until(lambda: blocks_of(cluster, 0) == [0])
        with cluster.lock:
            cluster.hold = False
            if fault == "view":
                cluster.set_view(cluster.models[1])
            else:
                for group in (1, 2, 3):
                    cluster.elect(group, group % 3 + 1)
        until(lambda: blocks_of(cluster, 0) == [0, 0])
        opened.put("b", gradients(0)["b"])
        opened.put("c", gradients(0)["c"])
        assert opened.finish().result().version == 1
    assert applied_once(cluster, 1)


def test_a_finish_that_ran_out_of_time_goes_on_with_wait() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client)
        cluster.hold = True
        opened = model.begin()
        for name, gradient in gradients(0).items():
            opened.put(name, gradient)
        with pytest.raises(errors.DeadlineExceeded):
            opened.finish(timeout=0.1).result()
        with pytest.raises(errors.FailedPrecondition, match="step 0 is still in flight"):
            model.begin()
        with cluster.lock:
            cluster.hold = False
            cluster.set_view(cluster.models[1])
        assert model.wait().version == 1
        assert handed(model, 1).version == 2, "a stream that rested takes the next step"
    assert applied_once(cluster, 2)


def test_weights_come_to_where_the_caller_wants_them() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client)
        out = model.pull()
        opened = model.begin(out=out)
        for name, gradient in gradients(0).items():
            opened.put(name, gradient)
        assert opened.finish().result() is out
        mine = {name: np.empty(shape, np.float32) for name, shape in SHAPES.items()}
        opened = model.begin(out=mine)
        for name, gradient in gradients(1).items():
            opened.put(name, gradient)
        after = opened.finish().result()
        assert all(np.array_equal(mine[name], after[name]) for name in SHAPES)
        with pytest.raises(errors.InvalidArgument, match="own buffer"):
            model.begin(out=opened.buffer)


# --- what is missing, and what is frozen


def test_what_was_not_put_is_named_and_may_count_as_zeros() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client)
        opened = model.begin()
        with pytest.raises(errors.InvalidArgument, match="no tensor was put"):
            opened.finish(partial=True)
        opened.put("a", gradients(0)["a"])
        with pytest.raises(
            errors.InvalidArgument, match="tensor 'b': expected a gradient, received nothing; tensor 'c'"
        ):
            opened.finish()
        after = opened.finish(partial=True).result()
        assert np.array_equal(after["b"], initial()["b"])
        assert np.array_equal(after["a"], initial()["a"] - LEARNING_RATE * gradients(0)["a"])
        kinds = {block: size for block, _, data in cluster.payloads if (size := len(data)) == 0}
        assert set(kinds) >= {2, 3, 4}, "blocks of which nothing was put are sent as empty"


def test_frozen_tensors_are_not_waited_for() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client, frozen=["b"])
        opened = model.begin()
        assert opened.missing == ("a", "c")
        with pytest.raises(errors.InvalidArgument, match="tensor 'b': expected nothing, for it is frozen"):
            opened.put("b", gradients(0)["b"])
        opened.put("a", gradients(0)["a"])
        until(lambda: {0, 1, 2, 3} <= set(blocks_of(cluster, 0)))  # 2 and 3 are of "b" alone
        opened.put("c", gradients(0)["c"])
        after = opened.finish().result()
        assert np.array_equal(after["b"], initial()["b"])
        assert {block for block, _, data in cluster.payloads if not data} >= {2, 3}


# --- judged as a whole, or piece by piece


@pytest.mark.parametrize(
    "options", [{"clip_norm": 1.0}, {"reject_norm": 1e9}, {"non_finite": paramserver.NonFinite.SKIP}]
)
def test_what_looks_at_the_whole_gradient_holds_everything_back(options: dict) -> None:
    """RULES S10."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client, **options)
        opened = model.begin()
        assert not opened.streamed
        for name, gradient in gradients(0).items():
            opened.put(name, gradient)
        assert not blocks_of(cluster, 0)
        handed_over = opened.finish().result().digest()
    with client_of(FakeCluster()) as client:
        whole = model_of(client, **options).push_pull(gradients(0)).result().digest()
    assert handed_over == whole


def test_a_norm_that_is_refused_gives_the_step_up_and_nothing_was_sent() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client, reject_norm=1.0)
        opened = model.begin()
        for name, gradient in gradients(0).items():
            opened.put(name, gradient)
        with pytest.raises(errors.NormTooLarge, match="at most 1"):
            opened.finish()
        assert not blocks_of(cluster, 0)
        assert model.counts.rejected == 1
        small = {name: gradient * 1e-6 for name, gradient in gradients(0).items()}
        assert model.push_pull(small).result().version == 1


def test_a_step_that_is_skipped_is_skipped_in_all_blocks() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client, non_finite=paramserver.NonFinite.SKIP)
        opened = model.begin()
        for name, gradient in gradients(0).items():
            opened.put(name, gradient if name != "c" else np.full((1,), np.nan, np.float32))
        after = opened.finish().result()
        assert after.version == 1
        assert all(np.array_equal(after[name], value) for name, value in initial().items())


def test_a_tensor_that_is_not_finite_was_not_put() -> None:
    """FAULTS bad input 5. What was put before is on its way: the step can be finished with another value."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client)
        opened = model.begin()
        opened.put("a", gradients(0)["a"])
        bad = gradients(0)["b"]
        bad[7] = np.inf
        with pytest.raises(
            errors.NonFinite, match=r"inf in tensor 'b' at element 7; this tensor was not put"
        ) as caught:
            opened.put("b", bad)
        assert (caught.value.tensor, caught.value.step) == ("b", 0)
        assert opened.missing == ("b", "c")
        opened.put("b", gradients(0)["b"])
        opened.put("c", gradients(0)["c"])
        assert opened.finish().result().version == 1
        assert model.counts.rejected == 1


# --- what is refused


def test_what_a_put_refuses() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client)
        opened = model.begin()
        for name, gradient, words in (
            ("d", np.zeros(1, np.float32), "tensor 'd': expected one of the model"),
            ("a", np.zeros(3, np.float32), r"tensor 'a': expected shape \(40, 50\), received shape \(3,\)"),
            ("a", np.zeros((40, 50), np.int64), "tensor 'a': expected floats, received int64"),
            ("a", np.zeros((40, 50), np.complex64), "tensor 'a': expected floats, received complex64"),
        ):
            with pytest.raises(errors.InvalidArgument, match=words):
                opened.put(name, gradient)
        opened.put("a", np.zeros((40, 50), np.float64))
        with pytest.raises(errors.FailedPrecondition, match="tensor 'a' was put before in step 0"):
            opened.put("a", np.zeros((40, 50), np.float32))
        for call in (
            lambda: model.begin(),
            lambda: model.push_pull(gradients(0)),
            lambda: model.push(gradients(0)),
            lambda: model.wait(),
        ):
            with pytest.raises(errors.FailedPrecondition, match=r"finish\(\) it first"):
                call()
        with pytest.raises(errors.FailedPrecondition):
            model.accumulate(gradients(0))
        opened.put("b", np.zeros(3000, np.float32))
        opened.put("c", np.zeros(1, np.float32))
        opened.finish().result()
        with pytest.raises(errors.FailedPrecondition, match="step 0 was finished before"):
            opened.finish()
        with pytest.raises(errors.FailedPrecondition, match="step 0 is finished"):
            opened.put("a", np.zeros((40, 50), np.float32))
        with pytest.raises(errors.FailedPrecondition, match="step 0 cannot be begun; the next step is 1"):
            model.begin(step=0)
        model.accumulate(gradients(1))
        with pytest.raises(errors.InvalidArgument, match="1 gradients that were accumulated"):
            model.begin()
        model.close()
        with pytest.raises(errors.Closed):
            opened.put("a", np.zeros((40, 50), np.float32))


def test_a_rank_that_was_taken_over_in_the_middle_of_a_step_ends_it() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client)
        opened = model.begin()
        opened.put("a", gradients(0)["a"])
        until(lambda: blocks_of(cluster, 0) == [0])
        other = opened_on(cluster, client)
        opened.put("b", gradients(0)["b"])
        opened.put("c", gradients(0)["c"])
        with pytest.raises(errors.RankTaken, match=r"rank 0 was taken over by session 1; .*once more in this one"):
            opened.finish().result()
        with pytest.raises(errors.RankTaken):
            model.begin()
        after = other.push_pull(gradients(0)).result()
        for name, value in initial().items():
            assert np.array_equal(after[name], value - LEARNING_RATE * gradients(0)[name])
    assert applied_once(cluster, 1)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1e9}])
def test_a_finish_that_is_refused_leaves_the_step_open(options: dict) -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client, **options)
        opened = model.begin()
        opened.put("a", gradients(0)["a"])
        with pytest.raises(errors.InvalidArgument, match="timeout"):
            opened.finish(partial=True, timeout=-1)
        opened.put("b", gradients(0)["b"])
        opened.put("c", gradients(0)["c"])
        after = opened.finish().result()
        for name, value in initial().items():
            assert np.array_equal(after[name], value - LEARNING_RATE * gradients(0)[name])
    assert applied_once(cluster, 1)


def test_a_step_given_up_by_closing_is_taken_up_by_the_next_life() -> None:
    """RULES S7: blocks that were sent answer as duplicates, the others take the gradient that is computed again."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = opened_on(cluster, client)
        opened = model.begin()
        opened.put("a", gradients(0)["a"])
        until(lambda: cluster.models[1].versions[0] == 1)
        model.close()
        again = model_of(client)
        assert again.step == 0
        after = handed(again, 0)
        for name, value in initial().items():
            assert np.array_equal(after[name], value - LEARNING_RATE * gradients(0)[name])
    assert applied_once(cluster, 1)


def test_awaited() -> None:
    cluster = FakeCluster()

    async def run() -> None:
        async with aio.connect(
            list(cluster.addresses.values()), network=lambda: FakeNetwork(cluster), timeout=5
        ) as client:
            model = await client.model(
                "demo", SHAPES, optimizer=paramserver.sgd(0.5), rank=0, initial=initial, block_bytes=4096
            )
            opened = await model.begin()
            assert (opened.step, opened.streamed, opened.missing) == (0, True, tuple(SHAPES))
            opened.put("a", gradients(0)["a"])
            opened.buffer["b"][:] = gradients(0)["b"]
            opened.put("b")
            opened.put("c", gradients(0)["c"])
            cluster.hold = True
            finishing = asyncio.ensure_future(opened.finish())
            await asyncio.sleep(0)
            finishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await finishing
            with cluster.lock:
                cluster.hold = False
                cluster.set_view(cluster.models[1])
            assert (await model.wait()).version == 1

    asyncio.run(run())
    assert applied_once(cluster, 1)
