"""The Raft state machine, one concern a file."""

from consensus.core.raft.config import RaftConfig
from consensus.core.raft.core import RaftCore

__all__ = ["RaftConfig", "RaftCore"]
