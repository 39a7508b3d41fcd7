"""A model as training code sees it: `pull`, `push_pull`, `wait`, `step`.

Owns the gradient buffer and the checks that belong to the whole gradient, before its first frame (RULES S10).
Invariants: what was handed to `push_pull` is copied unless it is a buffer of `buffer()`, which must then rest until
the step is done; one step at a time. Must not know: streams, leaders.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from paramserver.wire.codecs import LARGEST, Codec, first_beyond
from paramserver.wire.errors import Refusal
from paramserver.wire.frames import PushKind
from paramserver.wire.layout import Flat
from paramserver.wire.spec import ModelSpec, NonFinite, rate_problems
from worker import errors
from worker.consistency import ANY, Consistency
from worker.engine import Engine
from worker.errors import Closed, FailedPrecondition, InvalidArgument, ParameterServerError
from worker.futures import Future
from worker.refusals import to_error
from worker.retry import CLOSE_TIMEOUT_S, Budget
from worker.tensors import Tensors
from worker.within import within

if TYPE_CHECKING:
    from worker.client import Client


class Model:
    """Made by `Client.model`; a context manager. One thread at a time."""

    def __init__(self, *, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._engine: Engine
        self._closed = False
        self._lock = threading.Lock()
        self._gradient: Flat | None = None
        self._pending: Future[Tensors] | None = None

    async def _start(self, described: Any, rank: int | None, **parts: Any) -> None:
        self._engine = Engine(model=described, **parts)
        if rank is not None:
            await self._engine.claim(rank)

    # --- what it is

    @property
    def spec(self) -> ModelSpec:
        return self._engine.model.spec

    @property
    def rank(self) -> int | None:
        return self._engine.rank

    @property
    def step(self) -> int:
        """The next step to compute: from `pull()`, and to be given to `push_pull`. After a restart, m of RULES S7."""
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

    # --- pulling

    @overload
    def pull(
        self,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: None = None,
        timeout: float | None = None,
        out: Tensors | None = None,
    ) -> Tensors: ...

    @overload
    def pull(
        self,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: int,
        timeout: float | None = None,
        out: Tensors | None = None,
    ) -> Tensors | None: ...

    def pull(
        self,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: int | None = None,
        timeout: float | None = None,
        out: Tensors | None = None,
    ) -> Tensors | None:
        """Weights by name.

        version: exactly this version of every block; waits for it. Raises Gone when it is no longer kept (two are).
        min_version: committed state, at least that new; blocks may differ by one (`Tensors.versions`).
        consistency: LINEARIZABLE, or bounded(age_ms): how new; blocks may differ by one. `Tensors.age_ms` says how old
            they were at most when they were read. Not with `version`, which has one value anywhere. While no leader of
            a group has a quorum the call goes on trying, and ends with DeadlineExceeded that says so.
        None of them: version `step` for a rank; for a handle without one the newest version that all blocks have.
        if_newer_than: None instead of weights, at the cost of a few bytes a block, when no block is above that version
            (such as `Tensors.version` of the last pull); not with `version`. Where some are, all are as without it.
        out: filled and returned in place of new arrays; not touched when there is nothing newer.
        """
        self._check()
        for field, value in (
            ("version", version),
            ("min_version", min_version),
            ("if_newer_than", if_newer_than),
        ):
            if value is not None and not 0 <= value < 2**62:
                raise InvalidArgument(f"{field} {value}", "expected 0 to 2^62 - 1")
        if version is not None and min_version is not None:
            raise InvalidArgument("both version and min_version", "pass one of them")
        if consistency is not None and not isinstance(consistency, Consistency):
            raise InvalidArgument(f"consistency {consistency!r}", "expected LINEARIZABLE or bounded(age_ms)")
        if version is not None and consistency is not None:
            raise InvalidArgument("both version and consistency", "an exact version has one value on every replica")
        if version is not None and if_newer_than is not None:
            raise InvalidArgument("both version and if_newer_than", "an exact version never is another")
        target = self._target(out)
        work = self._engine.pull(
            target,
            version=version,
            min_version=min_version,
            consistency=consistency or ANY,
            if_newer_than=if_newer_than,
        )
        return self._client._run(work, self._timeout(timeout), f"pull of {self.name!r}", self._engine.why)

    # --- pushing

    def buffer(self) -> Tensors:
        """Arrays to write gradients into: `push_pull` sends them from where they are, without a copy. They must not
        change until the step is done."""
        self._check()
        return Tensors(self._engine.layout)

    def push_pull(
        self,
        gradients: Mapping[str, Any],
        *,
        step: int | None = None,
        timeout: float | None = None,
        out: Tensors | None = None,
    ) -> Future[Tensors]:
        """Push this rank's gradient of the current step; the future has the weights after it.

        gradients: by name, of the model's shapes, any kind of float; copied, unless they are `Tensors` such as those of
            `buffer()`, which must then not change until the step is done.
        step: a check; it must be `self.step`. timeout: seconds until the future ends with DeadlineExceeded. Nothing is
        lost then: `wait()` goes on with the step. out: filled and returned in place of new arrays; must not be read
        until the step is done.

        Raises NonFinite (nothing was sent), InvalidArgument, FailedPrecondition (a step is still in flight), RankTaken.
        """
        self._check()
        with self._lock:
            current = self._engine.step
            if self._in_flight():
                raise FailedPrecondition(f"step {current} is still in flight", "wait() for it first")
            if self.rank is None:
                raise FailedPrecondition(f"model {self.name!r} was opened without a rank", "open it with rank=...")
            if step is not None and step != current:
                raise FailedPrecondition(f"step {step} cannot be pushed", f"the next step is {current}")
            budget = Budget(self._timeout(timeout), f"step {current} of {self.name!r}")
            flat = self._flat(gradients)
            kind = self._kind(flat, current)
            target = self._target(out)
            if target.flat is flat:
                raise InvalidArgument("out is the gradient's own buffer", "pass another one")
            engine = self._engine

            async def work() -> Tensors:
                engine.begin(current, kind, None if kind is PushKind.SKIP else flat, target)
                return await engine.wait(budget)

            self._pending = self._future(work(), budget)
            return self._pending

    def wait(self, timeout: float | None = None) -> Tensors:
        """The weights after the step that was pushed last; goes on with it if its budget was used up."""
        return self.resume(timeout=timeout).result()

    def resume(self, *, timeout: float | None = None) -> Future[Tensors]:
        """`wait` as a future, with a new budget."""
        self._check()
        budget = Budget(self._timeout(timeout), f"step {self._engine.step} of {self.name!r}")
        with self._lock:
            if self._pending is None:
                raise FailedPrecondition("no step was pushed", "push_pull() first")
            self._pending = self._future(self._engine.wait(budget), budget)
            return self._pending

    def why(self) -> str:
        """What the step in flight waits for, in one line; empty when nothing is known to hold it up."""
        self._check()
        return self._engine.why()

    def absent_ranks(self, timeout: float | None = None) -> Future[list[int]]:
        """Ranks that no worker holds now; the step waits for them. Group 0 is asked, which may take its time."""
        self._check()
        what = f"absent ranks of {self.name!r}"
        budget = Budget(self._timeout(timeout), what)
        work = within(budget, self._engine.absent_ranks(), lambda: "")
        return Future(self._client._loop.submit(work), budget, what, lambda: "")

    # --- the learning rate

    def set_learning_rate(self, value: float, from_step: int | None = None, *, timeout: float | None = None) -> int:
        """Change the learning rate: every update of `from_step` and the steps behind it, in every block, uses `value`
        (rounded to float32), until the next change's step. Any handle may ask, once for all ranks; changes may lie
        ahead, and a second one of the same step takes the place of the first. None: the next step that can be.

        Returns the step from which it holds, when all servers know it: a later one than was asked for where training
        went past that meanwhile. While the groups agree no block goes past that step, so one that is near costs a
        moment's wait, one that is far ahead nothing.

        Raises InvalidArgument (NaN, negative, beyond float32), FailedPrecondition (a step that is past; it names the
        earliest there can be), NotFound, DeadlineExceeded: it may have been changed then, or be about to."""
        self._check()
        problems = rate_problems("value", value)
        if problems:
            raise InvalidArgument(str(problems[0]))
        if from_step is not None and not 0 <= from_step < 2**62:
            raise InvalidArgument(f"from_step {from_step}", "expected 0 to 2^62 - 1")
        work = self._engine.set_learning_rate(value, from_step)
        what = f"learning rate of {self.name!r}"
        return self._client._run(work, self._timeout(timeout), what, lambda: self._engine.catalogue_problem)

    # --- the end

    def close(self, *, release: bool = True) -> None:
        """Let go of the rank and the streams. A second call does nothing."""
        if not self._closed:
            self._client._dropped(self)
            self._close(release)

    def _close(self, release: bool) -> None:
        self._closed = True
        try:
            self._client._run(self._engine.close(release), CLOSE_TIMEOUT_S, f"closing {self.name!r}", lambda: "")
        except ParameterServerError:
            pass  # nobody answered in time: the lease ends by itself

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- parts

    def _check(self) -> None:
        self._client._check()
        if self._closed:
            raise Closed(f"model {self.name!r} is closed", "open it again with Client.model()")

    def _timeout(self, timeout: float | None) -> float:
        return self._client.timeout if timeout is None else timeout

    def _in_flight(self) -> bool:
        """Pushed and not over: a future that ended for lack of time leaves its step in flight."""
        return self._pending is not None and (not self._pending.done() or self._engine.in_flight)

    def _future(self, work: Any, budget: Budget) -> Future[Tensors]:
        inner = self._client._loop.submit(work)
        return Future(inner, budget, f"step {self._engine.step} of {self.name!r}", self._engine.why)

    def _target(self, out: Tensors | None) -> Tensors:
        layout = self._engine.layout
        if out is None:
            return Tensors(layout)
        if not isinstance(out, Tensors) or out.flat.shape != (layout.elements,):
            raise InvalidArgument(
                "out is not a Tensors of this model", "pass what pull(), push_pull() or buffer() gave"
            )
        return out

    def _flat(self, gradients: Mapping[str, Any]) -> Flat:
        layout = self._engine.layout
        if isinstance(gradients, Tensors) and gradients.flat.shape == (layout.elements,):
            return gradients.flat
        if self._gradient is None:
            self._gradient = np.empty(layout.elements, np.float32)
        try:
            return layout.flatten(gradients, out=self._gradient)
        except Refusal as refusal:
            raise to_error(refusal) from None

    def _kind(self, flat: Flat, step: int) -> PushKind:
        """By the model's policy for NaN, infinity, and what the codec would make infinite (RULES S10)."""
        policy = self.spec.non_finite
        if policy is NonFinite.ALLOW:
            return PushKind.GRADIENT
        element = first_beyond(self.codec, flat)
        if element is None:
            return PushKind.GRADIENT
        if policy is NonFinite.SKIP:
            return PushKind.SKIP
        tensor, place = self._engine.layout.tensor_at(element)
        beyond, hint = "", "nothing was sent; the model's policy is to reject it"
        if np.isfinite(flat[element]):
            beyond = f", beyond {LARGEST[self.codec]:g}, the largest {self.codec.name.lower()}"
            hint = f"{hint}; scale the loss down, or open the model with codec='bf16'"
        raise errors.NonFinite(
            f"gradient of step {step}: {flat[element]} in tensor {tensor!r} at element {place}{beyond}",
            hint,
            tensor=tensor,
            step=step,
        )
