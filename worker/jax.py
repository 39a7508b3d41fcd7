"""JAX: pytrees in and out, and an optimizer in optax's manner whose arithmetic is done by the servers.

    opt = paramserver.jax.optimizer(client, "mine", paramserver.adam(1e-3), ranks=2, rank=0)
    state = opt.init(params)
    params = opt.pull()  # the model's: the initial values of rank 0, or those of the step where training stands
    while state.step < 1000:
        grads = gradient(params, batch(state.step))  # jitted, as ever
        params, state = opt.step(grads, state)

Owns the names of leaves and the way of arrays between JAX and NumPy. A leaf's name is its path, joined by dots:
{"dense": {"kernel": w}} is "dense.kernel", [w] is "0", a field of a NamedTuple or a dataclass its name; a slash in a
key (Haiku) is a dot, too; a tree that is one array alone is "value". Invariants: what `step` and `pull` give are the
servers' bits, on the devices that the parameters of `init` were on; nothing here runs inside `jit`, and says so; JAX is
imported when it is first needed. Must not know: steps in flight, blocks, servers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from paramserver.wire.spec import OptimizerSpec
from worker.client import Client
from worker.environment import rank_from_environment
from worker.errors import FailedPrecondition, InvalidArgument
from worker.model import Model

__all__ = ["Optimizer", "State", "named", "optimizer", "rebuilt"]

ALONE = "value"
"""The name of a tree that is a single array."""
MASTER_HINT = (
    "the servers keep float32: convert the parameters once (x.astype(jnp.float32)), and compute in what you like"
)


class State(NamedTuple):
    """What `init`, `step` and `update` hand on: a pytree of one number. What the optimizer remembers (momentum,
    moments) is with the servers."""

    step: int
    """The next step to compute; `step` and `update` refuse the state of another one."""


def optimizer(
    client: Client,
    name: str,
    optimizer: OptimizerSpec,
    *,
    ranks: int | None = None,
    rank: int | None = None,
    **options: Any,
) -> Optimizer:
    """An optimizer that the servers run for the model of that name. Nothing is asked of them before `init`.

    client: what `paramserver.connect` gave.
    optimizer: such as `paramserver.adam(1e-3)`.
    rank, ranks: this process's, from 0, and how many push each step; None: the environment's (`paramserver launch`,
        torchrun), else 0 of 1.
    options: as of `Client.model`: reduction, non_finite, block_bytes, log_codec, codec, weights_codec, clip_norm,
        reject_norm, frozen (names of leaves), timeout (seconds).

    Raises InvalidArgument (an option that there is not, a rank that is no number); what else is wrong comes with
    `init`."""
    unknown = sorted(set(options) - OPTIONS)
    if unknown:
        raise InvalidArgument(
            f"options {', '.join(map(repr, unknown))}", f"expected some of {', '.join(sorted(OPTIONS))}"
        )
    rank, ranks = rank_from_environment(rank, ranks)
    return Optimizer(client, name, {"optimizer": optimizer, "ranks": ranks, "rank": rank, **options})


OPTIONS = frozenset(inspect.signature(Client.model).parameters) - {
    *("self", "name", "tensors", "optimizer", "ranks", "rank", "initial", "mode")
}


class Optimizer:
    """Made by `optimizer`. It has `init` and `update`, as a GradientTransformation of optax has, so that
    `optax.chain(optax.clip_by_global_norm(1.0), opt)` and the like work with it as their last link; and `step`, which
    gives the servers' own bits. One thread at a time, outside `jit`. It lives as long as its client."""

    def __init__(self, client: Client, name: str, asked: dict[str, Any]) -> None:
        self._client = client
        self._name = name
        self._asked = asked
        self._frozen = frozenset(asked.get("frozen", ()))
        self._model: Model | None = None
        self._form: _Form

    @property
    def model(self) -> Model:
        """The model behind it: `set_learning_rate`, `save`, `counts`, `why`, `close` and all else. Raises
        FailedPrecondition before `init`."""
        if self._model is None:
            raise FailedPrecondition(f"model {self._name!r} is not open yet", "init(params) first")
        return self._model

    def init(self, params: Any) -> State:
        """Open the model, create it if need be, and take the rank; where training stands. A second call with
        parameters of the same names and shapes changes nothing.

        params: a pytree of float32 arrays. Those of rank 0 are the model's initial values, once in the model's life;
            the other ranks wait for them. `pull` says what it has. Their devices are where weights come back to.

        Raises InvalidArgument (it names each leaf that is no float32 array; a tracer: call it outside `jit`), and what
        `Client.model` raises: SpecMismatch, RankTaken, DeadlineExceeded, Closed, Forked."""
        form = _Form.of(params, "init")
        if self._model is not None:
            if form.shapes != self._form.shapes:
                raise FailedPrecondition(
                    f"model {self._name!r} was opened with other parameters: {_difference(self._form, form)}",
                    "make another optimizer for these, of another name",
                )
            return State(self._model.step)
        values = form.host(params, master=True)
        initial = values if self._asked["rank"] == 0 else None
        self._model = self._client.model(self._name, form.shapes, initial=initial, **self._asked)
        self._form = form
        return State(self._model.step)

    def pull(self, *, timeout: float | None = None) -> Any:
        """The model's weights, as a pytree like that of `init`, of float32 arrays of its shapes: of the step that
        is next.

        timeout: seconds; None: the client's. Raises FailedPrecondition (no `init`), DeadlineExceeded, Closed,
        Forked."""
        return self._form_of_model().tree(self.model.pull(timeout=timeout))

    def step(self, grads: Any | None, state: State, *, timeout: float | None = None) -> tuple[Any, State]:
        """Push this rank's gradient and wait for the step of all ranks: (params, state) after it. The weights are the
        servers' bits, whatever died meanwhile.

        grads: a pytree like that of `init`: the same names and shapes; of any kind of float, bfloat16 too: what is not
            float32 is converted to it on the host. They are copied before this returns or raises. None: the sum of what
            was given to `accumulate`.
        state: what `init`, `step` or `update` gave last.
        timeout: seconds; None: the client's. After DeadlineExceeded the step is not lost: `wait` goes on with it.

        Raises InvalidArgument (it names each leaf, what was expected and what came; a tracer: call it outside `jit`),
        NonFinite, NormTooLarge, FailedPrecondition (the state of another step; no `init`) with nothing sent;
        RankTaken, StepPassed, OutcomeUnknown, DeadlineExceeded, Closed, Forked."""
        weights = self._push_pull(grads, state, timeout, "step")
        return self._form.tree(weights), State(self.model.step)

    def update(self, grads: Any, state: State, params: Any = None) -> tuple[Any, State]:
        """As of optax: (updates, state), where `optax.apply_updates(params, updates)` are the new weights. The updates
        are the servers' weights minus `params`, in float32, so that the sum is rounded: what `step` gives has no such
        rounding, and is what ends with the same bits after a worker's restart. The roundings do not add up: each update
        starts from the `params` that it is given.

        grads, state: as of `step`. params: the weights that they were computed at, of the same names and shapes.
        Waits for the client's timeout. Raises what `step` raises; InvalidArgument without `params`."""
        if params is None:
            raise InvalidArgument("update() without params", "expected the weights that the updates are to be added to")
        form = _Form.of(params, "update")
        expected = self._form_of_model()
        if form.shapes != expected.shapes:
            raise InvalidArgument(f"params: {_difference(expected, form)}", "expected those of init()")
        form.check_there(form.leaves_of(params))  # before anything is sent: the updates are made from them
        weights = self._push_pull(grads, state, None, "update")
        pairs = zip(form.leaves(weights), form.leaves_of(params), strict=True)
        return form.treedef.unflatten([after - before for after, before in pairs]), State(self.model.step)

    def accumulate(self, grads: Any, *, weight: float = 1.0) -> int:
        """Add `weight * grads` to a sum that `step(None, state)` pushes; how many are in it now. As
        `Model.accumulate`.

        grads: as of `step`, names and shapes alike. Raises InvalidArgument, FailedPrecondition, Closed, Forked."""
        return self.model.accumulate(self._named(grads, "accumulate"), weight=weight)

    def wait(self, timeout: float | None = None) -> tuple[Any, State]:
        """Go on with a step whose time ran out, for `timeout` seconds (None: the client's): what `step` would have
        given, in the shapes of `init`. Raises FailedPrecondition (nothing was pushed), and what `step` raises."""
        weights = self.model.wait(timeout)
        return self._form.tree(weights), State(self.model.step)

    # --- parts

    def _form_of_model(self) -> _Form:
        """Raises FailedPrecondition before `init`."""
        _ = self.model
        return self._form

    def _named(self, grads: Any, call: str) -> dict[str, npt.NDArray[Any]]:
        self._form_of_model()
        arrays = _Form.of(grads, call).host(grads)
        return {name: array for name, array in arrays.items() if name not in self._frozen}

    def _push_pull(self, grads: Any | None, state: State, timeout: float | None, call: str) -> Any:
        gradients = None if grads is None else self._named(grads, call)
        return self.model.push_pull(gradients, step=_step_of(state, call), timeout=timeout).result()


def named(tree: Any) -> dict[str, npt.NDArray[Any]]:
    """Name -> array on the host, of each leaf of a pytree: what `Model.push_pull`, its twin in `paramserver.aio`, and
    `initial` take. Nothing is copied that lies in host memory; floats that NumPy has none of (bfloat16) become float32.

    Raises InvalidArgument: a tracer (call it outside `jit`), a leaf that is no array, two leaves of one name."""
    return _Form.of(tree, "named").host(tree)


def rebuilt(weights: Mapping[str, Any], like: Any) -> Any:
    """A pytree of the structure of `like`, of float32 arrays with the values of `weights` (what `pull` and `push_pull`
    give: name -> array of the leaf's shape), on the devices where the leaves of `like` are.

    Raises InvalidArgument, which names each leaf of which there is nothing, or another shape."""
    form = _Form.of(like, "rebuilt")
    problems = []
    for name, shape in form.shapes.items():
        if name not in weights:
            problems.append(f"leaf {name!r}: expected shape {shape}, received nothing")
        elif tuple(weights[name].shape) != shape:
            problems.append(f"leaf {name!r}: expected shape {shape}, received shape {tuple(weights[name].shape)}")
    if problems:
        raise InvalidArgument("; ".join(problems))
    return form.tree(weights)


def _step_of(state: Any, call: str) -> int:
    step = getattr(state, "step", None)
    if isinstance(step, _jax().core.Tracer):
        raise _traced(call, "the state")
    try:
        return int(step.__index__())  # type: ignore[union-attr]
    except (AttributeError, TypeError):
        raise InvalidArgument(
            f"state: {type(state).__name__}", "expected what init(), step() or update() gave"
        ) from None


class _Form:
    """Structure, names and shapes of a pytree, and the devices of its leaves."""

    def __init__(self, treedef: Any, shapes: dict[str, tuple[int, ...]], places: list[Any]) -> None:
        self.treedef = treedef
        self.shapes = shapes
        self._places = places
        """By leaf: a sharding; None where JAX is to choose."""

    @classmethod
    def of(cls, tree: Any, call: str) -> _Form:
        """Raises InvalidArgument."""
        jax = _jax()
        leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
        if not leaves:
            raise InvalidArgument(f"{call}(): a pytree without leaves", "expected one of arrays")
        shapes: dict[str, tuple[int, ...]] = {}
        paths: dict[str, str] = {}
        places, problems = [], []
        for path, leaf in leaves:
            name, shown = _name(path), jax.tree_util.keystr(path) or "the tree itself"
            if isinstance(leaf, jax.core.Tracer):
                raise _traced(call, f"leaf {name!r}")
            if name in shapes:
                problems.append(f"leaves {paths[name]} and {shown}: expected names of their own, received {name!r}")
            shape = getattr(leaf, "shape", () if isinstance(leaf, int | float) else None)
            if shape is None or isinstance(leaf, jax.ShapeDtypeStruct):
                problems.append(f"leaf {name!r}: expected an array, received {type(leaf).__name__}")
                continue
            shapes[name], paths[name] = tuple(shape), shown
            places.append(leaf.sharding if isinstance(leaf, jax.Array) and getattr(leaf, "committed", True) else None)
        if problems:
            raise InvalidArgument("; ".join(problems))
        return cls(treedef, shapes, places)

    def host(self, tree: Any, *, master: bool = False) -> dict[str, npt.NDArray[Any]]:
        """NumPy arrays by name. `master`: they are to be float32, for what comes back is. Raises InvalidArgument."""
        found, problems = {}, []
        leaves = self.leaves_of(tree)
        self.check_there(leaves)
        for leaf in leaves:
            if hasattr(leaf, "copy_to_host_async"):
                leaf.copy_to_host_async()  # all of them are under way before the first is waited for
        for name, leaf in zip(self.shapes, leaves, strict=True):
            try:
                array = np.asarray(leaf)
            except Exception as error:  # a key of random numbers, an array of other hosts
                problems.append(
                    f"leaf {name!r}: expected an array of floats, received one that cannot be read: {error}"
                )
                continue
            if array.dtype == object:
                problems.append(f"leaf {name!r}: expected an array of floats, received {type(leaf).__name__}")
                continue
            if master and array.dtype != np.float32:
                problems.append(f"leaf {name!r}: expected float32, received {array.dtype}")
            if array.dtype.kind == "V" and _jax().numpy.issubdtype(array.dtype, np.floating):
                array = array.astype(np.float32)
            found[name] = array
        if problems:
            raise InvalidArgument("; ".join(problems), MASTER_HINT if master else "")
        return found

    def check_there(self, leaves: list[Any]) -> None:
        """Raises InvalidArgument: an array that was given away (donate_argnums of `jit`) has no values any more."""
        gone = [
            f"leaf {name!r}: expected an array with values, received one that was deleted"
            for name, leaf in zip(self.shapes, leaves, strict=True)
            if hasattr(leaf, "is_deleted") and leaf.is_deleted()
        ]
        if gone:
            raise InvalidArgument("; ".join(gone), "was it donated to a jitted function? use what that returned")

    def leaves_of(self, tree: Any) -> list[Any]:
        return list(_jax().tree_util.tree_leaves(tree))

    def leaves(self, weights: Mapping[str, Any]) -> list[Any]:
        """Arrays of JAX in the order of the leaves. They may share memory with `weights`, which nobody writes again."""
        return list(_jax().device_put([weights[name] for name in self.shapes], self._places))

    def tree(self, weights: Mapping[str, Any]) -> Any:
        return self.treedef.unflatten(self.leaves(weights))


def _name(path: Iterable[Any]) -> str:
    parts = []
    for key in path:
        for field in ("key", "idx", "name"):  # DictKey and FlattenedIndexKey, SequenceKey, GetAttrKey
            if hasattr(key, field):
                parts.append(str(getattr(key, field)))
                break
        else:
            parts.append(str(key).strip("[]'\"."))
    return ".".join(parts).replace("/", ".") or ALONE


def _difference(expected: _Form, found: _Form) -> str:
    """What one has and the other has not, or has in another shape; in a line."""
    texts = []
    for name in {**expected.shapes, **found.shapes}:
        there, here = expected.shapes.get(name), found.shapes.get(name)
        if there is None:
            texts.append(f"leaf {name!r}: expected none of this name, received shape {here}")
        elif here != there:
            texts.append(
                f"leaf {name!r}: expected shape {there}, received {'nothing' if here is None else f'shape {here}'}"
            )
    return "; ".join(texts) or "the same leaves in another order"


def _traced(call: str, what: str) -> InvalidArgument:
    return InvalidArgument(
        f"{call}() inside jit, grad or another transformation: {what}: expected an array, received a tracer",
        f"jit what computes the gradients, and call {call}() with its results",
    )


def _jax() -> Any:
    try:
        import jax
    except ImportError as error:
        raise ImportError(f"paramserver.jax needs JAX ({error}): pip install 'paramserver[jax]'") from None
    return jax
