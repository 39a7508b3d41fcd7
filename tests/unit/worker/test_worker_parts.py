"""Part of a model by tensor name: which blocks travel, and what they hold."""

from __future__ import annotations

import numpy as np
import pytest

import paramserver
from paramserver.wire.layout import Layout
from paramserver.wire.spec import ModelSpec, TensorSpec, sgd
from tests.unit.worker.fake import LEARNING_RATE, FakeCluster
from tests.unit.worker.helpers import BLOCK_BYTES, BLOCKS, SHAPES, client_of, gradients, initial, model_of
from worker import errors
from worker.parts import Parts

# Of 1024 elements a block: a is 0 to 1999, b 2000 to 4999, c 5000.
FIRST, LAST = {0, 1}, {4}


def parts() -> Parts:
    tensors = tuple(TensorSpec(name, shape) for name, shape in SHAPES.items())
    return Parts(Layout(ModelSpec("m", tensors, sgd(0.1), 1, block_bytes=BLOCK_BYTES)))


def test_the_blocks_of_a_part_and_what_else_lies_there() -> None:
    found = parts().of(["a"])
    assert found.blocks == FIRST
    assert found.spans == (slice(0, 2048),)
    assert found.gaps == (slice(2000, 2048),)
    ends = parts().of(["c", "a"])
    assert ends.names == ("a", "c")
    assert ends.blocks == FIRST | LAST
    assert ends.spans == (slice(0, 2048), slice(4096, 5001))
    assert ends.gaps == (slice(2000, 2048), slice(4096, 5000))
    whole = parts().of(SHAPES)
    assert (len(whole.blocks), whole.gaps) == (BLOCKS, ())


@pytest.mark.parametrize(
    ("names", "words"), [([], "at least one"), (["x", "a"], "'x'.*unknown"), ("a", "not one string")]
)
def test_a_part_that_there_is_not(names: list[str] | str, words: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=words):
        parts().of(names)


def test_a_pull_of_some_tensors_asks_for_their_blocks() -> None:
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        model.push_pull(gradients(0)).result()
        cluster.pulls.clear()
        found = model.pull(["a"])
        assert list(found) == ["a"]
        assert np.array_equal(found["a"], initial()["a"] - LEARNING_RATE * gradients(0)["a"])
        assert (found.version, found.versions, found.whole) == (1, (1, 1), False)
        asked = {request.group: list(request.blocks) for _, request in cluster.pulls}
        assert asked == {1: [], 2: [1]}, "all of group 1's, and one of group 2's two"
        assert found.digest() == model.pull(["a"]).digest() != model.pull(["b"]).digest()
        assert model.pull(["a"], out=found) is found
        with pytest.raises(errors.InvalidArgument, match="these names"):
            model.pull(["b"], out=found)
        with pytest.raises(errors.InvalidArgument, match="these names"):
            model.push_pull(gradients(1), out=found)
        assert model.pull(["c"], if_newer_than=1) is None


def test_a_push_of_some_tensors_sends_the_rest_as_empty() -> None:
    """RULES S6: every block is touched; one that nobody has anything for changes nothing but its version."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client)
        model.push_pull({name: np.full(shape, 100, np.float32) for name, shape in SHAPES.items()}).result()
        before = model.pull()
        cluster.payloads.clear()
        after = model.push_pull({"c": np.ones(1, np.float32)}, partial=True).result()
        sent = {block: len(payload) for block, _, payload in cluster.payloads}
        assert sent == {0: 0, 1: 0, 2: 0, 3: 0, 4: 4 * 905}
        assert after.versions == (2,) * BLOCKS
        assert np.array_equal(after["a"], before["a"])
        assert np.array_equal(after["b"], before["b"]), "zeros beside c, not what was pushed before"
        assert after["c"][0] == before["c"][0] - LEARNING_RATE
        with pytest.raises(errors.InvalidArgument, match="nothing"):
            model.push_pull({"c": np.ones(1, np.float32)})
        with pytest.raises(errors.InvalidArgument, match=r"'c'.*shape \(1,\).*shape \(2,\)"):
            model.push_pull({"c": np.ones(2, np.float32)}, partial=True)
        with pytest.raises(errors.InvalidArgument, match="'x'"):
            model.push_pull({"x": np.ones(2, np.float32)}, partial=True)


def test_what_is_not_sent_is_not_judged() -> None:
    """What lies in the buffer from the last gradient is nobody's business."""
    with client_of(FakeCluster()) as client:
        model = model_of(client)
        bad = gradients(0)
        bad["a"][0, 0] = np.nan
        with pytest.raises(errors.NonFinite):
            model.push_pull(bad)
        assert model.push_pull({"c": np.ones(1, np.float32)}, partial=True).result().version == 1
        with pytest.raises(errors.NonFinite, match="tensor 'c' at element 0"):
            model.push_pull({"c": np.full(1, np.nan, np.float32)}, partial=True)


def test_a_spec_may_be_used_again() -> None:
    cluster = FakeCluster()
    spec = paramserver.Spec(SHAPES, sgd(0.5), block_bytes=BLOCK_BYTES, mode=paramserver.bsp())
    with client_of(cluster) as client:
        for name in ("one", "two", "one"):
            model = client.model(name, spec, rank=0, initial=initial)
            assert (model.spec.name, paramserver.Spec.of(model.spec)) == (name, spec)
        assert len(cluster.models) == 2
        with pytest.raises(errors.InvalidArgument, match="ranks, mode beside a Spec"):
            client.model("one", spec, ranks=1, mode=paramserver.bsp())
    assert hash(spec) == hash(paramserver.Spec.of(spec.named("x")))
    assert spec != paramserver.Spec(SHAPES, sgd(0.25), block_bytes=BLOCK_BYTES)


def test_a_mode_that_there_is_not() -> None:
    with client_of(FakeCluster()) as client:
        with pytest.raises(errors.InvalidArgument, match=r"mode 'asp'.*expected paramserver.bsp\(\)"):
            client.model("m", SHAPES, optimizer=sgd(0.5), mode="asp")


def test_frozen_tensors_keep_their_bits() -> None:
    """Blocks of theirs alone are empty; in one that they share they are zeros, whatever was there before."""
    cluster = FakeCluster()
    with client_of(cluster) as client:
        model = model_of(client, frozen=["a"])
        before = model.pull()
        trained = {name: array for name, array in gradients(0).items() if name != "a"}
        buffer = model.buffer()
        buffer.flat[:] = 1
        model.accumulate(trained)
        for given in (None, trained, buffer):
            cluster.payloads.clear()
            after = model.push_pull(given).result()
            sent = {block: payload for block, _, payload in cluster.payloads}
            assert sent[0] == b""
            assert np.frombuffer(sent[1], np.float32).tolist() == [0.0] * (2000 - 1024) + [1.0] * (2048 - 2000)
            assert after["a"].tobytes() == before["a"].tobytes()
        assert np.array_equal(after["b"], before["b"] - 3 * LEARNING_RATE)
        assert (buffer.flat == 1).all()
        with pytest.raises(errors.InvalidArgument, match="'a': expected nothing, for it is frozen"):
            model.push_pull(gradients(0))
        with pytest.raises(errors.InvalidArgument, match="'a': expected nothing"):
            model.push_pull({"a": gradients(0)["a"]}, partial=True)
        with pytest.raises(errors.InvalidArgument, match=r"'c'.*nothing"):
            model.push_pull({"b": trained["b"]})
        assert model.push_pull({"b": trained["b"]}, partial=True).result().version == 4


@pytest.mark.parametrize(
    ("frozen", "decay", "words"),
    [
        (["x"], 0.0, "'x'"),
        (list(SHAPES), 0.0, "all tensors"),
        (["a"], 0.5, "blocks 1 hold trained tensors, too, where weight decay 0.5"),
        (["a", "b"], 0.5, "blocks 4 hold"),
    ],
)
def test_what_cannot_be_frozen(frozen: list[str], decay: float, words: str) -> None:
    with client_of(FakeCluster()) as client:
        with pytest.raises(errors.InvalidArgument, match=words):
            model_of(client, frozen=frozen, optimizer=sgd(0.5, weight_decay=decay))


def test_with_weight_decay_frozen_tensors_have_blocks_of_their_own() -> None:
    shapes = {"frozen": (2048,), "trained": (10,)}
    values = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    with client_of(FakeCluster()) as client:
        model = client.model(
            "m",
            shapes,
            optimizer=sgd(0.5, weight_decay=0.1),
            rank=0,
            initial=values,
            block_bytes=BLOCK_BYTES,
            frozen=["frozen"],
        )
        assert model.push_pull({"trained": np.ones(10)}).result()["frozen"].min() == 1
