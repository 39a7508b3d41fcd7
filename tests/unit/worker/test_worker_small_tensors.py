"""Many small tensors share blocks: the same frames and the same bits as one tensor of their bytes."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from paramserver.catalogue.commands import COMMAND_BYTES_MAX, CreateModel, Envelope, decode, encode
from paramserver.rpc.catalogue import SPEC_BYTES_MAX
from paramserver.wire import protos
from paramserver.wire.layout import Layout
from paramserver.wire.protos import shared_spec_proto, spec_from_proto, spec_to_proto
from paramserver.wire.spec import TENSORS_MAX, ModelSpec, TensorSpec, sgd
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import client_of
from worker import catalogue

COUNT = 3000
STEPS = 3


def shapes() -> dict[str, tuple[int, ...]]:
    random = np.random.default_rng(8)
    return {
        f"layers.{i}.weight": tuple(int(n) for n in random.integers(1, 4, random.integers(0, 3))) for i in range(COUNT)
    }


def cut(flat: np.ndarray, into: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    ends = np.cumsum([int(np.prod(shape)) for shape in into.values()])[:-1]
    return {name: part.reshape(into[name]) for name, part in zip(into, np.split(flat, ends), strict=True)}


def test_the_same_frames_and_bits_as_one_tensor_of_the_same_bytes() -> None:
    small = shapes()
    elements = sum(int(np.prod(shape)) for shape in small.values())
    random = np.random.default_rng(9)
    drawn = [random.standard_normal(elements, dtype=np.float32) for _ in range(STEPS + 1)]
    seen, digests = [], []
    for parts in (lambda flat: cut(flat, small), lambda flat: {"all": flat}):
        cluster = FakeCluster()
        with client_of(cluster) as client:
            model = client.model(
                "m", parts(drawn[0]), optimizer=sgd(0.5), rank=0, initial=parts(drawn[0]), block_bytes=4096
            )
            found = [model.pull().digest()]
            for gradient in drawn[1:]:
                weights = model.push_pull(parts(gradient)).result()
                found.append(weights.digest())
            assert np.concatenate([np.ravel(part) for part in weights.values()]).tobytes() == weights.flat.tobytes()
            digests.append(found)
            seen.append((sorted(cluster.frames), sorted(cluster.payloads)))
    assert digests[0] == digests[1]
    assert seen[0] == seen[1]
    assert len(set(digests[0])) == STEPS + 1


def test_a_step_sets_no_cycle_collector_to_work() -> None:
    """What a step makes for each tensor is counted, not collected: walking it would cost more than the step."""
    place = Layout(ModelSpec("m", tuple(TensorSpec(f"t{i}", (2, 2)) for i in range(10_000)), sgd(0.1), 1))
    tensors = {f"t{i}": np.zeros((2, 2), np.float32) for i in range(10_000)}
    out = place.flatten(tensors)
    collections: list[str] = []

    def note(phase: str, info: dict[str, int]) -> None:
        collections.append(phase)

    gc.collect()
    gc.callbacks.append(note)
    try:
        for _ in range(3):
            place.flatten(tensors, out)
            place.unflatten(out)
    finally:
        gc.callbacks.remove(note)
    assert len(collections) <= 4


def test_a_spec_is_turned_into_a_message_and_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(message: object) -> ModelSpec:
        read.append("read")
        return spec_from_proto(message)

    monkeypatch.setattr(catalogue, "spec_from_proto", counted)
    cluster = FakeCluster()
    with client_of(cluster) as client:
        client.model("m", {"a": (3,)}, optimizer=sgd(0.5), rank=0, initial={"a": np.zeros(3)})
        assert len(cluster.calls) > 3
        assert read == ["read"]
        client.model("n", {"a": (4,)}, optimizer=sgd(0.5), rank=0, initial={"a": np.zeros(4)})
        assert read == ["read"] * 2, "another model is another spec"
        assert client.model("m").spec.tensors == (TensorSpec("a", (3,)),)
    spec = ModelSpec("m", (TensorSpec("a", (3,)),), sgd(0.5), 1)
    assert shared_spec_proto(spec) is shared_spec_proto(spec)
    assert shared_spec_proto(spec) == spec_to_proto(spec)
    others = [ModelSpec("m", (TensorSpec("a", (3,)),), sgd(0.5), 1 + i) for i in range(2 * protos.KNOWN_SPECS_MAX)]
    assert [shared_spec_proto(one).ranks for one in others] == [one.ranks for one in others]


@pytest.mark.parametrize(
    ("count", "name"), [(10_000, "transformer.encoder.layers.{}.attention.self.query.weight"), (TENSORS_MAX, "t{}")]
)
def test_specs_of_thousands_of_tensors_fit_into_a_command(count: int, name: str) -> None:
    spec = ModelSpec("m", tuple(TensorSpec(name.format(i), (64, 3)) for i in range(count)), sgd(0.1), 1)
    assert spec.validate() == []
    assert spec_to_proto(spec).ByteSize() <= SPEC_BYTES_MAX
    command = encode(Envelope(CreateModel(spec), 1, 1, b"d" * 32))
    assert len(command) <= COMMAND_BYTES_MAX
    assert decode(command).command == CreateModel(spec)
