"""What goes in and comes out of paramserver.jax, against the cluster in this process: names, devices, kinds of floats,
optax's manner, and bad input 5 to 8, 12, 13 and 15 of FAULTS.md, each message naming the leaf."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import paramserver
from paramserver import errors
from paramserver.jax import Optimizer, State, named, optimizer, rebuilt
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import client_of

RATE = 0.5
"""Of the cluster in this process, which knows plain SGD with this rate and nothing else."""


class Layer(NamedTuple):
    kernel: Any
    bias: Any


def params_of(value: float = 1.0) -> Any:
    value = float(value)
    return {
        "layers": [
            Layer(jnp.full((3, 4), value), jnp.full(4, value)),
            Layer(jnp.full((4, 2), value), jnp.full(2, value)),
        ],
        "scale": jnp.float32(value),
    }


NAMES = ["layers.0.kernel", "layers.0.bias", "layers.1.kernel", "layers.1.bias", "scale"]


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def client(cluster: FakeCluster) -> Iterator[paramserver.Client]:
    with client_of(cluster) as made:
        yield made


@pytest.fixture
def opt(client: paramserver.Client) -> Optimizer:
    return optimizer(client, "demo", paramserver.sgd(RATE))


def equal(tree: Any, value: float) -> bool:
    wanted = params_of(value)
    assert jax.tree.structure(tree) == jax.tree.structure(wanted)
    return all(
        isinstance(one, jax.Array) and one.dtype == jnp.float32 and np.array_equal(one, other)
        for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(wanted), strict=True)
    )


# --- in and out


def test_a_step_gives_the_servers_weights_as_the_tree_that_came(opt: Optimizer) -> None:
    state = opt.init(params_of())
    assert state == State(0)
    assert [tensor.name for tensor in opt.model.spec.tensors] == NAMES
    assert equal(opt.pull(), 1)
    params, state = opt.step(params_of(2), state)
    assert equal(params, 1 - RATE * 2)
    assert state == State(1)
    params, state = opt.step(params_of(4), state)
    assert equal(params, 1 - RATE * 6)


def test_initial_values_are_used_once_in_the_models_life(client: paramserver.Client, opt: Optimizer) -> None:
    _, state = opt.step(params_of(2), opt.init(params_of()))
    opt.model.close()
    again = optimizer(client, "demo", paramserver.sgd(RATE))
    assert again.init(params_of(77)) == state
    assert equal(again.pull(), 0)


def test_init_again_changes_nothing_and_with_other_parameters_is_refused(opt: Optimizer) -> None:
    _, state = opt.step(params_of(2), opt.init(params_of()))
    model = opt.model
    assert opt.init(params_of(5)) == state
    assert opt.model is model
    with pytest.raises(errors.FailedPrecondition, match=r"leaf 'scale': expected shape \(\), received shape \(1,\)"):
        opt.init({**params_of(), "scale": jnp.ones(1)})


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        (jnp.ones(3), ["value"]),
        ([jnp.ones(1), (jnp.ones(1), {"x": jnp.ones(1)})], ["0", "1.0", "1.1.x"]),
        ({"mlp/~/linear": {"w": np.ones(1)}, "none": None}, ["mlp.~.linear.w"]),
        ({7: jnp.ones(1)}, ["7"]),
    ],
)
def test_names_are_paths(tree: Any, names: list[str]) -> None:
    assert list(named(tree)) == names
    back = rebuilt(named(tree), like=tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert jax.tree.all(jax.tree.map(lambda one, other: np.array_equal(one, other), back, tree))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, np.float64])
def test_gradients_of_any_kind_of_float(opt: Optimizer, dtype: Any) -> None:
    state = opt.init(params_of())
    grads = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params_of(2))
    if dtype != np.float64:  # which JAX has only with jax_enable_x64
        grads = jax.tree.map(jnp.asarray, grads)
        assert grads["scale"].dtype == dtype
    assert equal(opt.step(grads, state)[0], 0)


def test_with_x64_gradients_are_rounded_and_parameters_refused(opt: Optimizer) -> None:
    single = params_of()
    x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with x64(True):
        double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params_of(2))
        assert double["scale"].dtype == jnp.float64
        with pytest.raises(errors.InvalidArgument, match=r"leaf 'layers.0.kernel': expected float32, received float64"):
            opt.init(double)
        state = opt.init(single)
        params, _ = opt.step(double, state)
    assert equal(params, 0)


def test_weights_may_be_donated_and_come_back_where_they_were(opt: Optimizer) -> None:
    device = jax.devices()[-1]
    params = jax.device_put(params_of(), device)
    state = opt.init(params)
    consume = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)
    for step in range(4):
        params, state = opt.step(params_of(1), state)
        assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {jax.sharding.SingleDeviceSharding(device)}
        kept = np.array(params["layers"][0].kernel)
        consume(params)
        assert np.array_equal(opt.pull()["layers"][0].kernel, kept), step


def test_what_was_donated_is_named_before_anything_is_sent(opt: Optimizer) -> None:
    state = opt.init(params_of())
    gone = params_of()
    gone["scale"].delete()  # as donate_argnums does
    words = "leaf 'scale': expected an array with values, received one that was deleted; was it donated"
    for call in (
        lambda: opt.step(gone, state),
        lambda: opt.accumulate(gone),
        lambda: opt.update(gone, state, params_of()),
        lambda: opt.update(params_of(), state, gone),
        lambda: named(gone),
    ):
        with pytest.raises(errors.InvalidArgument, match=words):
            call()
    assert opt.model.step == 0
    opt.step(params_of(), state)


def test_weights_of_a_step_keep_their_values_when_the_next_ones_come(opt: Optimizer) -> None:
    state = opt.init(params_of())
    first, state = opt.step(params_of(1), state)
    for _ in range(4):
        _, state = opt.step(params_of(1), state)
    assert equal(first, 1 - RATE)


def test_gradients_in_pieces(opt: Optimizer) -> None:
    state = opt.init(params_of())
    assert opt.accumulate(params_of(2), weight=0.5) == 1
    assert opt.accumulate(params_of(6), weight=0.5) == 2
    params, state = opt.step(None, state)
    assert equal(params, 1 - RATE * 4)


def test_frozen_leaves_keep_their_bits(client: paramserver.Client) -> None:
    opt = optimizer(client, "demo", paramserver.sgd(RATE), frozen=["scale"])
    params, _ = opt.step(params_of(2), opt.init(params_of(3)))
    assert params["scale"] == 3
    assert np.all(np.asarray(params["layers"][0].kernel) == 3 - RATE * 2)


def test_a_step_whose_time_ran_out_goes_on(cluster: FakeCluster, client: paramserver.Client) -> None:
    opt = optimizer(client, "demo", paramserver.sgd(RATE), ranks=2)
    state = opt.init(params_of())
    with pytest.raises(errors.DeadlineExceeded, match="step 0 of 'demo'"):
        opt.step(params_of(2), state, timeout=0.05)
    with client_of(cluster) as second:
        other = optimizer(second, "demo", paramserver.sgd(RATE), ranks=2, rank=1)
        other.init(params_of())
        pushed = other.model.push_pull(named(params_of(4)))
        params, state = opt.wait(timeout=5)
        assert equal(params, 1 - RATE * 3)
        assert state == State(1)
        assert equal(rebuilt(pushed.result(), like=params), 1 - RATE * 3)


# --- optax's manner


def test_update_is_what_optax_adds(opt: Optimizer) -> None:
    params = params_of()
    state = opt.init(params)
    updates, state = opt.update(params_of(2), state, params)
    assert equal(optax.apply_updates(params, updates), 0)
    assert state == State(1)


def test_it_is_the_last_link_of_a_chain(opt: Optimizer) -> None:
    chain = optax.chain(optax.clip_by_global_norm(1.0), opt)
    params = params_of()
    state = chain.init(params)
    updates, state = chain.update(params_of(100), state, params)
    elements = sum(leaf.size for leaf in jax.tree.leaves(params))
    for leaf in jax.tree.leaves(updates):
        assert np.allclose(leaf, -RATE / elements**0.5, rtol=1e-5)
    assert state[-1] == State(1)


def test_a_tree_of_another_kind_gets_updates_in_its_own_order(opt: Optimizer, client: paramserver.Client) -> None:
    class Reversed(NamedTuple):
        b: Any
        a: Any

    opt = optimizer(client, "pair", paramserver.sgd(RATE))
    state = opt.init({"a": jnp.zeros(2), "b": jnp.zeros(3)})
    params = Reversed(b=jnp.zeros(3), a=jnp.zeros(2))
    updates, _ = opt.update({"a": jnp.ones(2), "b": jnp.full(3, 2.0)}, state, params)
    assert np.array_equal(updates.a, [-RATE] * 2)
    assert np.array_equal(updates.b, [-RATE * 2] * 3)


def test_a_state_is_a_pytree(opt: Optimizer) -> None:
    state = opt.init(params_of())
    there = jax.tree.map(jnp.asarray, state)
    _, state = opt.step(params_of(1), there)
    assert state == State(1)


# --- inside jit


@pytest.mark.parametrize("call", ["init", "step", "update", "accumulate", "state", "named"])
def test_inside_jit_it_says_where_it_belongs(opt: Optimizer, call: str) -> None:
    state = opt.init(params_of())
    plain = params_of(1)
    calls: dict[str, Callable[[Any, Any], Any]] = {
        "init": lambda tree, _: optimizer(opt._client, "other", paramserver.sgd(RATE)).init(tree),
        "step": lambda tree, _: opt.step(tree, state),
        "update": lambda tree, _: opt.update(tree, state, plain),
        "accumulate": lambda tree, _: opt.accumulate(tree),
        "named": lambda tree, _: named(tree),
        "state": lambda _, there: opt.step(plain, there),
    }
    shown = "step" if call == "state" else call
    leaf = "the state" if call == "state" else "leaf 'layers.0.kernel'"
    words = rf"{shown}\(\) inside jit.*{leaf}: expected an array, received a tracer; jit what computes the gradients"
    with pytest.raises(errors.InvalidArgument, match=words):
        jax.jit(lambda tree, there: calls[call](tree, there) and 0)(params_of(), state)
    assert opt.model.step == 0
    assert equal(opt.step(params_of(2), state)[0], 0)


# --- rows of FAULTS.md

BAD = errors.InvalidArgument
KERNEL = r"'layers\.0\.kernel'"


def changed(leaf: str, value: Any) -> Any:
    tree = params_of(2)
    if leaf != "kernel":
        return {**tree, leaf: value}
    return {**tree, "layers": [tree["layers"][0]._replace(kernel=value), tree["layers"][1]]}


@pytest.mark.parametrize(
    ("leaf", "value", "kind", "words"),
    [
        ("kernel", jnp.ones((3, 4)).at[1, 2].set(jnp.nan), errors.NonFinite, f"step 0: nan in .*{KERNEL} at element 6"),
        ("scale", jnp.float32(jnp.inf), errors.NonFinite, "step 0: inf in tensor 'scale' at element 0"),
        ("kernel", jnp.ones((4, 3)), BAD, rf"{KERNEL}: expected shape \(3, 4\), received shape \(4, 3\)"),
        ("kernel", jnp.ones((3, 4), jnp.int32), BAD, f"{KERNEL}: expected floats, received int32"),
        ("scale", jax.random.key(0), BAD, "leaf 'scale': expected an array of floats, received"),
        ("scale", "1.0", BAD, "leaf 'scale': expected an array, received str"),
        ("scale", None, BAD, r"'scale': expected shape \(\), received nothing"),
        ("more", jnp.ones(1), BAD, "'more': expected a tensor of the model, received an unknown one"),
    ],
)
def test_rows_5_and_7_what_is_no_gradient_names_its_leaf(
    opt: Optimizer, leaf: str, value: Any, kind: type[Exception], words: str
) -> None:
    state = opt.init(params_of())
    grads = changed(leaf, value)
    for call in (lambda: opt.step(grads, state), lambda: opt.update(grads, state, params_of())):
        with pytest.raises(kind, match=words):
            call()
    with pytest.raises(errors.InvalidArgument, match=r"step\(\): a pytree without leaves"):
        opt.step({}, state)
    assert equal(opt.step(params_of(2), state)[0], 0), "nothing was sent"


def test_row_6_an_absurd_norm(client: paramserver.Client) -> None:
    opt = optimizer(client, "demo", paramserver.sgd(RATE), reject_norm=10.0)
    state = opt.init(params_of())
    with pytest.raises(errors.NormTooLarge, match="gradient of step 0: expected a norm of at most 10, received"):
        opt.step(params_of(1e20), state)
    assert opt.model.counts.rejected == 1


def test_row_7_created_again_with_other_leaves(client: paramserver.Client, opt: Optimizer) -> None:
    opt.init(params_of())
    other = optimizer(client, "demo", paramserver.sgd(RATE))
    with pytest.raises(errors.SpecMismatch) as caught:
        other.init({**params_of(), "scale": jnp.ones(7)})
    assert [one.shape for one in caught.value.asked.tensors if one.name == "scale"] == [(7,)]
    assert [one.shape for one in caught.value.found.tensors if one.name == "scale"] == [()]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (changed("scale", jnp.bfloat16(1)), r"leaf 'scale': expected float32, received bfloat16; .*astype\(jnp"),
        (changed("kernel", jnp.ones(3, jnp.int32)), r"leaf 'layers\.0\.kernel': expected float32, received int32"),
        (changed("scale", 1.5), "leaf 'scale': expected float32, received float64"),
        (changed("scale", jax.ShapeDtypeStruct((3,), jnp.float32)), "leaf 'scale': expected an array, received Sh"),
        (changed("scale", jnp.zeros((3, 0))), r"'scale'.*expected dimensions >= 1, received \(3, 0\)"),
        ({"a": {"b": jnp.ones(1)}, "a.b": jnp.ones(1)}, r"leaves \['a'\]\['b'\] and \['a\.b'\]: .*received 'a\.b'"),
        ({}, r"init\(\): a pytree without leaves"),
    ],
)  # fmt: skip
def test_row_7_parameters_that_there_are_not(opt: Optimizer, params: Any, words: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=words):
        opt.init(params)
    assert opt.init(params_of()) == State(0)


@pytest.mark.parametrize("key", ["", "x" * 201, "a\nb", "a\x1b[31m", "~x", ".x", "a\\b"], ids=ascii)
def test_row_8_names(client: paramserver.Client, opt: Optimizer, key: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"tensor .*: expected .*, received") as caught:
        opt.init({key: jnp.ones(1)} if key else {"": {"": jnp.ones(1)}})
    assert str(caught.value).isprintable()
    with pytest.raises(errors.InvalidArgument, match="name"):
        optimizer(client, key, paramserver.sgd(RATE)).init(params_of())


def test_row_12_the_state_of_another_step(opt: Optimizer) -> None:
    first = opt.init(params_of())
    opt.step(params_of(1), first)
    with pytest.raises(errors.FailedPrecondition, match=r"step 0 cannot be pushed; the next step is 1"):
        opt.step(params_of(1), first)
    with pytest.raises(errors.FailedPrecondition, match=r"step 7 cannot be pushed; the next step is 1"):
        opt.update(params_of(1), State(7), params_of())
    with pytest.raises(errors.InvalidArgument, match="step -1"):
        opt.step(params_of(1), State(-1))
    for state in (None, params_of(), optax.EmptyState(), State("3")):  # type: ignore[arg-type]
        with pytest.raises(errors.InvalidArgument, match=r"state: \w+; expected what init\(\)"):
            opt.step(params_of(1), state)


def test_row_12_params_that_are_not_those_of_the_model(opt: Optimizer) -> None:
    state = opt.init(params_of())
    with pytest.raises(errors.InvalidArgument, match=r"update\(\) without params; expected the weights"):
        opt.update(params_of(1), state)
    with pytest.raises(
        errors.InvalidArgument, match=r"params: leaf 'scale': expected shape \(\), received shape \(2,\)"
    ):
        opt.update(params_of(1), state, changed("scale", jnp.ones(2)))
    assert opt.model.step == 0


def test_row_13_a_rank_that_is_taken_or_is_none(cluster: FakeCluster, client: paramserver.Client) -> None:
    optimizer(client, "demo", paramserver.sgd(RATE), ranks=2).init(params_of())
    with client_of(cluster) as second:
        with pytest.raises(errors.RankTaken, match=r"rank 0 is taken by session 1, lease ends in"):
            optimizer(second, "demo", paramserver.sgd(RATE), ranks=2).init(params_of())
        with pytest.raises(errors.InvalidArgument, match=r"rank 2.*expected 0 to 1"):
            optimizer(second, "demo", paramserver.sgd(RATE), ranks=2, rank=2).init(params_of())


def test_row_13_ranks_from_the_environment(client: paramserver.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAMSERVER_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    optimizer(client, "demo", paramserver.sgd(RATE), rank=0).init(params_of())
    second = optimizer(client, "demo", paramserver.sgd(RATE))
    second.init(params_of(5))
    assert (second.model.rank, second.model.spec.ranks) == (1, 2)
    assert equal(second.pull(), 1), "initial values are those of rank 0"
    monkeypatch.setenv("PARAMSERVER_RANK", "first")
    with pytest.raises(errors.InvalidArgument, match="PARAMSERVER_RANK='first' in the environment; expected a whole"):
        optimizer(client, "demo", paramserver.sgd(RATE))


def test_row_15_deadlines(opt: Optimizer) -> None:
    state = opt.init(params_of())
    for call in (lambda given: opt.step(params_of(1), state, timeout=given), lambda given: opt.pull(timeout=given)):
        for timeout in (10 * 365 * 86_400, -1, float("nan")):
            with pytest.raises(errors.InvalidArgument, match=r"timeout of .*at most 86400 seconds"):
                call(timeout)


def test_before_init(opt: Optimizer) -> None:
    calls = (opt.pull, lambda: opt.step(params_of(), State(0)), lambda: opt.accumulate(params_of()), lambda: opt.model)
    for call in calls:
        with pytest.raises(errors.FailedPrecondition, match=r"'demo' is not open yet; init\(params\) first"):
            call()


def test_options_that_there_are_not(client: paramserver.Client) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"options 'lr'; expected some of block_bytes, clip_norm, codec"):
        optimizer(client, "demo", paramserver.sgd(RATE), lr=0.1)


def test_rebuilt_names_what_is_missing() -> None:
    words = r"leaf 'scale': expected shape \(\), received nothing.*|leaf 'layers.0.kernel': .*received shape \(1,\)"
    given = {name: value for name, value in named(params_of()).items() if name != "scale"}
    with pytest.raises(errors.InvalidArgument, match=words):
        rebuilt({**given, "layers.0.kernel": np.ones(1)}, like=params_of())
