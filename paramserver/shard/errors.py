"""Errors of a data group's state machine.

ShardError
├── CommandError      a log entry that is no command of ours: its result is a refusal, apply goes on
└── SnapshotDamaged   a snapshot that does not decode, or whose blocks have other digests than it says

Refusals to clients are `paramserver.wire.errors.Refusal`; broken invariants `consensus.core.errors.InvariantViolated`.
"""

from __future__ import annotations

from consensus.storage import errors as storage


class ShardError(Exception):
    """Root of the tree."""


class CommandError(ShardError):
    """The bytes are no command, or one of a newer format."""


class SnapshotDamaged(ShardError, storage.SnapshotDamaged):
    """The state was not replaced. Another replica's snapshot may be sound. The runtime knows it by its second base: the
    group does not run on this node and says so, the others go on."""
