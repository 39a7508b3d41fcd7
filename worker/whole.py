"""What a client does with whole models: list, describe, save, load and delete them.

Owns these calls of `Client`, which is one of these: their checks, their budgets, and when files are read and written.
Invariants: a file is checked in full before anything is asked of a server; it appears whole or not at all. Must not
know: how pins and leases are kept (`saving.py`, `loading.py`), what is in a file (`checkpoint.py`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from worker import checkpoint_files
from worker.arguments import check_version
from worker.catalogue import Catalogue, Description, ModelSummary
from worker.checkpoint import Checkpoint
from worker.errors import FailedPrecondition
from worker.futures import Future
from worker.loading import LOAD_TIMEOUT_S, Loaded, Loader
from worker.membership import Cluster
from worker.network import Network
from worker.replicas import Replicas
from worker.routing import Routes
from worker.saving import SAVE_TIMEOUT_S, Progress, Saved, Saver, no_progress
from worker.spec import check_name

T = TypeVar("T")


class WholeModels:
    """Part of `Client`."""

    timeout: float
    _network: Network
    _cluster: Cluster
    _routes: Routes
    _catalogue: Catalogue
    _replicas: Replicas
    _loads: set[str]
    """Names under which this client loads something now."""

    if TYPE_CHECKING:

        def _check(self) -> None: ...

        def _call(
            self, work: Coroutine[Any, Any, T], timeout_s: float, what: str, why: Callable[[], str]
        ) -> Future[T]: ...

        def _result(self, future: Future[T]) -> T: ...

    def models(self, *, timeout: float | None = None) -> list[ModelSummary]:
        """The cluster's models, by name. timeout: seconds. Raises Unavailable, DeadlineExceeded, Closed, Forked."""
        return self._result(self._models_listed(timeout))

    def _models_listed(self, timeout: float | None) -> Future[list[ModelSummary]]:
        self._check()
        work = self._catalogue.models()
        return self._call(work, self._budget_s(timeout), "models", lambda: self._catalogue.problem)

    def describe(self, name: str, *, timeout: float | None = None) -> Description:
        """A model as group 0 knows it, without opening it. timeout: seconds. Raises NotFound, DeadlineExceeded, Closed,
        Forked."""
        return self._result(self._described(name, timeout))

    def _described(self, name: str, timeout: float | None) -> Future[Description]:
        self._check()
        work = self._catalogue.describe(name)
        return self._call(work, self._budget_s(timeout), f"model {name!r}", lambda: self._catalogue.problem)

    def save(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        step: int | None = None,
        timeout: float = SAVE_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> Saved:
        """Save a model at one step, while it trains: weights, all that its optimizer holds, the step, and the changes
        of its learning rate.

        path: a file in .safetensors or .npz; it appears whole, in place of what was there, or not at all. step: the
            version to save; it must not be past. None: the one that training is at. Where training goes past it while
            the servers agree, it is a later one, which the answer names. timeout: seconds, until the file is written.
        progress: called with (bytes so far, bytes in all), on another thread; first with 0, once the servers agreed on
            the version: training goes past it no more unsaved.

        The servers keep that version for this call, and training goes on; one save of a model at a time. The whole
        state is in this process's memory until it is written. Raises NotFound, InvalidArgument (the path; a safetensors
        file without that package), FailedPrecondition (a step that is past, another save under way), CheckpointError
        (nothing could be written), DeadlineExceeded, Closed, Forked."""
        return self._result(self._saving(name, path, step, timeout, progress))

    def _saving(
        self,
        name: str,
        path: str | os.PathLike[str],
        step: int | None,
        timeout: float,
        progress: Progress | None,
    ) -> Future[Saved]:
        self._check()
        place = checkpoint_files.check_path(path, reading=False)
        if step is not None:
            check_version("step", step)
        saver = Saver(
            network=self._network,
            cluster=self._cluster,
            routes=self._routes,
            catalogue=self._catalogue,
            replicas=self._replicas,
        )

        async def work() -> Saved:
            checkpoint = await saver.run(name, step, progress or no_progress)
            size = await asyncio.to_thread(checkpoint_files.write, place, checkpoint)
            return Saved(str(place), checkpoint.step, size)

        return self._call(work(), timeout, f"saving {name!r}", saver.why)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        timeout: float = LOAD_TIMEOUT_S,
        progress: Progress | None = None,
    ) -> Loaded:
        """Load a checkpoint that `save` wrote: training goes on from its step with the same bits as if it had never
        stopped.

        path: a file in .safetensors or .npz; it is read and checked in full before anything else. name: None: the one
            that it was saved under. A model of that name must have the file's spec; its generation is raised, and what
            it held is gone once the load is done. timeout: seconds, until it is.
        progress: called with (bytes so far, bytes in all), on another thread.

        Until all of it is there the generation before goes on being trained and pulled, and both take memory; then the
        name changes hands at once. Handles of the generation before end with FailedPrecondition: open the model again.
        A load that fails, or whose process dies, changes nothing; one load of a name at a time. Raises InvalidArgument
        (the path, the name), CheckpointError (a file that is damaged, or none of ours), SpecMismatch (it names the
        tensor), FailedPrecondition (another load of it under way), DeadlineExceeded (it may have been done all the
        same: `describe` says the generation), Closed, Forked."""
        return self._result(self._loading(path, name, timeout, progress))

    def _loading(
        self, path: str | os.PathLike[str], name: str | None, timeout: float, progress: Progress | None
    ) -> Future[Loaded]:
        self._check()
        place = checkpoint_files.check_path(path, reading=True)
        if name is not None:
            check_name("name", name)
        loader = Loader(network=self._network, cluster=self._cluster, routes=self._routes, catalogue=self._catalogue)

        async def work() -> Loaded:
            checkpoint, size = await asyncio.to_thread(_read, place)
            target = name or checkpoint.spec.name
            if target in self._loads:
                raise FailedPrecondition(f"model {target!r} is being loaded by this client", "wait for that load")
            self._loads.add(target)
            try:
                model = await loader.run(checkpoint, target, progress or no_progress)
            finally:
                self._loads.discard(target)
            return Loaded(target, model.model, model.generation, checkpoint.step, size)

        return self._call(work(), timeout, f"loading {str(place)!r}", loader.why)

    def delete(self, name: str, *, force: bool = False, timeout: float | None = None) -> None:
        """Delete a model: every server lets go of its memory, and the name is free for another one at once.

        force: although workers hold ranks of it; they end with NotFound. timeout: seconds. Raises NotFound,
        FailedPrecondition (it names the ranks that are held), DeadlineExceeded (it may have been deleted all the same),
        Closed, Forked."""
        self._result(self._deleting(name, force, timeout))

    def _deleting(self, name: str, force: bool, timeout: float | None) -> Future[None]:
        self._check()

        async def work() -> None:
            await self._catalogue.delete(await self._catalogue.describe(name), force=force)

        return self._call(work(), self._budget_s(timeout), f"deleting {name!r}", lambda: self._catalogue.problem)

    def _budget_s(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else timeout


def _read(path: Path) -> tuple[Checkpoint, int]:
    return checkpoint_files.read(path), path.stat().st_size
