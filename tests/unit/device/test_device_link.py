"""A handle and a device, on the fake cluster: the same bits as without one, whatever is late and whatever fails."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from paramserver.wire.codecs import Codec, decode, encode
from paramserver.wire.spec import NonFinite, sgd
from tests.unit.device.helpers import KINDS, device_of, late, random_gradients
from tests.unit.device.standin.world import CUDARuntimeError
from tests.unit.worker.fake import LEARNING_RATE, FakeCluster
from tests.unit.worker.helpers import BLOCKS, SHAPES, applied_once, client_of, initial, model_of, until
from worker import errors
from worker.device.link import Link
from worker.device.scaling import LossScale

CODECS = [name.name.lower() for name in Codec]


def rounded(codec: str, array: np.ndarray) -> np.ndarray:
    one = Codec[codec.upper()]
    flat = np.ascontiguousarray(array.reshape(-1))
    return decode(one, bytes(encode(one, flat)), flat.size).reshape(array.shape)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_through_a_link_gives_the_bits_of_training_without_one(kind: str, codec: str) -> None:
    options: dict[str, Any] = {"codec": codec, "weights_codec": codec}
    cluster, plain = FakeCluster(), FakeCluster()
    with client_of(plain) as client:
        model = model_of(client, **options)
        expected = model.pull()
        for step in range(4):
            gradients = {name: array + expected[name] for name, array in random_gradients(SHAPES, step).items()}
            expected = model.push_pull(gradients, step=step).result()
    with device_of(kind) as (device, world), client_of(cluster) as client:
        model = model_of(client, **options)
        link = Link(model, device)
        weights = link.pull()
        for step in range(4):
            # The backward pass reads the weights, and gradients are late.
            gradients = {name: device.to_host(weights[name]) for name in SHAPES}
            made = {name: array + gradients[name] for name, array in random_gradients(SHAPES, step).items()}
            if step % 2:
                for name in reversed(SHAPES):
                    link[name] = late(world, device, made[name])
                future = link.push_pull(step=step)
            else:
                future = link.push_pull({name: late(world, device, made[name]) for name in SHAPES}, step=step)
            assert future.result().digest() == future.result().digest()
            weights = link.load()
        for name, array in expected.items():
            assert device.to_host(weights[name]).tobytes() == array.tobytes(), name
        assert future.result().digest() == expected.digest()
        assert future.result().version == 4
        if world is not None:
            assert world.counts["copy pageable"] == 0
    assert applied_once(cluster, 4)
    assert [payload for *_, payload in sorted(cluster.payloads)] == [payload for *_, payload in sorted(plain.payloads)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_scalar_is_a_tensor_too(kind: str) -> None:
    shapes: dict[str, tuple[int, ...]] = {"w": (4,), "scale": ()}
    ones = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with device_of(kind) as (device, world), client_of(FakeCluster()) as client:
        model = client.model("scalar", shapes, optimizer=sgd(float(LEARNING_RATE)), rank=0, initial=ones)
        link = Link(model, device)
        for name, array in ones.items():
            link.put(name, late(world, device, array))
        link.push_pull().result()
        weights = model.push_pull({name: late(world, device, array) for name, array in ones.items()}).result()
        assert weights["scale"].shape == link.load()["scale"].shape == ()
        assert all(np.all(weights[name] == 1 - 2 * LEARNING_RATE) for name in shapes)


def test_a_step_that_is_sent_again_has_the_same_bytes() -> None:
    """RULES S12: from page-locked memory, through a leader that dies with its answers."""
    cluster = FakeCluster()
    with device_of("cupy") as (device, world), client_of(cluster) as client:
        model = model_of(client, codec="bf16")
        link = Link(model, device)
        link.pull()
        cluster.swallow_replies = 3
        first = len(cluster.payloads)
        gradients = random_gradients(SHAPES)
        future = link.push_pull({name: late(world, device, gradients[name]) for name in SHAPES})
        until(lambda: not cluster.swallow_replies)
        for group in (1, 2, 3):
            cluster.elect(group, group % 3 + 1)
        future.result()
        sent: dict[int, set[bytes]] = {}
        for block, _, payload in cluster.payloads[first:]:
            sent.setdefault(block, set()).add(payload)
        assert set(map(len, sent.values())) == {1}
    assert applied_once(cluster, 1)


def test_nothing_is_put_or_loaded_while_a_step_is_in_flight() -> None:
    cluster = FakeCluster()
    with device_of("cupy") as (device, _), client_of(cluster) as client:
        model = model_of(client)
        link = Link(model, device)
        cluster.hold = True
        future = link.push_pull(random_gradients(SHAPES))
        for call in (link.load, link.pull, link.push_pull, lambda: link.put("a", None)):
            with pytest.raises(errors.FailedPrecondition, match="in flight"):
                call()
        with cluster.lock:
            cluster.hold = False
            cluster.set_view(cluster.models[1])
        future.result()
        link.load()


def test_nothing_is_put_into_a_model_that_was_closed_or_whose_step_is_handed_over() -> None:
    with device_of("cupy") as (device, world), client_of(FakeCluster()) as client:
        model = model_of(client)
        link = Link(model, device)
        gradients = {name: late(world, device, array) for name, array in random_gradients(SHAPES).items()}
        opened = model.begin()
        with pytest.raises(errors.FailedPrecondition, match=r"step 0 is being handed over; finish\(\) it first"):
            link.put("a", gradients["a"])
        for name, array in gradients.items():
            opened.put(name, array)
        opened.finish().result()
        link.put("a", gradients["a"])
        model.close()
        with pytest.raises(errors.Closed):
            link.put("b", gradients["b"])


def test_what_is_not_finite_is_told_as_without_a_device() -> None:
    cluster = FakeCluster()
    with device_of("cupy") as (device, world), client_of(cluster) as client:
        model = model_of(client, codec="fp16")
        link = Link(model, device)
        gradients = random_gradients(SHAPES)
        gradients["b"][5] = 70_000
        with pytest.raises(errors.NonFinite) as refused:
            link.push_pull({name: late(world, device, gradients[name]) for name in SHAPES})
        with pytest.raises(errors.NonFinite) as without:
            model.push_pull(gradients)
        assert str(refused.value) == str(without.value)
        assert refused.value.tensor == "b"
        assert model.counts.rejected == 2
        assert len(cluster.frames) == BLOCKS, "initial values, and nothing else"
        gradients["b"][5] = 1
        link.push_pull({name: late(world, device, gradients[name]) for name in SHAPES}).result()


def test_norms_are_judged_on_the_host_with_the_same_bits() -> None:
    gradients = random_gradients(SHAPES)
    payloads = []
    for linked in (False, True):
        cluster = FakeCluster()
        with device_of("cupy") as (device, world), client_of(cluster) as client:
            model = model_of(client, codec="bf16", clip_norm=0.5)
            if linked:
                future = Link(model, device).push_pull({n: late(world, device, gradients[n]) for n in SHAPES})
            else:
                future = model.push_pull(gradients)
            future.result()
            assert model.counts.clipped == 1
        payloads.append(sorted(cluster.payloads))
    assert payloads[0] == payloads[1]


def test_frozen_tensors_are_sent_as_empty_blocks() -> None:
    cluster = FakeCluster()
    with device_of("cupy") as (device, world), client_of(cluster) as client:
        model = model_of(client, frozen=["a"])
        link = Link(model, device)
        gradients = random_gradients(SHAPES)
        first = len(cluster.payloads)
        link.push_pull({name: late(world, device, gradients[name]) for name in ("b", "c")}).result()
        weights = link.load()
        assert device.to_host(weights["a"]).tobytes() == initial()["a"].tobytes()
        expected = initial()["b"] - LEARNING_RATE * gradients["b"]
        assert device.to_host(weights["b"]).tobytes() == expected.tobytes()
    assert len([payload for *_, payload in cluster.payloads[first:] if payload]) == BLOCKS - 1


# --- scaled losses


def test_a_step_that_overflows_is_skipped_by_all_ranks_and_halves_the_scale() -> None:
    cluster = FakeCluster()
    with device_of("cupy") as (device, world), client_of(cluster) as client:
        model = model_of(client, non_finite=NonFinite.SKIP, codec="bf16")
        link = Link(model, device, loss_scale=LossScale(2.0**15, grow_after=2))
        before = {name: device.to_host(array) for name, array in link.pull().items()}
        assert link.loss_scale == 2**15
        true = {name: np.full(shape, 3.0, np.float32) for name, shape in SHAPES.items()}

        def step() -> None:
            with np.errstate(over="ignore"):
                halves = {name: (array * link.loss_scale).astype(np.float16) for name, array in true.items()}
            link.push_pull({name: late(world, device, array) for name, array in halves.items()}).result()
            link.load()

        step()  # 3 * 2^15 is infinite in float16
        assert (model.counts.skipped, link.loss_scale, model.step) == (1, 2**14, 1)
        assert all(device.to_host(link.weights[name]).tobytes() == before[name].tobytes() for name in SHAPES)
        step()
        assert (model.counts.skipped, link.loss_scale) == (1, 2**14)
        expected = before["b"] - LEARNING_RATE * true["b"]
        assert device.to_host(link.weights["b"]).tobytes() == expected.tobytes()
        step()  # two finite ones
        assert link.loss_scale == 2**15
    assert applied_once(cluster, 3)


def test_a_scale_needs_a_model_that_skips() -> None:
    with client_of(FakeCluster()) as client:
        model = model_of(client)
        with pytest.raises(errors.InvalidArgument, match=r"NonFinite\.SKIP"):
            Link(model, "numpy", loss_scale=LossScale())


@pytest.mark.parametrize("values", [{"value": 3.0}, {"value": 2.0**30}, {"least": 0.0}, {"grow_after": 0}])
def test_a_scale_is_a_power_of_two_within_bounds(values: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidArgument, match=next(iter(values))):
        LossScale(**values)


def test_a_scale_stays_within_bounds() -> None:
    scale = LossScale(2.0, grow_after=1, most=4.0)
    for skipped, value in ((False, 4.0), (False, 4.0), (True, 2.0), (True, 1.0), (True, 1.0)):
        scale.update(skipped)
        assert scale.value == value


# --- fault 32

CALLS = ("pinned", "malloc", "launch gather", "launch encode_bf16", "download", "record", "wait_event", "synchronize")


@pytest.mark.parametrize("call", [one for one in CALLS if one not in ("pinned", "malloc")])
@pytest.mark.parametrize("after", [0, 1])
def test_an_error_of_the_device_sends_no_part_of_the_step(call: str, after: int) -> None:
    """FAULTS 32. After memory ran out the device works on, and the same step is computed again."""
    cluster = FakeCluster()
    gradients = random_gradients(SHAPES)
    with device_of("cupy") as (device, world), client_of(cluster) as client:
        model = model_of(client, codec="bf16")
        link = Link(model, device)
        link.pull()
        world.fail(call, CUDARuntimeError(2), after)
        failed: list[tuple[bool, int, bool]] = []
        for _ in range(2):
            try:
                for name in reversed(SHAPES):
                    link.put(name, late(world, device, gradients[name]))
                future = link.push_pull(step=0)
                break
            except errors.DeviceOutOfMemory as error:
                failed.append((error.retryable, len(cluster.frames), "CUDARuntimeError" in error.cause))
        future.result()
        weights = link.load()
        expected = initial()["b"] - LEARNING_RATE * rounded("bf16", gradients["b"])
        assert device.to_host(weights["b"]).tobytes() == expected.tobytes()
    none = (call, after) in (("launch gather", 1), ("launch encode_bf16", 1))  # there is one bucket
    assert failed == ([] if none else [(True, BLOCKS, True)])
    assert applied_once(cluster, 1)


@pytest.mark.parametrize("kernel", ["gather", "encode_bf16", "download"])
def test_a_device_that_is_lost_in_a_step_sends_no_part_of_it(kernel: str) -> None:
    """FAULTS 32: the kernel is given and fails when it runs; whoever waits is told, and nothing was sent."""
    cluster = FakeCluster()
    gradients = random_gradients(SHAPES)
    with client_of(cluster) as client:
        with device_of("cupy") as (device, world):
            model = model_of(client, codec="bf16")
            link = Link(model, device)
            world.fail(f"execute {kernel}", CUDARuntimeError(719))
            with pytest.raises(errors.DeviceFailed) as lost:
                link.push_pull({name: late(world, device, gradients[name]) for name in SHAPES})
            assert not isinstance(lost.value, errors.DeviceOutOfMemory)
            assert not lost.value.retryable
            assert "start it again" in lost.value.hint
            with pytest.raises(errors.DeviceFailed):
                link.pull()
            assert (len(cluster.frames), model.step) == (BLOCKS, 0)
            model.close()
        # What takes the rank up again computes that very step.
        with device_of("cupy") as (device, world):
            model = model_of(client, codec="bf16")
            link = Link(model, device)
            link.pull()
            link.push_pull({name: late(world, device, gradients[name]) for name in SHAPES}, step=0).result()
    assert applied_once(cluster, 1)


def test_a_device_that_is_lost_while_weights_are_loaded_leaves_the_step_applied() -> None:
    cluster = FakeCluster()
    with device_of("cupy") as (device, world), client_of(cluster) as client:
        model = model_of(client)
        link = Link(model, device)
        link.push_pull(random_gradients(SHAPES)).result()
        world.lost = CUDARuntimeError(100)
        with pytest.raises(errors.DeviceFailed):
            link.load()
        assert model.step == 1
    assert applied_once(cluster, 1)


@pytest.mark.parametrize("call", ["malloc", "pinned"])
def test_a_link_that_finds_no_memory_leaves_none_behind(call: str) -> None:
    with device_of("cupy") as (device, world), client_of(FakeCluster()) as client:
        model = model_of(client)
        for after in range(3):
            world.fail(call, CUDARuntimeError(2), after)
            with pytest.raises(errors.DeviceOutOfMemory):
                Link(model, device)
        world.queues.clear()
        gc.collect()
        assert world.used == 0
        world.limit = 1000
        with pytest.raises(errors.DeviceOutOfMemory, match="Out of memory"):
            Link(model, device)
        world.limit = None
        Link(model, device)


# --- without a link: arrays of CuPy given to a model


@pytest.mark.parametrize("codec", CODECS)
def test_a_dictionary_of_cupys_arrays_is_gathered_and_encoded_on_the_device(codec: str) -> None:
    cluster, plain = FakeCluster(), FakeCluster()
    with client_of(plain) as client:
        model = model_of(client, codec=codec)
        for step in range(2):
            expected = model.push_pull(random_gradients(SHAPES, step)).result()
    with device_of("cupy") as (device, world), client_of(cluster) as client:
        model = model_of(client, codec=codec)
        for step in range(2):
            gradients = random_gradients(SHAPES, step)
            got = model.push_pull({name: late(world, device, gradients[name]) for name in reversed(SHAPES)}).result()
        assert got.digest() == expected.digest()
        assert world.counts["launch gather"] == 2
        assert world.counts["copy pageable"] == 0


def test_all_that_is_wrong_with_arrays_on_a_device_is_named_at_once() -> None:
    with device_of("cupy") as (device, _), client_of(FakeCluster()) as client:
        model = model_of(client)
        wrong = {"a": np.zeros((2, 2), np.float32), "x": np.zeros(1, np.float32), "b": np.zeros(3000, np.int32)}
        with pytest.raises(errors.InvalidArgument) as refused:
            model.push_pull({name: device.from_host(array) for name, array in wrong.items()})
        assert refused.value.cause == (
            "tensor 'a': expected shape (40, 50), received shape (2, 2); "
            "tensor 'x': expected one of the model, received an unknown one; "
            "tensor 'b': expected float16, float32 or float64, received int32; "
            "tensor 'c': expected shape (1,), received nothing"
        )


def test_a_device_without_memory_is_tried_again_from_nothing() -> None:
    cluster = FakeCluster()
    with device_of("cupy") as (device, world), client_of(cluster) as client:
        model = model_of(client)
        gradients = {name: device.from_host(array) for name, array in random_gradients(SHAPES).items()}
        world.fail("launch gather", CUDARuntimeError(2))
        with pytest.raises(errors.DeviceOutOfMemory):
            model.push_pull(gradients)
        assert len(cluster.frames) == BLOCKS
        model.push_pull(gradients).result()
    assert applied_once(cluster, 1)


def test_weights_are_put_into_arrays_of_the_callers_by_one_kernel_after_what_reads_the_old_ones() -> None:
    cluster = FakeCluster()
    with device_of("cupy") as (device, world), client_of(cluster) as client:
        model = model_of(client)
        kinds = {"a": np.float32, "b": np.float64, "c": np.float32}
        out = {name: device.from_host(np.zeros(SHAPES[name], kinds[name])) for name in SHAPES}
        read: list[float] = []
        device.xp.cuda.get_current_stream().queue.give("evaluation", lambda: read.append(float(out["b"]._a.sum())))
        got = model.pull(out=out)
        assert read == [0.0]
        for step in range(2):
            got = model.push_pull(gradients_of(device, step), out=out).result()
            for name, array in out.items():
                assert device.to_host(array).tobytes() == got[name].astype(kinds[name]).tobytes(), name
        assert world.counts["launch scatter"] == 3
        # Arrays that do not lie in one piece are copied one by one.
        strided = {**out, "b": device.from_host(np.zeros(6000, np.float64))[::2]}
        assert np.array_equal(model.pull(out=strided)["b"], strided["b"]._a)
        assert world.counts["launch scatter"] == 3


def gradients_of(device: Any, step: int) -> dict[str, Any]:
    return {name: device.from_host(array) for name, array in random_gradients(SHAPES, step).items()}
