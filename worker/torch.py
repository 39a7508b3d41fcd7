"""PyTorch: an optimizer whose step is made by the servers, in place of one of `torch.optim`.

    optimizer = paramserver.torch.DistributedOptimizer(paramserver.adam(1e-3), net.named_parameters(), name="mine")

Hooks hand each gradient over as soon as the backward pass has accumulated it, the last layer's first, which is the
order in which the model is laid out: its blocks are on their way while earlier layers are still differentiated.
`step()` waits for the weights after the step and writes them into the parameters.

Owns what torch calls things: parameters, hooks, groups, buffers. Invariants: a gradient that was handed over is final,
and one that is changed afterwards is an error, never passed over; parameters change in `step()` alone, in place; the
first step of an optimizer is handed over as a whole, so that a script that changes gradients between `backward()` and
`step()` is told so before anything was sent. Must not know: blocks, streams, servers.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch

from paramserver.wire.spec import OptimizerSpec, sgd
from worker.arguments import given_fields
from worker.client import Client, connect
from worker.environment import rank_from_environment
from worker.errors import FailedPrecondition, InvalidArgument
from worker.futures import Future
from worker.handover import Handover
from worker.model import Model
from worker.tensors import Tensors

__all__ = ["DistributedOptimizer"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of parameters. The servers keep all in float32; half-precision parameters are their rounded copies."""
UNUSED = ("error", "zeros")
AGAIN = "close() this and make another optimizer of this name, which computes the step again"
CHANGED = "overlap=False hands gradients over in step(), changed or not; clip_norm= clips without that"


class DistributedOptimizer(torch.optim.Optimizer):
    """An optimizer for any training loop of PyTorch, schedulers included; the servers compute it, over the mean of all
    ranks' gradients. A context manager. `model` is the `paramserver.Model` behind it: `model.step` is the step to
    compute next, also after a restart."""

    def __init__(
        self,
        optimizer: OptimizerSpec,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        *,
        name: str,
        servers: str | Sequence[str] | Client | None = None,
        rank: int | None = None,
        ranks: int | None = None,
        overlap: bool = True,
        unused: str = "error",
        timeout: float | None = None,
        **options: Any,
    ) -> None:
        """Open the model and take a rank of it; then all parameters have the values of the model's current step: at
        first those of rank 0.

        optimizer: such as `paramserver.adam(1e-3)`. named_parameters: `net.named_parameters()`, of float32, bfloat16
            or float16, on any device; those that do not require a gradient are kept on the servers as they are.
        name: of the model. servers: as `paramserver.connect` takes them, or a `paramserver.Client`, which stays open
            when this is closed; None: what the environment says (`paramserver launch`).
        rank, ranks: this process's, and how many there are; None: the environment's, else 0 of 1.
        overlap: hand gradients over during `backward()`. False: in `step()`, all at once, which is for loops that
            change them in between (torch.nn.utils.clip_grad_norm_, GradScaler).
        unused: what a parameter without a gradient is: an "error", or "zeros".
        timeout: seconds, of every call; None: the client's, 30 unless it says otherwise.
        options: those of `Client.model`: codec, weights_codec, log_codec, clip_norm, reject_norm, reduction,
            non_finite, block_bytes.

        Raises InvalidArgument (it names each tensor), SpecMismatch (the model exists and is another, or another rank
        has other shapes), RankTaken, Unavailable, DeadlineExceeded."""
        self._parameters = checked(named_parameters)
        if unused not in UNUSED:
            raise InvalidArgument(f"unused {unused!r}", f"expected one of {', '.join(map(repr, UNUSED))}")
        if not isinstance(optimizer, OptimizerSpec):
            raise InvalidArgument(
                f"optimizer {type(optimizer).__name__}", "expected sgd(), momentum() or adam() of paramserver"
            )
        self._unused, self._timeout = unused, timeout
        self._trained = [one for one, parameter in self._parameters.items() if parameter.requires_grad]
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[torch.Tensor, int]] = {}
        """Gradients of this step: the tensor, and how often it had been changed when it was accumulated."""
        self._open: Handover | None = None
        self._views: dict[str, torch.Tensor] = {}
        """Of the buffer that gradients are handed over in."""
        self._streaming = self._local = self._waiting = False
        self._hooks: list[Any] = []
        self._buffer: Tensors | None = None
        self._owns_client = not isinstance(servers, Client)
        self._client = servers if isinstance(servers, Client) else connect(servers, **given_fields(timeout=timeout))
        try:
            self.model, self._weights = self._opened(optimizer, name, rank, ranks, options)
        except BaseException:
            self._close_client()
            raise
        self._weight_views = {one: torch.from_numpy(array) for one, array in self._weights.items()}
        self._rate = _rate_of(self.model)
        super().__init__(list(self._parameters.values()), {"lr": self._rate, "initial_lr": optimizer.learning_rate})
        self._copy_in()
        # Where the whole gradient is looked at first, nothing can be sent during the backward pass.
        self._overlap = overlap and self.model._intake.piecewise
        if self._overlap:
            for one in self._trained:
                hook = functools.partial(self._accumulated, one)
                self._hooks.append(self._parameters[one].register_post_accumulate_grad_hook(hook))

    def _opened(
        self, optimizer: OptimizerSpec, name: str, rank: int | None, ranks: int | None, options: dict[str, Any]
    ) -> tuple[Model, Tensors]:
        rank, ranks = rank_from_environment(rank, ranks)
        frozen = [one for one in self._parameters if one not in self._trained]
        model = self._client.model(
            name,
            # The last layer's gradient comes first, and blocks are sent in the order in which they lie.
            {one: tuple(self._parameters[one].shape) for one in reversed(self._parameters)},
            optimizer=optimizer,
            ranks=ranks,
            rank=rank,
            initial=self._values if rank == 0 else None,
            frozen=frozen,
            timeout=self._timeout,
            **options,
        )
        try:
            return model, model.pull(timeout=self._timeout)
        except BaseException:
            model.close()
            raise

    def _values(self) -> dict[str, Any]:
        return {one: parameter.detach().cpu().float().numpy() for one, parameter in self._parameters.items()}

    # --- what training loops call

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, timeout: float | None = None) -> Any:
        """Push what the backward pass has left to push, wait until the step of all ranks was applied, and write the
        weights after it into the parameters. What `closure` returned, if one is given.

        timeout: seconds; None: the optimizer's. After DeadlineExceeded nothing is lost: `step()` again goes on with it.

        Raises InvalidArgument (a parameter has no gradient, or one that is sparse), NonFinite and NormTooLarge (by
        policy), FailedPrecondition (a gradient was changed after it was handed over, or a parameter that was frozen
        requires one now), DeadlineExceeded (it says what the step waits for), StepPassed, OutcomeUnknown, Closed,
        Forked."""
        timeout = self._timeout if timeout is None else timeout
        if self._waiting:
            loss, future = None, self.model.resume(timeout=timeout)
        else:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            self._check_frozen()
            with self._lock:
                future = self._finish(self._open, timeout) if self._open is not None else self._push(timeout)
                self._waiting = True
        future.result()
        self._waiting, self._streaming, self._open = False, self._overlap, None
        self._seen.clear()
        self._copy_in()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As of torch. Gradients of a backward pass that failed are forgotten with it, unless they are on their
        way. Raises nothing."""
        super().zero_grad(set_to_none)
        if self._open is None:
            self._seen.clear()

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in here only add up in the parameters' `grad`; the next one outside hands the sums over. They
        are sums: divide the loss by the number of passes for their mean. Raises nothing."""
        before, self._local = self._local, True
        try:
            yield
        finally:
            self._local = before

    def broadcast_parameters(self) -> None:
        """Write the weights of the current step into all parameters, which undoes what anybody else did to them. The
        constructor has done so. Raises FailedPrecondition (a step is in flight), DeadlineExceeded, Closed, Forked."""
        if self._open is not None or self._waiting:
            raise FailedPrecondition(f"step {self.model.step} is in flight", "step() first")
        self.model.pull(out=self._weights, timeout=self._timeout)
        self._copy_in()

    @torch.no_grad()
    def broadcast_buffers(self, module: torch.nn.Module) -> None:
        """Give every rank the persistent buffers that rank 0's module had when it first called this in the model's life
        (the model NAME.buffers keeps them); every rank is to call it. From then on buffers are each rank's own. Raises
        InvalidArgument for one that float32 does not hold exactly, SpecMismatch, DeadlineExceeded."""
        parameters = {one for one, _ in module.named_parameters(remove_duplicate=False)}
        state = module.state_dict(keep_vars=True)
        buffers = {one: value for one, value in state.items() if one not in parameters and torch.is_tensor(value)}
        if not buffers:
            return
        values = {one: buffer.detach().cpu().float() for one, buffer in buffers.items()}
        for one, value in values.items():
            if not torch.equal(value.to(buffers[one].dtype).nan_to_num(), buffers[one].cpu().nan_to_num()):
                raise InvalidArgument(
                    f"buffer {one!r}: expected values that float32 holds, received {buffers[one].dtype}"
                )
        with self._client.model(
            f"{self.model.name}.buffers",
            {one: tuple(value.shape) for one, value in values.items()},
            optimizer=sgd(1.0),
            initial={one: value.numpy() for one, value in values.items()} if self.model.rank == 0 else None,
            timeout=self._timeout,
        ) as kept:
            for one, array in kept.pull(timeout=self._timeout).items():
                buffers[one].copy_(torch.from_numpy(array))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """There is one group, whose learning rate is the model's. Raises FailedPrecondition for another one."""
        if self.param_groups:
            raise FailedPrecondition(
                "a second parameter group", "the servers have one learning rate a model; a second model takes another"
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copy ask for. Raises TypeError: a rank has one holder."""
        raise TypeError(
            "a DistributedOptimizer holds a rank and a connection, and can't be copied or pickled: "
            "keep its state_dict(), or the whole model with optimizer.model.save(path)"
        )

    def close(self) -> None:
        """Take the hooks off, let go of the rank, and close the connection unless it is the caller's. Raises
        FailedPrecondition in a callback of the client."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.model.close()
        self._close_client()

    def _close_client(self) -> None:
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> DistributedOptimizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- gradients

    @torch.no_grad()
    def _accumulated(self, name: str, parameter: torch.Tensor) -> None:
        """The hook: in the backward pass, on whichever thread that runs."""
        if self._local:
            return
        with self._lock:
            gradient = _dense(name, parameter.grad)
            if self._waiting:
                raise FailedPrecondition(
                    f"tensor {name!r}: received a gradient while the step before is in flight",
                    "step() again goes on with it; then compute the next gradients",
                )
            if name in self._seen:
                sent = self._open is not None
                step = self._open.step if self._open is not None else self.model.step
                raise FailedPrecondition(
                    f"tensor {name!r}: expected one gradient a step, received a second one in step {step}"
                    + (", of which a part is on its way" if sent else ""),
                    "no_sync() around all backward passes but the last, or overlap=False; after a backward pass that "
                    + ("failed, " + AGAIN if sent else "failed, zero_grad()"),
                )
            if self._streaming:
                if self._open is None:
                    self._tell_rate()
                    self._open = self.model.begin(out=self._weights)
                    self._view(self._open.buffer)
                self._views[name].copy_(gradient)
                self._open.put(name)
            # Last: what was refused was not handed over, and a gradient that is right may still come.
            self._seen[name] = (gradient, gradient._version)

    def _finish(self, opened: Handover, timeout: float | None) -> Future[Tensors]:
        """Of a step that hooks have begun."""
        self._check_unchanged("was already sent")
        self._fill(opened.missing)  # accumulated under no_sync(), set by hand, or unused
        for name in opened.missing:
            opened.put(name)
        return opened.finish(timeout=timeout)

    def _push(self, timeout: float | None) -> Future[Tensors]:
        """All of it at once. What is refused here leaves no trace."""
        try:
            self._check_unchanged("would have been sent")
            if self._buffer is None:
                self._buffer = self.model.buffer()
            self._view(self._buffer)
            self._fill(self._trained)
            self._tell_rate()
            whole = len(self._trained) == len(self._parameters)
            return self.model.push_pull(
                self._buffer if whole else {name: self._buffer[name] for name in self._trained},
                timeout=timeout,
                out=self._weights,
            )
        finally:
            self._seen.clear()

    def _view(self, buffer: Tensors) -> None:
        if self._buffer is not buffer or not self._views:
            self._buffer, self._views = buffer, {name: torch.from_numpy(array) for name, array in buffer.items()}

    def _fill(self, names: Sequence[str]) -> None:
        """The buffer, with what the parameters have in `grad`."""
        missing = [name for name in names if self._parameters[name].grad is None]
        if missing and self._unused == "error":
            named = "; ".join(f"tensor {name!r}: expected a gradient, received none" for name in missing)
            raise InvalidArgument(named, "was it part of the loss? unused='zeros' counts it as zeros")
        for name in names:
            if name in missing:
                self._views[name].zero_()
            else:
                self._views[name].copy_(_dense(name, self._parameters[name].grad))

    def _check_unchanged(self, was: str) -> None:
        changed = [
            name
            for name, (gradient, version) in self._seen.items()
            if self._parameters[name].grad is not gradient or gradient._version != version
        ]
        if changed:
            several = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise FailedPrecondition(
                f"tensor {changed[0]!r}{several}: its gradient was changed between backward() and step(), and {was} "
                "as backward() left it",
                CHANGED if self._open is None else f"{CHANGED}; {AGAIN}",
            )

    def _check_frozen(self) -> None:
        unfrozen = [name for name in self.model._intake.frozen if self._parameters[name].requires_grad]
        if unfrozen:
            several = f" (and {len(unfrozen) - 1} more)" if len(unfrozen) > 1 else ""
            raise FailedPrecondition(
                f"tensor {unfrozen[0]!r}{several}: expected a frozen parameter, as it was when the optimizer was made, "
                "received one that requires a gradient",
                AGAIN,
            )

    # --- weights, and the learning rate

    @torch.no_grad()
    def _copy_in(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(self._weight_views[name])

    def _tell_rate(self) -> None:
        """Rank 0 has not pushed the step yet, so no block is past it, and the rate holds for all of it."""
        rate = float(self.param_groups[0]["lr"])
        if self.model.rank != 0 or np.float32(rate) == np.float32(self._rate):
            return
        try:
            self.model.set_learning_rate(rate, from_step=self.model.step, timeout=self._timeout)
        except FailedPrecondition:
            # An earlier life of this rank had pushed a part of the step, with what it had told before.
            self.model.set_learning_rate(rate, timeout=self._timeout)
        self._rate = rate


def checked(named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> dict[str, torch.nn.Parameter]:
    """Raises InvalidArgument with all that is wrong."""
    try:
        found = [(name, parameter) for name, parameter in named_parameters]
    except (TypeError, ValueError):
        raise InvalidArgument("named_parameters", "expected net.named_parameters(): pairs of name and tensor") from None
    problems = []
    for name, parameter in found:
        if not isinstance(name, str) or not torch.is_tensor(parameter):
            raise InvalidArgument("named_parameters", "expected net.named_parameters(): pairs of name and tensor")
        where = f"tensor {name!r}: expected"
        if parameter.dtype not in DTYPES:
            problems.append(
                f"{where} float32, bfloat16 or float16, received {str(parameter.dtype).removeprefix('torch.')}"
            )
        elif parameter.layout is not torch.strided:
            problems.append(f"{where} a dense tensor, received {str(parameter.layout).removeprefix('torch.')}")
        elif not parameter.is_leaf:
            problems.append(f"{where} a parameter (a leaf), received what was computed from one")
        elif parameter.is_meta:
            problems.append(f"{where} values, received a tensor on the meta device")
    names = [name for name, _ in found]
    problems += [f"tensor {name!r}: expected once, received twice" for name in set(names) if names.count(name) > 1]
    if problems:
        raise InvalidArgument("; ".join(problems))
    if not found:
        raise InvalidArgument("named_parameters: none", "expected net.named_parameters(), which can be read once only")
    return dict(found)


def _dense(name: str, gradient: torch.Tensor | None) -> torch.Tensor:
    if gradient is None:
        raise InvalidArgument(f"tensor {name!r}: expected a gradient, received none")
    if gradient.layout is not torch.strided:
        raise InvalidArgument(
            f"tensor {name!r}: expected a dense gradient, received {str(gradient.layout).removeprefix('torch.')}",
            "of an Embedding: sparse=False",
        )
    return gradient


def _rate_of(model: Model) -> float:
    """The learning rate of the model's next step."""
    rate, since = model.spec.optimizer.learning_rate, 0
    for step, value in model._engine.model.rates:
        if since <= step <= model.step:
            rate, since = value, step
    return rate
