"""A step that is handed over tensor by tensor, so that its first blocks are on their way while later gradients are
still computed.

    step = model.begin()
    step.put("head.weight", gradient)           # as soon as it is there
    weights = step.finish().result()            # when all were put

Owns which tensors of one step are there. Invariants: a tensor is put once; a block is sent when every tensor in it was
put, behind all blocks before it (RULES S5), and its bytes then rest until the step is done; what has to look at the
whole gradient before the first block is sent (a norm, a step that is skipped: S10) holds everything back until
`finish`. Must not know: streams, threads of whoever computes.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from paramserver.wire.frames import PushKind
from paramserver.wire.layout import Layout
from worker.arrays import on_host
from worker.engine import Engine
from worker.errors import FailedPrecondition, InvalidArgument
from worker.futures import Future
from worker.intake import Intake
from worker.tensors import Tensors

if TYPE_CHECKING:
    from worker.model import Model


class Pieces:
    """Which blocks are whole. Counts elements; every tensor comes once."""

    def __init__(self, layout: Layout) -> None:
        self._size = layout.block_elements_full
        self._left = [layout.block_elements(block) for block in range(layout.blocks)]
        self._given: set[int] = set()

    def add(self, place: slice, *, zeros: bool = False) -> list[int]:
        """The blocks that are whole now, with these elements of the flat space. `zeros`: it is none that was given."""
        size = self._size
        whole = []
        for block in range(place.start // size, (place.stop - 1) // size + 1):
            low, high = max(place.start, block * size), min(place.stop, (block + 1) * size)
            self._left[block] -= high - low
            if not zeros:
                self._given.add(block)
            if not self._left[block]:
                whole.append(block)
        return whole

    @property
    def open(self) -> list[int]:
        """Blocks that are not whole."""
        return [block for block, left in enumerate(self._left) if left]

    @property
    def empty(self) -> list[int]:
        """Blocks of which nothing was given."""
        return [block for block in range(len(self._left)) if block not in self._given]


class Handover:
    """Made by `Model.begin`. Any thread may put; every tensor once."""

    def __init__(
        self, model: Model, *, step: int, intake: Intake, layout: Layout, buffer: Tensors, streamed: bool
    ) -> None:
        self.step = step
        """The step that is pushed."""
        self.buffer = buffer
        """name -> float32 array of the tensor's shape: `put(name)` takes what was written here."""
        self.streamed = streamed
        """Blocks are sent as they are whole; else all of them when `finish` is called."""
        self._model = model
        self._intake = intake
        self._pieces = Pieces(layout)
        self._places = {tensor.name: layout.tensor_slice(at) for at, tensor in enumerate(layout.spec.tensors)}
        self._missing = dict.fromkeys(self._places)
        self._lock = threading.Lock()
        self._finished = False
        for name in intake.frozen:
            del self._missing[name]
        frozen = [self._places[name] for name in intake.frozen]
        self._ready = {block for place in frozen for block in self._pieces.add(place, zeros=True)}
        self._empty = set(self._ready)  # blocks of frozen tensors alone: there is nothing to wait for
        for place in frozen:
            buffer.flat[place] = 0

    @property
    def missing(self) -> tuple[str, ...]:
        """Tensors that were not put yet, in the model's order."""
        return tuple(self._missing)

    def put(self, name: str, gradient: Any = None) -> None:
        """This rank's gradient of one tensor: it is final, and its blocks are sent as soon as they are whole.

        gradient: an array of the tensor's shape, of any kind of float: NumPy, CuPy, anything with DLPack; it is copied.
            None: what was written into `buffer[name]`.

        Raises InvalidArgument (an unknown or frozen tensor, another shape, no floats), NonFinite (by policy; this
        tensor was not put, those before it were and stay so), FailedPrecondition (put before, or finished), Closed,
        Forked."""
        self._model._check()
        with self._lock:
            self._check(name)
            if gradient is not None:
                self._copy(name, gradient)
            place = self._places[name]
            if self.streamed:
                self._intake.judge_piece(self.buffer.flat, place, self.step)
            del self._missing[name]
            whole = self._pieces.add(place)
            if whole and self.streamed:
                engine = self._model._engine
                self._model._client._loop.call_soon(lambda: engine.hand_over(whole))

    def finish(self, *, partial: bool = False, timeout: float | None = None) -> Future[Tensors]:
        """All is put. The future has the weights after the step, as that of `push_pull`.

        partial: what was not put counts as zeros; blocks of which nothing was put are sent as empty.
        timeout: seconds until the future ends with DeadlineExceeded; None: the client's. Nothing is lost then:
            `Model.wait()` goes on with the step.

        Raises at once: InvalidArgument (it names what is missing or wrong; the step stays open), NonFinite and
        NormTooLarge where they are judged by the whole gradient (nothing was sent, and the step is given up),
        FailedPrecondition (finished before), Closed, Forked. With the future: what that of `push_pull` ends with."""
        self._model._check()
        with self._lock:
            if self._finished:
                raise FailedPrecondition(f"step {self.step} was finished before", "begin() another one")
            if self._missing and not partial:
                named = "; ".join(f"tensor {name!r}: expected a gradient, received nothing" for name in self._missing)
                raise InvalidArgument(named, "put() it, or finish(partial=True), which counts it as zeros")
            if len(self._missing) == len(self._places) - len(self._intake.frozen):
                raise InvalidArgument("no tensor was put", "expected at least one")
            budget = self._model._step_budget(timeout)
            for name in self._missing:
                self.buffer.flat[self._places[name]] = 0
            self._empty.update(self._pieces.empty)
            self._finished = True
            return self._model._finish(self, budget)

    def _arrays(self) -> Mapping[str, Any]:
        """What was put, as `push_pull` takes it."""
        if not self._missing and not self._intake.frozen:
            return self.buffer
        return {
            name: array
            for name, array in self.buffer.items()
            if name not in self._missing and name not in self._intake.frozen
        }

    # --- for Model, on the loop

    def _begin(self, engine: Engine, target: Tensors) -> None:
        engine.begin(self.step, PushKind.GRADIENT, self.buffer.flat, target, self._empty, self._ready)

    def _end(self, engine: Engine) -> None:
        engine.hand_over(self._pieces.open)

    def _check(self, name: str) -> None:
        if self._finished:
            raise FailedPrecondition(f"tensor {name!r}: step {self.step} is finished", "begin() another one")
        if name in self._missing:
            return
        if name not in self._places:
            raise InvalidArgument(f"tensor {name!r}: expected one of the model, received an unknown one")
        if name in self._intake.frozen:
            raise InvalidArgument(f"tensor {name!r}: expected nothing, for it is frozen, received an array")
        raise FailedPrecondition(
            f"tensor {name!r} was put before in step {self.step}", "a gradient is final when it is put: add up first"
        )

    def _copy(self, name: str, gradient: Any) -> None:
        array, view = np.asarray(on_host({name: gradient})[name]), self.buffer[name]
        if array.shape != view.shape:
            raise InvalidArgument(f"tensor {name!r}: expected shape {view.shape}, received shape {array.shape}")
        if array.dtype.kind != "f":
            raise InvalidArgument(f"tensor {name!r}: expected floats, received {array.dtype}")
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, which is judged as such
            np.copyto(view, array, casting="same_kind")
