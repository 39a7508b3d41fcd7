"""How a replica begins to run, from what its disk held.

Owns the order: the newest snapshot in the state machine first, then a core over the log. Invariants: nothing runs
before that; what a damaged snapshot held is durably forgotten before the replica begins anew under its term and vote
(RULES W7); a snapshot or log that cannot be used is a problem of this replica alone. Must not know: what running is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from consensus.core.errors import InvariantViolated
from consensus.core.interface import Core, GroupId, SnapshotMeta
from consensus.runtime.disk import forgotten
from consensus.runtime.interface import APPLY_LANE
from consensus.runtime.keeping import SnapshotKeeping
from consensus.runtime.machine import MachineHost, Unreadable
from consensus.runtime.services import Services
from consensus.storage.interface import GroupAppend, RecoveredGroup

_log = logging.getLogger(__name__)


class Beginning:
    """Of one replica. `restored`: the state machine holds the state at that index; `run`: go on with this core, over
    this snapshot; `cannot_run`: never mind, and why."""

    __slots__ = (
        "_group",
        "_machine",
        "_make_core",
        "_on_cannot_run",
        "_on_restored",
        "_on_run",
        "_recovered",
        "_services",
        "_started",
    )

    def __init__(
        self,
        services: Services,
        *,
        group: GroupId,
        machine: MachineHost,
        make_core: Callable[[RecoveredGroup | None], Core],
        recovered: RecoveredGroup | None,
        restored: Callable[[int], None],
        run: Callable[[Core, SnapshotMeta | None], SnapshotKeeping],
        cannot_run: Callable[[str], None],
    ) -> None:
        self._services = services
        self._group = group
        self._machine = machine
        self._make_core = make_core
        self._recovered = recovered
        self._on_restored = restored
        self._on_run = run
        self._on_cannot_run = cannot_run
        self._started = False

    def begin(self) -> None:
        """Only the first time does anything."""
        if self._started:
            return
        self._started = True
        snapshot = self._recovered.snapshot if self._recovered is not None else None
        if snapshot is None:
            # The whole state comes from the log: whatever was wrong with the one of an earlier life is gone.
            keeping = self._run(None)
            if keeping is not None:
                keeping.rebuilding.recorded()
            return
        meta, store = snapshot, self._services.store

        def restore() -> Unreadable | str | None:
            """What is wrong with the file, or why the state in it is not to be trusted."""
            reason = store.distrusted(self._group)
            if reason:
                self._machine.begin_at(meta)
                return reason
            return self._machine.restore(store, meta)

        self._services.run(APPLY_LANE, restore, lambda wrong: self._was_restored(meta, wrong))

    def _was_restored(self, meta: SnapshotMeta, unreadable: Unreadable | str | None) -> None:
        if isinstance(unreadable, str):
            keeping = self._run(meta)
            if keeping is not None:
                keeping.rebuilding.begin_without_state(unreadable, meta)
            return
        if unreadable is None:
            self._on_restored(meta.index)
            self._run(meta)
            return
        problem = f"snapshot {meta.snapshot_id} of group {self._group} can't be used: {unreadable.problem}"
        if unreadable.damaged and self._recovered is not None:
            self._forget(forgotten(self._recovered, damage=problem))
        else:
            self._on_cannot_run(problem)

    def _forget(self, left: RecoveredGroup) -> None:
        """What the snapshot held is lost. That is made durable before anything else (RULES W7), then the replica begins
        anew under its term and vote, and is filled by its leader."""
        _log.error("group %d is filled anew by its leader: %s", self._group, left.damage)

        def durable() -> None:
            with self._services.input() as running:
                if running:
                    self._recovered = left
                    self._run(None)

        self._services.writer.submit(GroupAppend(group=self._group, forget=True), durable)

    def _run(self, snapshot: SnapshotMeta | None) -> SnapshotKeeping | None:
        try:
            core = self._make_core(self._recovered)
        except InvariantViolated as error:
            self._on_cannot_run(f"log of group {self._group} can't be used: {error}")
            return None
        self._recovered = None
        return self._on_run(core, snapshot)
