"""Whether memory stays within the bounds that options state, whatever happens.

Owns the comparison, made now and then: memory does not explode within a moment. Must not know: faults, load.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from consensus.core.raft import RaftCore
from consensus.runtime.group import GroupHandle
from consensus.runtime.options import RuntimeOptions
from consensus.simulation.errors import Violated

if TYPE_CHECKING:
    from consensus.simulation.node import SimulatedNode


def check_bounds(nodes: Iterable[SimulatedNode], options: RuntimeOptions) -> None:
    for node in nodes:
        for group, handle in node.handles.items():
            problem = problem_of(handle, options)
            if problem:
                raise Violated(f"node {node.node}, group {group}: {problem}")


def problem_of(handle: GroupHandle, options: RuntimeOptions) -> str:
    core = handle.core
    if not isinstance(core, RaftCore):
        return ""
    held, bound = core.held_messages, options.raft.held_messages_max
    if held > bound:
        return f"{held} answers wait for the disk, at most {bound} may"
    applied, bound = core.applied_bytes(), options.raft.unloaded_after_bytes
    if applied > bound:
        return f"holds {applied} bytes of applied commands in memory, at most {bound} are allowed"
    uncommitted, bound = core.uncommitted_bytes(), options.raft.uncommitted_bytes_max + options.proposal_bytes_max
    if uncommitted > bound:
        return f"holds {uncommitted} bytes uncommitted, at most {bound} are allowed"
    return ""
