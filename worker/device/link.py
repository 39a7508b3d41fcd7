"""Between one handle and one device: weights there, gradients back.

    link = Link(model)
    weights = link.pull()
    while model.step < steps:
        ... link.put("w2", gradient) as soon as it is there, then "w1" ...
        link.push_pull().result()
        weights = link.load()

The same on NumPy and on CuPy. Invariants: what is being sent is not written, so nothing is put while a step is in
flight; a step that the device fails in is not sent at all (fault 32). Must not know: streams, kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from paramserver.wire.spec import NonFinite
from worker import device as devices
from worker.device.backend import Array
from worker.device.incoming import Incoming
from worker.device.outgoing import Outgoing
from worker.device.scaling import LossScale
from worker.errors import FailedPrecondition, InvalidArgument
from worker.futures import Future
from worker.model import Model
from worker.tensors import Tensors


class Link:
    """Of one open model; one thread at a time. Holds memory for the gradient and the weights on the device and in
    page-locked host memory, as long as it lives."""

    def __init__(
        self, model: Model, device: devices.Device | str = "auto", *, loss_scale: LossScale | None = None
    ) -> None:
        """device: what `worker.device.get` gave, or "auto", "numpy", "cupy".
        loss_scale: by which the loss is multiplied whose gradients are put; the model must have NonFinite.SKIP.

        Raises InvalidArgument, DeviceFailed, Closed, Forked."""
        self.device = devices.get(device) if isinstance(device, str) else device
        if loss_scale is not None and model.spec.non_finite is not NonFinite.SKIP:
            raise InvalidArgument(
                f"loss_scale, and a model whose policy is {model.spec.non_finite.name.lower()}",
                "open it with non_finite=NonFinite.SKIP: a step that overflows is left out by all ranks together",
            )
        self._model = model
        self._scale = loss_scale
        layout, backend = model._engine.layout, self.device.backend()
        self._outgoing = Outgoing(layout, model._intake.codec, backend, model._intake.frozen)
        self._incoming = Incoming(layout, model.weights_codec, backend)

    @property
    def weights(self) -> Mapping[str, Array]:
        """name -> float32 array of the device: what the last `load` or `pull` brought. The same arrays for good; to be
        read by the calling thread's current stream, and not written."""
        return self._incoming.weights

    @property
    def landed(self) -> Tensors:
        """What the last `pull` or step brought, in host memory as it came; not to be changed."""
        return self._incoming.landing

    @property
    def loss_scale(self) -> float:
        """By which to multiply the loss of this step; 1 without a scale."""
        return 1.0 if self._scale is None else self._scale.value

    def pull(self, *, timeout: float | None = None) -> Mapping[str, Array]:
        """`Model.pull()` to the device: `weights`, name -> float32 array of the tensor's shape.

        timeout: seconds; None: the client's.

        Raises as that, and DeviceFailed."""
        self._rest()
        self._incoming.idle()
        self._model.pull(timeout=timeout, out=self._incoming.landing)
        return self.load()

    def put(self, name: str, gradient: Any) -> None:
        """The gradient of one tensor: an array of its shape, float16, 32 or 64, as soon as what computes it was given
        to the calling thread's current stream. It is copied to the host while other gradients are computed, and must
        not be written until `push_pull`. In any order, each once a step; that of the backward pass is best.

        Raises InvalidArgument (the tensor by name; what was put before stays), FailedPrecondition (a step is in
        flight), DeviceFailed (what was put is forgotten), Closed, Forked."""
        self._begin()
        try:
            self._outgoing.put(name, gradient)
        except InvalidArgument:
            raise
        except BaseException:
            self._outgoing.close()
            raise

    def __setitem__(self, name: str, gradient: Any) -> None:
        """`put`: for what fills a dictionary of gradients."""
        self.put(name, gradient)

    def push_pull(
        self, gradients: Mapping[str, Any] | None = None, *, step: int | None = None, timeout: float | None = None
    ) -> Future[Tensors]:
        """`Model.push_pull` of what was put. Returns when all of it is in host memory and under way; `load()` when the
        future is done. What the future has is where weights are loaded from.

        gradients: all tensors at once, in place of what was put: name -> array of the tensor's shape.
        step: a check; it must be `Model.step`.
        timeout: seconds until the future ends with DeadlineExceeded; None: the client's.

        Raises as `Model.push_pull`, with nothing sent; InvalidArgument names what was not put; DeviceFailed: nothing of
        the step was sent, and what was put is forgotten."""
        model = self._model
        self._rest()
        try:
            if gradients is not None:
                self._begin()
                self._outgoing.put_all(gradients)
            # It waits for all that the device was given: the last `load` has read what the step's weights go to, too.
            staged = self._outgoing.take()
        except InvalidArgument:
            if gradients is not None:
                self._outgoing.close()
            raise
        except BaseException:
            self._outgoing.close()
            raise
        skipped = model.counts.skipped
        future = model.push_pull(cast(Any, staged), step=step, timeout=timeout, out=self._incoming.landing)
        if self._scale is not None:
            self._scale.update(model.counts.skipped > skipped)
        return future

    def load(self) -> Mapping[str, Array]:
        """`weights`, after a step whose future is done; they are there for what the current stream is given from now
        on. Raises DeviceFailed (the step was applied), FailedPrecondition (it is in flight)."""
        self._rest()
        return self._incoming.load()

    def discard(self) -> None:
        """Forget what was put. Raises DeviceFailed."""
        self._outgoing.discard()

    # --- parts

    def _begin(self) -> None:
        self._model._check()  # of each gradient: a device must not be touched in a process that forked
        if not self._outgoing.begun:
            self._rest()
            self._outgoing.factor = 1.0 / self.loss_scale

    def _rest(self) -> None:
        self._model._check()
        if self._model._handover is not None:
            raise FailedPrecondition(f"step {self._model.step} is being handed over", "finish() it first")
        if self._model._in_flight():
            raise FailedPrecondition(f"step {self._model.step} is still in flight", "wait() for it first")
