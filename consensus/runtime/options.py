"""Times and limits of the runtime.

Owns `RuntimeOptions`. Invariant: what `validate` finds no problem in can be used as it is. Must not know: how.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from consensus.core.raft.config import RaftConfig

MIB = 1 << 20


def default_raft() -> RaftConfig:
    """One append request is about one chunk: the loop that serves control copies no more than that at a time (C3).
    Commits are told with the next entries, or at the next tick."""
    return RaftConfig(append_bytes_max=MIB, quiesce_after_ms=2000, announce_ms=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """Bytes are payload bytes; times are in milliseconds."""

    raft: RaftConfig = field(default_factory=default_raft)
    """Times and limits of every group's core."""
    asleep_heartbeat_ms: int = 100
    """Nodes that share nothing but groups asleep hear of each other this often (RULES C5)."""
    tick_ms: int = 10
    """How often the driver calls `NodeRuntime.tick`."""
    stall_ms: int = 150
    """A gap between ticks above this is a stall: messages that wait are looked at before its time counts (C1)."""
    proposal_bytes_max: int = 4 * MIB + 32 * 1024
    """A longer command is refused, and counted: it must fit into one frame of the transport."""
    proposals_max: int = 65536
    """Proposals of one group without an outcome; further ones are refused as busy."""
    applying_bytes_max: int = 256 * MIB
    """Committed entries that wait for the state machine, with what they cost in the log; above it a leader refuses
    commands as busy, and a follower drops them, as if the network had lost them: the log can't be released before its
    entries are applied."""
    reads_max: int = 65536
    """Reads of one group without an answer, those waiting for the state machine too; further ones are refused."""
    orders_max: int = 64
    """Changes of membership, and transfers, of one group without an outcome; further ones are refused as busy."""
    transfer_ms: int = 1000
    """A transfer of leadership that nobody knows the end of is given up, here, after this time."""
    drain_ms: int = 100
    """So long a planned transfer of leadership waits at its beginning for the owner of the group, who takes no new work
    meanwhile, to propose what it took before (C6)."""
    prefer_after_ms: int = 5000
    """A leader that is not its group's first voter hands over to that one when it has been connected and caught up for
    this long (C6); 0: never."""
    storage_stall_ms: int = 300
    """A disk that has not finished a write for this long is stalled: this node hands over what it leads (HAZARDS
    16)."""
    note_bytes_max: int = 4096
    """A longer note of a listener is not sent, and counted."""
    snapshot_log_multiple: int = 4
    """A snapshot is due when the log since the last one is this many times the size of the state (RULES W6)."""
    snapshot_log_bytes_min: int = 8 * MIB
    """But not before the log since the last one is this long."""
    snapshot_log_bytes_max: int = 256 * MIB
    """And at the latest when it is this long, or as long as the state where that is larger: so much disk it takes, and
    a start reads all of it; but a state is not written more often than its size of log comes."""
    snapshot_retry_ms: int = 10_000
    """A snapshot that could not be written for lack of space, or of progress, is tried again after this time."""
    snapshot_budget_bytes: int = 64 * MIB
    """Memory that a snapshot being written may cost beside the state: what apply would have overwritten or freed.
    When it is used up, apply of that group waits for the writer (RULES W6)."""
    snapshot_wait_ms: int = 2000
    """But only so long without progress of the writer; then the snapshot is given up."""
    snapshot_piece_bytes: int = MIB
    """Written at a time; between pieces other work with files gets its turn."""
    snapshot_bytes_per_s: int = 0
    """Snapshots are written at most this fast; 0: as fast as the disk takes it."""
    snapshot_yield_ms: int = 20
    """A piece waits this long for the log to have nothing to write, unless apply waits for the snapshot."""
    keep_bytes_max: int = 16 * MIB
    """Entries kept in the log below a snapshot, for peers that lag a little."""
    transfer_keep_bytes_max: int = 256 * MIB
    """Entries kept for a peer that is being sent a snapshot; beyond them it will need another snapshot."""
    transfers_max: int = 2
    """Snapshots that a node sends at a time; further ones wait."""
    transfer_window_chunks: int = 4
    """Chunks (of at most 1 MiB) on their way to a peer and held in memory, per transfer."""
    transfer_resend_ms: int = 500
    """Chunks that are not answered for this long are sent again."""
    transfer_bytes_per_s: int = 0
    """A snapshot is sent at most this fast to one peer; 0: as fast as it takes it."""
    transfer_resume_ms: int = 30_000
    """After a broken-off transfer the snapshot, and the log above it, are kept this long for the peer to go on."""
    transfer_timeout_ms: int = 10_000
    """A transfer that makes no progress for this long is given up, and starts over."""
    install_timeout_ms: int = 60_000
    """How long a peer that holds all chunks may take to install them: another thing than a chunk (HAZARDS 25)."""
    rebuild_ask_ms: int = 500
    """A replica whose state is not to be trusted asks its leader for a snapshot this often, until one comes."""
    transfer_retry_ms: int = 500
    """Pause between a failed transfer and the next."""
    receive_lease_ms: int = 30_000
    """A half-received snapshot is removed when nothing is added to it for this long, also by a next life."""
    receive_window_chunks: int = 16
    """Chunks received and not yet written; further ones are dropped, to be sent again."""
    chunk_bytes_max: int = 4 * MIB
    """A longer chunk is refused."""
    chunk_bytes_min: int = 64 * 1024
    """A shorter one is refused, unless it is the last."""
    snapshot_bytes_max: int = 1 << 40
    """A snapshot that claims to be longer is refused."""

    def snapshot_due_bytes(self, state_bytes: int) -> int:
        """How long the log since the last snapshot may become before the next is begun."""
        most = max(self.snapshot_log_bytes_max, state_bytes)
        return max(min(self.snapshot_log_multiple * state_bytes, most), self.snapshot_log_bytes_min)

    def validate(self) -> list[str]:
        """All problems at once, one line each."""
        problems = self.raft.validate()
        for name in self.__slots__:
            value = getattr(self, name)
            may_be_none = name.startswith("keep_") or name.endswith(("_bytes_per_s", "_yield_ms"))
            least = 0 if may_be_none or name in ("drain_ms", "prefer_after_ms") else 1
            if name != "raft" and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                problems.append(f"{name} must be a whole number of at least {least}, not {value!r}")
        if problems:
            return problems
        if self.tick_ms >= self.raft.heartbeat_ms:
            problems.append(f"tick_ms ({self.tick_ms}) must be below heartbeat_ms ({self.raft.heartbeat_ms})")
        if not self.raft.heartbeat_ms <= self.asleep_heartbeat_ms <= self.raft.election_timeout_ms // 2:
            problems.append(
                f"asleep_heartbeat_ms ({self.asleep_heartbeat_ms}) must lie between heartbeat_ms "
                f"({self.raft.heartbeat_ms}) and half of election_timeout_ms ({self.raft.election_timeout_ms})"
            )
        if not self.tick_ms < self.stall_ms < self.raft.election_timeout_ms:
            problems.append(
                f"stall_ms ({self.stall_ms}) must lie between tick_ms ({self.tick_ms}) and election_timeout_ms "
                f"({self.raft.election_timeout_ms})"
            )
        if self.chunk_bytes_min > self.chunk_bytes_max:
            problems.append(
                f"chunk_bytes_min ({self.chunk_bytes_min}) must not be above chunk_bytes_max ({self.chunk_bytes_max})"
            )
        if self.transfer_resend_ms >= self.transfer_timeout_ms:
            problems.append(
                f"transfer_resend_ms ({self.transfer_resend_ms}) must be below transfer_timeout_ms "
                f"({self.transfer_timeout_ms})"
            )
        return problems
