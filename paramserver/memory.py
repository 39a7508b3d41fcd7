"""What the memory of a server is bounded by, computed from its options (docs/operations.md explains each term).

Owns the formula. Invariant: every place that holds payload for clients, peers or the disk is a term; how many workers
push is not one, but for the streams that stand. Must not know: how any bound is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from consensus.transport.options import TransportOptions
from paramserver.config import FOLLOWER_BEHIND_BYTES, NodeConfig

MIB = 1 << 20
BASE_BYTES = 150 * 10**6
"""The interpreter, its packages, gRPC's threads and arenas, tables of groups and models."""
CALL_BYTES = 64 << 10
"""A call that waits."""
CONNECTION_BYTES = 256 << 10
"""A connection, its read and write buffers in gRPC; those of the kernel count nowhere here."""
PLACES_BYTES = 16 * MIB
"""What the entries of a group's log cost beside their payload: about 300 bytes each, so many of the tiniest commands
as fit into a log of 8 MiB. Longer logs are those of larger states, with longer commands."""
SLACK_PERCENT = 25
"""What the allocator holds beside the state: buffers between two versions, holes."""


def bound(
    config: NodeConfig,
    *,
    states: Sequence[int],
    groups: int,
    shards: int,
    ranks: int,
    block_bytes: int,
    peers: int,
    streams: int,
    calls: int,
    connections: int,
) -> dict[str, int]:
    """Bytes by term. `states`: weights, the version before, and slots, of each replica here. `shards`: models x groups
    here. `ranks`, `block_bytes`: the largest of any model. `streams`, `calls`, `connections`: of clients, at most as
    many as the config allows."""
    runtime, window = config.runtime_options(), config.stream_window_bytes
    transport = TransportOptions(stream_window_bytes=window)
    chunk = runtime.chunk_bytes_max
    return {
        "base": BASE_BYTES,
        "state": sum(states) * (100 + SLACK_PERCENT) // 100,
        "log": groups * log_bytes(config, peers=peers),
        "uncommitted": groups * (config.uncommitted_bytes_max + FOLLOWER_BEHIND_BYTES + runtime.applying_bytes_max),
        "sums": config.window_bytes + shards * ranks * block_bytes,
        "streams": streams * (window + 4 * block_bytes),
        "replies": config.replies_bytes_max,
        "pulls": 3 * config.pulls_bytes_max,
        "calls": calls * CALL_BYTES + connections * CONNECTION_BYTES,
        "peers": peers * (transport.control_queue_bytes + 2 * (transport.frame_bytes_max + chunk)),
        "snapshots": runtime.snapshot_budget_bytes
        + runtime.transfers_max * runtime.transfer_window_chunks * MIB
        + groups * runtime.receive_window_chunks * chunk,
    }


def log_bytes(config: NodeConfig, *, peers: int) -> int:
    """Of one group. Payload of applied commands is left to the log on disk, but for the newest, for members that lag a
    little, and what is read back for those who lag more. Uncommitted and unapplied entries are counted elsewhere."""
    raft = config.runtime_options().raft
    read_back = raft.inflight_stored_bytes_max + raft.append_bytes_max
    return raft.unloaded_after_bytes + config.wal_options().recovered_bytes_max + PLACES_BYTES + peers * read_back
