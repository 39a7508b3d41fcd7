"""What a handle reads of its model: `pull` and `pull_later`, and where the weights go.

Owns these calls of `Model`, which is one of these: their checks, their budgets, and `out`. Invariant: arrays of the
caller's are filled when the call is done, never before. Must not know: steps in flight, streams, leaders.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, overload

from worker.arguments import check_version
from worker.arrays import Destination
from worker.consistency import ANY, Consistency
from worker.engine import Engine
from worker.errors import Closed, InvalidArgument
from worker.futures import Future
from worker.parts import Part, Parts
from worker.tensors import Tensors

if TYPE_CHECKING:
    from worker.client import Client
    from worker.device.spread import Spread


class Pulls:
    """Part of `Model`."""

    name: str
    _client: Client
    _engine: Engine
    _parts: Parts
    _closed: bool
    _spreads: dict[int, Spread]
    """Of devices that weights were copied to, by their numbers."""

    @overload
    def pull(
        self,
        tensors: Collection[str] | None = None,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: None = None,
        timeout: float | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> Tensors: ...

    @overload
    def pull(
        self,
        tensors: Collection[str] | None = None,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: int,
        timeout: float | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> Tensors | None: ...

    def pull(
        self,
        tensors: Collection[str] | None = None,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: int | None = None,
        timeout: float | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> Tensors | None:
        """Weights: name -> float32 array of the tensor's shape.

        tensors: the names that are wanted; None: all. Only the blocks that hold them are sent.
        version: exactly this version of every block; waits for it. Two are kept.
        min_version: committed state, at least that new; blocks may differ by one (`Tensors.versions`).
        consistency: LINEARIZABLE, or bounded(age_ms): how new; blocks may differ by one. `Tensors.age_ms` says how old
            they were at most when they were read. Not with `version`, which has one value anywhere. While no leader of
            a group has a quorum the call goes on trying, and ends with DeadlineExceeded that says so.
        None of these: version `step` for a rank; for a handle without one the newest version that all blocks have.
        if_newer_than: None instead of weights, at the cost of a few bytes a block, when no block is above that version
            (such as `Tensors.version` of the last pull); not with `version`. Where some are, all are as without it.
        timeout: seconds; None: the client's.
        out: `Tensors` of the same names, which are filled and returned in place of new ones; or name -> array of the
            caller's (float32 or float64, NumPy or CuPy), which are filled beside what is returned. Not touched when
            there is nothing newer.

        Raises Gone (the version is no longer kept), DeadlineExceeded, InvalidArgument, Closed, Forked."""
        future = self._pull(tensors, version, min_version, consistency, if_newer_than, timeout, out)
        return self._client._result(future)

    @overload
    def pull_later(
        self,
        tensors: Collection[str] | None = None,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: None = None,
        timeout: float | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> Future[Tensors]: ...

    @overload
    def pull_later(
        self,
        tensors: Collection[str] | None = None,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: int,
        timeout: float | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> Future[Tensors | None]: ...

    def pull_later(
        self,
        tensors: Collection[str] | None = None,
        *,
        version: int | None = None,
        min_version: int | None = None,
        consistency: Consistency | None = None,
        if_newer_than: int | None = None,
        timeout: float | None = None,
        out: Mapping[str, Any] | None = None,
    ) -> Future[Tensors] | Future[Tensors | None]:
        """`pull` as a future; `out` must not be read until it is done. Raises InvalidArgument, Closed, Forked at once;
        the rest comes with the future."""
        return self._pull(tensors, version, min_version, consistency, if_newer_than, timeout, out)

    def _pull(
        self,
        tensors: Collection[str] | None,
        version: int | None,
        min_version: int | None,
        consistency: Consistency | None,
        if_newer_than: int | None,
        timeout: float | None,
        out: Mapping[str, Any] | None,
    ) -> Future[Any]:
        self._check()
        for field, value in (
            ("version", version),
            ("min_version", min_version),
            ("if_newer_than", if_newer_than),
        ):
            if value is not None:
                check_version(field, value)
        if version is not None and min_version is not None:
            raise InvalidArgument("both version and min_version", "pass one of them")
        if consistency is not None and not isinstance(consistency, Consistency):
            raise InvalidArgument(f"consistency {consistency!r}", "expected LINEARIZABLE or bounded(age_ms)")
        if version is not None and consistency is not None:
            raise InvalidArgument("both version and consistency", "an exact version has one value on every replica")
        if version is not None and if_newer_than is not None:
            raise InvalidArgument("both version and if_newer_than", "an exact version never is another")
        part = None if tensors is None else self._parts.of(tensors)
        target, destination = self._target(out, part)
        engine = self._engine

        async def work() -> Tensors | None:
            found = await engine.pull(
                target,
                version=version,
                min_version=min_version,
                consistency=consistency or ANY,
                if_newer_than=if_newer_than,
                blocks=None if part is None else part.blocks,
            )
            if found is not None and destination is not None:
                destination.fill(found)
            return found

        return self._client._call(work(), self._timeout(timeout), f"pull of {self.name!r}", engine.why)

    # --- parts

    def _check(self) -> None:
        self._client._check()
        if self._closed:
            raise Closed(f"model {self.name!r} is closed", "open it again with Client.model()")

    def _timeout(self, timeout: float | None) -> float:
        return self._client.timeout if timeout is None else timeout

    def _target(self, out: Mapping[str, Any] | None, part: Part | None) -> tuple[Tensors, Destination | None]:
        """Where weights are decoded to, and where they are copied to from there."""
        layout = self._engine.layout
        names = None if part is None else part.names
        if out is None:
            return Tensors(layout, names=names), None
        if isinstance(out, Tensors):
            same = out.whole if names is None else tuple(out) == names
            if out.flat.size != layout.elements or not same:
                raise InvalidArgument(
                    "out is not a Tensors of this model and these names",
                    "pass what pull(), push_pull() or buffer() gave",
                )
            return out, None
        wanted = [tensor for tensor in layout.spec.tensors if names is None or tensor.name in names]
        shapes = {tensor.name: tensor.shape for tensor in wanted}
        return Tensors(layout, names=names), Destination(out, shapes, self._spread if names is None else None)

    def _spread(self, number: int) -> Spread:
        """Of a device whose arrays weights are to be copied to."""
        from worker.device import of_number
        from worker.device.spread import Spread

        if number not in self._spreads:
            self._spreads[number] = Spread(self._engine.layout, of_number(number).backend())
        return self._spreads[number]
