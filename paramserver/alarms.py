"""What is wrong on this node, in words: for its log, and for whoever asks for its status.

Owns the sentences. Invariant: each says what it costs, and what to do where something can be done. Must not know: what
to do about it by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from consensus.runtime.threads import ThreadLogWriter
from consensus.transport.grpc.introduction import Introductions
from paramserver.catalogue.bootstrap import CATALOGUE_GROUP
from paramserver.config import NodeConfig
from paramserver.rpc.groups import Groups

log = logging.getLogger("paramserver")

LOOK_AT_DISK_S = 1.0


class Alarms:
    """`removed`: this node was removed from the cluster. `others`: what other parts of the node complain about."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        groups: Groups,
        writer: ThreadLogWriter,
        introductions: Introductions,
        removed: Callable[[], bool],
        others: Callable[[], Iterable[str]],
    ) -> None:
        self._config = config
        self._groups = groups
        self._writer = writer
        self._introductions = introductions
        self._removed = removed
        self._others = others

    def lines(self) -> list[str]:
        """All there are now."""
        lines = [self._full_disk()] if self._writer.full() else []
        for group, hosted in self._groups.hosted.items():
            status = hosted.handle.status()
            if status.problem:
                lines.append(f"group {group} does not run on node {self._config.node}: {status.problem}")
            elif status.distrusted:
                lines.append(
                    f"group {group}'s replica on node {self._config.node} has a wrong state, and is rebuilt; until "
                    f"then it neither leads nor serves: {status.distrusted}"
                )
            elif status.core is not None and status.core.forgetful:
                lines.append(
                    f"group {group}'s replica on node {self._config.node} lost some of what it had on disk, and is "
                    "filled anew; until then it neither votes nor counts"
                )
        lines += [refusal for _, refusal in sorted(self._introductions.refusals.items())]
        lines += [self._introductions.other_durability(node) for node in sorted(self._introductions.differing)]
        if self._removed():
            lines.append(f"node {self._config.node} was removed from the cluster: stop it")
        return [*lines, *self._others()]

    # --- a full disk

    async def tell_full_disk(self) -> None:
        """Once each time it becomes full, and once when there is room again."""
        told = False
        while True:
            full = self._writer.full()
            if full != told:
                told = full
                if full:
                    log.error("%s", self._full_disk())
                else:
                    log.warning("there is space again in %s: writes go on", self._config.data_dir)
            await asyncio.sleep(LOOK_AT_DISK_S)

    def _full_disk(self) -> str:
        return (
            f"the disk of node {self._config.node} is full: its leaders refuse writes until there is space in "
            f"{self._config.data_dir}; meanwhile others can lead: {self._way_out()}"
        )

    def _way_out(self) -> str:
        """Orders to the cluster are writes of group 0."""
        if self._groups.leader(CATALOGUE_GROUP)[0] == self._config.node:
            return "as this node leads group 0, which can record no order now, stop this server (SIGTERM)"
        return f"paramserver node drain {self._config.node} --leaders-only --servers ..."
