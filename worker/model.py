"""A model as training code sees it: `push`, `push_pull`, `begin`, `accumulate`, `wait`, `step`; pulls are `reading.py`.

Owns the checks of what a call was given, and which step is in flight. Invariants: what was handed to `push_pull` is
copied unless it is a buffer of `buffer()`, which must then rest until the step is done; one step at a time; a process
that forked is told so by every call. Must not know: streams, leaders.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Coroutine, Mapping
from numbers import Real
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from paramserver.wire.spec import Codec, ModelSpec, rate_problems
from worker.arguments import check_version
from worker.arrays import Destination
from worker.engine import Engine, Flight
from worker.errors import FailedPrecondition, InvalidArgument, ParameterServerError
from worker.futures import Future
from worker.handover import Handover
from worker.intake import Counts, Intake, Norms
from worker.parts import Part, Parts
from worker.reading import Pulls
from worker.retry import CLOSE_TIMEOUT_S, Budget
from worker.saving import SAVE_TIMEOUT_S, Progress, Saved
from worker.tensors import Pushed, Tensors
from worker.within import within

if TYPE_CHECKING:
    from worker.client import Client

T = TypeVar("T")


class Model(Pulls):
    """Made by `Client.model`; a context manager. One thread at a time."""

    def __init__(self, *, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._engine: Engine
        self._intake: Intake
        self._parts: Parts
        self._closed = False
        self._spreads = {}
        self._lock = threading.Lock()
        self._pending: Future[Any] | None = None
        self._handover: Handover | None = None
        """The step that is handed over tensor by tensor."""
        self._given: Tensors | None = None
        self._target_open: Tensors
        self._destination: Destination | None = None
        """Where the caller wants the weights of the step in flight, too."""

    async def _start(
        self, described: Any, rank: int | None, *, norms: Norms, frozen: Collection[str], **parts: Any
    ) -> None:
        self._engine = Engine(model=described, **parts)
        self._intake = Intake(self._engine.layout, self._engine.codec, norms, frozen)
        self._parts = Parts(self._engine.layout)
        if rank is not None:
            await self._engine.claim(rank)

    # --- what it is

    @property
    def spec(self) -> ModelSpec:
        """Tensors (name, shape, float32), optimizer, ranks and policies."""
        return self._engine.model.spec

    @property
    def rank(self) -> int | None:
        """The rank that this handle pushes as; None: it only pulls."""
        return self._engine.rank

    @property
    def step(self) -> int:
        """The next step to compute: from `pull()`, and to be given to `push_pull`. After a restart it is where the
        model stands. Raises Forked."""
        self._client._check_process()
        return self._engine.step

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups that hold this model's blocks."""
        return tuple(shard.group for shard in self._engine.model.shards)

    @property
    def codec(self) -> Codec:
        """Of the gradients that this handle pushes."""
        return self._engine.codec

    @property
    def weights_codec(self) -> Codec:
        """Of the weights that come to this handle."""
        return self._engine.weights_codec

    @property
    def counts(self) -> Counts:
        """How many gradients of this handle were `rejected`, `skipped` and `clipped`."""
        return self._intake.counts

    # --- pushing

    def buffer(self) -> Tensors:
        """Arrays to write gradients into, uninitialized: name -> float32 array of the tensor's shape. `push_pull` sends
        them from where they are, without a copy. They must not change until the step is done. Raises Closed, Forked."""
        self._check()
        return Tensors(self._engine.layout)

    def push_pull(
        self,
        gradients: Mapping[str, Any] | None = None,
        *,
        step: int | None = None,
        partial: bool = False,
        timeout: float | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> Future[Tensors]:
        """Push this rank's gradient of the current step; the future has the weights after it: applied, and on the disks
        of a majority.

        gradients: name -> array of the tensor's shape, of any kind of float: NumPy, CuPy, anything with DLPack. They
            are copied, whatever their strides, unless they are `Tensors` such as those of `buffer()`, which must then
            not change until the step is done. None: the sum of what was given to `accumulate`.
        step: a check; it must be `self.step`.
        partial: tensors may be missing. Blocks without any tensor that is given are sent as empty, at the cost of a few
            bytes: where all ranks' are, only their version changes. What is missing in another block counts as zeros.
        timeout: seconds until the future ends with DeadlineExceeded; None: the client's. Nothing is lost then: `wait()`
            goes on with the step.
        out: `Tensors` that are filled and returned in place of new ones, not to be read until the step is done; or
            name -> array of the caller's (float32 or float64, NumPy or CuPy), filled beside what is returned.

        Raises at once, with nothing sent: InvalidArgument (it names each tensor, what was expected and what came),
        NonFinite and NormTooLarge (by policy), FailedPrecondition (a step is in flight; another step; no rank), Closed,
        Forked. With the future: RankTaken, StepPassed, OutcomeUnknown (the handle was closed meanwhile),
        DeadlineExceeded."""
        self._check()
        with self._lock:
            current = self._ready(step)
            if step is not None and step != current:
                raise FailedPrecondition(f"step {step} cannot be pushed", f"the next step is {current}")
            budget = self._step_budget(timeout)
            target, destination = self._target(out, None)
            taken = self._intake.take(gradients, partial=partial, step=current)
            if target.flat is taken.gradient:
                raise InvalidArgument("out is the gradient's own buffer", "pass another one")
            engine, empty = self._engine, self._empty(taken.part)

            async def work() -> Tensors:
                engine.begin(current, taken.kind, taken.gradient, target, empty)
                return await self._weights(await engine.wait(budget), budget)

            self._destination = destination
            self._pending = future = self._future(work(), budget)
            return future

    def begin(self, *, step: int | None = None, out: Mapping[str, Any] | None = None) -> Handover:
        """Open the current step, for gradients that come one by one: what `put` is given is sent while others are still
        computed, in the order in which the tensors lie (of a backward pass: the last layer's first). Until its
        `finish` is done no other step can be pushed.

        step, out: as of `push_pull`.

        Each tensor is judged by itself when it is put: a step of which a part was sent cannot be taken back. With
        `clip_norm`, `reject_norm` or non_finite=SKIP, which look at the whole gradient, nothing is sent before `finish`
        (`Handover.streamed` is False).

        Raises InvalidArgument, FailedPrecondition (a step is in flight; another step; no rank), Closed, Forked, and
        what ended the handle's last step."""
        return self._client._result(self._begin(step, out))

    def _begin(self, step: int | None, out: Mapping[str, Any] | None) -> Future[Handover]:
        self._check()
        with self._lock:
            current = self._ready(step)
            if step is not None and step != current:
                raise FailedPrecondition(f"step {step} cannot be begun", f"the next step is {current}")
            if self._intake.accumulated:
                raise InvalidArgument(
                    f"a step that is handed over, and {self._intake.accumulated} gradients that were accumulated",
                    "push_pull() pushes their sum, discard() forgets it",
                )
            engine, intake = self._engine, self._intake
            target, destination = self._target(out, None)
            if self._given is None:
                self._given = Tensors(engine.layout)
            if target is self._given:
                raise InvalidArgument("out is the gradient's own buffer", "pass another one")
            streamed = intake.piecewise
            opened = Handover(
                self, step=current, intake=intake, layout=engine.layout, buffer=self._given, streamed=streamed
            )

            async def work() -> Handover:
                if streamed:
                    opened._begin(engine, target)
                self._handover, self._target_open = opened, target
                return opened

            self._destination = destination
            self._pending = future = self._client._call(
                work(), self._client.timeout, f"step {current} of {self.name!r}"
            )
            return future

    def _finish(self, opened: Handover, budget: Budget) -> Future[Tensors]:
        with self._lock:
            self._handover, target = None, self._target_open
            engine = self._engine
            taken = None
            if opened.streamed:
                self._client._loop.call_soon(lambda: opened._end(engine))  # also when the future is given up at once
            else:
                taken = self._intake.take(opened._arrays(), partial=bool(opened.missing), step=opened.step)

            async def work() -> Tensors:
                if taken is not None:
                    engine.begin(opened.step, taken.kind, taken.gradient, target, self._empty(taken.part))
                return await self._weights(await engine.wait(budget), budget)

            self._pending = future = self._future(work(), budget)
            return future

    def push(
        self,
        gradients: Mapping[str, Any] | None = None,
        *,
        step: int | None = None,
        partial: bool = False,
        timeout: float | None = None,
    ) -> Future[Pushed]:
        """Push this rank's gradient of the current step, and have no weights sent back; the future ends when every
        block was applied. `pull()` then gives the weights.

        gradients, partial, timeout: as of `push_pull`.
        step: `self.step`, or one that is done: that one is answered as a duplicate, with the current version, and
            nothing is sent.

        Raises as `push_pull`, at once and with the future."""
        self._check()
        with self._lock:
            current = self._ready(step)
            if step is not None and step < current:
                done = Pushed(step=step, version=current, duplicates=self._engine.layout.blocks, duplicate=True)
                return self._client._call(_value(done), self._timeout(timeout), f"step {step} of {self.name!r}")
            if step is not None and step != current:
                raise FailedPrecondition(f"step {step} cannot be pushed: too far ahead", f"the next step is {current}")
            budget = self._step_budget(timeout)
            taken = self._intake.take(gradients, partial=partial, step=current)
            engine, empty = self._engine, self._empty(taken.part)

            async def work() -> Pushed:
                engine.begin(current, taken.kind, taken.gradient, None, empty)
                flight = await engine.wait(budget)
                return Pushed(
                    step=current,
                    version=current + 1,
                    duplicates=flight.duplicates,
                    duplicate=flight.duplicates == engine.layout.blocks,
                )

            self._destination = None
            self._pending = future = self._future(work(), budget)
            return future

    def accumulate(self, gradients: Mapping[str, Any], *, weight: float = 1.0) -> int:
        """Add `weight * gradients` to a sum that `push_pull()` or `push()` without gradients then push: for batches
        that are computed in pieces. How many are in the sum now.

        gradients: as of `push_pull`, of all tensors; only read. The sum is ((w0 * g0 + w1 * g1) + w2 * g2) + ..., in
            the order of the calls, element by element, each operation rounded to float32 (no multiplication where the
            weight is 1): the same calls give the same bits.
        weight: 1 / n of n pieces makes it the mean.

        Raises InvalidArgument, FailedPrecondition (a step is in flight: `wait` for it), Closed, Forked."""
        self._check()
        with self._lock:
            if self._in_flight():
                raise FailedPrecondition(f"step {self._engine.step} is still in flight", "wait() for it first")
            self._intake.add(gradients, weight)
            return self._intake.accumulated

    def discard(self) -> None:
        """Forget what was accumulated. Raises Closed, Forked."""
        self._check()
        self._intake.discard()

    def wait(self, timeout: float | None = None) -> Tensors:
        """The weights after the step that was pushed last, for `timeout` seconds (None: the client's); goes on with a
        step whose budget was used up. After `push` they are pulled. Raises FailedPrecondition (nothing was pushed) and
        what the futures of `push_pull` raise."""
        return self.resume(timeout=timeout).result()

    def resume(self, *, timeout: float | None = None) -> Future[Tensors]:
        """`wait` as a future, with a new budget of `timeout` seconds. Raises FailedPrecondition, Closed, Forked."""
        self._check()
        budget = self._step_budget(timeout)
        engine = self._engine

        async def work() -> Tensors:
            return await self._weights(await engine.wait(budget), budget)

        with self._lock:
            if self._handover is not None:
                raise FailedPrecondition(f"step {self._handover.step} is not handed over", "finish() it first")
            if self._pending is None:
                raise FailedPrecondition("no step was pushed", "push_pull() first")
            self._pending = future = self._future(work(), budget)
            return future

    def why(self) -> str:
        """What the step in flight waits for, in one line; empty when nothing is known to hold it up. Raises Closed,
        Forked."""
        self._check()
        return self._engine.why()

    def absent_ranks(self, timeout: float | None = None) -> Future[list[int]]:
        """Ranks that no worker holds now; the step waits for them. Group 0 is asked, which may take its time, up to
        `timeout` seconds. Raises Closed, Forked; Unavailable and DeadlineExceeded with the future."""
        self._check()
        return self._client._call(self._engine.absent_ranks(), self._timeout(timeout), f"absent ranks of {self.name!r}")

    # --- the learning rate

    def set_learning_rate(self, value: float, from_step: int | None = None, *, timeout: float | None = None) -> int:
        """Change the learning rate: every update of `from_step` and the steps behind it, in every block, uses `value`
        (rounded to float32), until the next change's step. Any handle may ask, once for all ranks; changes may lie
        ahead, and a second one of the same step takes the place of the first. None: the next step that can be.

        Returns the step from which it holds, when all servers know it: a later one than was asked for where training
        went past that meanwhile. While the groups agree no block goes past that step, so one that is near costs a
        moment's wait, one that is far ahead nothing.

        Raises InvalidArgument (NaN, negative, beyond float32), FailedPrecondition (a step that is past; it names the
        earliest there can be), NotFound, DeadlineExceeded: it may have been changed then, or be about to; Closed,
        Forked."""
        return self._client._result(self._set_learning_rate(value, from_step, timeout))

    def _set_learning_rate(self, value: float, from_step: int | None, timeout: float | None) -> Future[int]:
        self._check()
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InvalidArgument(f"value {value!r}", "expected a number, the learning rate")
        if problems := rate_problems("value", float(value)):
            raise InvalidArgument(str(problems[0]))
        if from_step is not None:
            check_version("from_step", from_step)
        work = self._engine.set_learning_rate(float(value), from_step)
        what = f"learning rate of {self.name!r}"
        return self._client._call(work, self._timeout(timeout), what, lambda: self._engine.catalogue_problem)

    # --- all of it

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        timeout: float = SAVE_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> Saved:
        """`Client.save` of this model. timeout: seconds. Raises what that does."""
        return self._client._result(self._saving(path, step, timeout, progress))

    def _saving(
        self,
        path: str | os.PathLike[str],
        step: int | None,
        timeout: float,
        progress: Progress | None,
    ) -> Future[Saved]:
        self._check()
        return self._client._saving(self.name, path, step, timeout, progress)

    # --- the end

    def close(self, *, release: bool = True) -> None:
        """Let go of the rank (`release`: others may have it at once; otherwise when its lease ends) and the streams. A
        step in flight ends with OutcomeUnknown. A second call does nothing, nor does one in a forked child. Raises
        nothing."""
        if not self._closed and self._client._own_process:
            self._client._dropped(self)
            self._close(release)

    def _close(self, release: bool) -> None:
        self._closed = True
        try:
            closing = self._client._call(self._engine.close(release), CLOSE_TIMEOUT_S, f"closing {self.name!r}")
            self._client._result(closing)
        except ParameterServerError:
            pass  # nobody answered in time: the lease ends by itself

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- parts

    def _step_budget(self, timeout: float | None) -> Budget:
        return Budget(self._timeout(timeout), f"step {self._engine.step} of {self.name!r}")

    def _ready(self, step: int | None) -> int:
        """The step that may be pushed now."""
        current = self._engine.step
        if step is not None:
            check_version("step", step)
        if self._handover is not None:
            raise FailedPrecondition(f"step {current} is being handed over", "finish() it first")
        if self._in_flight():
            raise FailedPrecondition(f"step {current} is still in flight", "wait() for it first")
        if self.rank is None:
            raise FailedPrecondition(f"model {self.name!r} was opened without a rank", "open it with rank=...")
        return current

    def _in_flight(self) -> bool:
        """Pushed and not over: a future that ended for lack of time leaves its step in flight."""
        if self._handover is not None:
            return True
        return self._pending is not None and (not self._pending._job.done() or self._engine.in_flight)

    async def _weights(self, flight: Flight, budget: Budget) -> Tensors:
        weights = flight.tensors
        if weights is None:
            weights = Tensors(self._engine.layout)
            await within(budget, self._engine.pull(weights, version=flight.step + 1), self._engine.why)
        if self._destination is not None:
            self._destination.fill(weights)
        return weights

    def _empty(self, part: Part | None) -> Collection[int]:
        return () if part is None else frozenset(range(self._engine.layout.blocks)) - part.blocks

    def _future(self, work: Coroutine[Any, Any, T], budget: Budget) -> Future[T]:
        return self._client._future(work, budget, f"step {self._engine.step} of {self.name!r}", self._engine.why)


async def _value(value: T) -> T:
    return value
