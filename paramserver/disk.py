"""A node's data folder as its process opens it: locked, known to be this node's, its log recovered.

Owns the order of that, and what is told of damage. Invariant: nothing is read or written before the folder is locked,
and a folder that cannot be used is let go again. Must not know: groups, services.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from consensus.storage.filesystem import DirectoryLock, OsFileSystem
from consensus.storage.identity import NodeIdentity, load_or_create
from consensus.storage.interface import FileSystem, Recovery
from consensus.storage.lifemark import open_log
from consensus.storage.snapshots import SnapshotFiles
from consensus.storage.wal import Wal
from paramserver.catalogue.bootstrap import cluster_id
from paramserver.config import REPLICATED, NodeConfig
from paramserver.directory import load as load_directory
from paramserver.v1 import paramserver_pb2 as pb

log = logging.getLogger("paramserver")


class CannotUse(Exception):
    """One line of cause: the folder is not ours to use."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The data folder: locked, known to be this node's, its log recovered."""

    lock: DirectoryLock
    filesystem: FileSystem
    identity: NodeIdentity
    wal: Wal
    recovery: Recovery
    snapshots: SnapshotFiles
    directory: pb.Directory | None

    @classmethod
    def open(cls, config: NodeConfig, filesystem: FileSystem | None = None) -> Disk:
        """Raises `StorageError`, `CannotUse`."""
        folder, filesystem = config.data_dir, filesystem or OsFileSystem()
        try:
            lock = DirectoryLock(folder)
        except OSError as error:
            raise CannotUse(f"cannot use data folder {folder!r}: {error.strerror}") from None
        try:
            cluster = cluster_id(config.members, config.token, config.groups)
            identity = load_or_create(filesystem, folder, cluster, config.node)
            if config.join:
                identity.join()
            directory = load_directory(filesystem, folder)
            wal, recovery = open_log(
                filesystem,
                folder,
                identity.identity(),
                config.wal_options(),
                replicated=config.durability == REPLICATED,
            )
            snapshots = SnapshotFiles(filesystem, f"{folder}/snapshots")
        except BaseException:
            lock.release()
            raise
        _tell_damage(recovery)
        if recovery.discarded_tail_bytes:
            log.warning("log: discarded a torn tail of %d bytes", recovery.discarded_tail_bytes)
        if recovery.damage:
            log.error("log: %s", recovery.damage)
        return cls(lock, filesystem, identity, wal, recovery, snapshots, directory)


def _tell_damage(recovery: Recovery) -> None:
    """What was found wrong in the log, and what it costs. Replicas that must not run tell of themselves."""
    hit = {number: group for number, group in sorted(recovery.groups.items()) if group.damage}
    costs = "" if hit or recovery.damage else "; nothing that counts was lost with it"
    for warning in recovery.warnings:
        log.warning("log: %s%s", warning, costs)
    for number, group in hit.items():
        if group.forgetful and not group.hard_state_lost:
            log.warning(
                "group %d: %s; it neither votes nor serves until its group has filled it again, which goes by itself",
                number,
                group.damage,
            )
