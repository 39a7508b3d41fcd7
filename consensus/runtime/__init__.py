"""Drives many groups: inputs to cores, persisting and sending beside each other, applying, time."""

from consensus.runtime.group import GroupHandle
from consensus.runtime.node import NodeRuntime
from consensus.runtime.options import RuntimeOptions
from consensus.runtime.status import GroupStatus

__all__ = ["GroupHandle", "GroupStatus", "NodeRuntime", "RuntimeOptions"]
