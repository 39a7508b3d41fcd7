"""Times and limits of one Raft replica.

Owns: names, units, defaults, and which combinations make sense. Must not know: what they are used for elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 1024 * 1024

TERM_MAX = 2**63
"""Messages that speak of this term or a higher one are dropped: no honest replica ever gets there."""
INDEX_MAX = 2**63
"""The same for indexes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftConfig:
    """All replicas of a group should have the same times (RULES C1)."""

    heartbeat_ms: int = 50
    """A leader sends heartbeats this often."""
    election_timeout_ms: int = 300
    """A follower that heard nothing for at least this long may campaign; as long it refuses votes to others, and a
    leader without answers of a majority for this long steps down."""
    election_spread_ms: int = 150
    """The timeout is drawn from [election_timeout_ms, election_timeout_ms + election_spread_ms)."""
    place_delay_ms: int = 150
    """Added to the timeout for each place in the configuration, so that the preferred leader campaigns first (C6)."""
    hint_delay_ms: int = 25
    """After the leader's connection closed: wait this long for each place before campaigning (C2)."""
    hint_retry_ms_min: int = 10
    hint_retry_ms_max: int = 20
    """A refused pre-vote is repeated after a time in [min, max] while the leader's connection stays closed (C2)."""
    announce_ms: int = 0
    """A commit that no entries carry to a peer is told to it after this long, at the next tick; 0: at once, which costs
    two more messages a commit and peer while few commands are in flight. Heartbeats tell it too."""
    nudge_ms: int = 150
    """A leader that waits this long for answers to what it sent asks at the end of what it sent whether it arrived."""
    inflight_messages_max: int = 64
    """Unanswered append requests to one peer; at the bound the leader waits for answers."""
    inflight_bytes_max: int = 16 * MIB
    """Unanswered payload to one peer; at or above the bound the leader waits for answers. One message may cross it."""
    inflight_stored_bytes_max: int = 8 * MIB
    """The same for entries that were left to the log on disk: what is read back for one peer lies in memory beside all
    else."""
    unloaded_after_bytes: int = 32 * MIB
    """Payload of applied entries that a leader keeps for members that answer and do not hold it yet: the newest so many
    bytes of its log. What is older, or held by all of them, is left to the log on disk; so is what a follower applied.
    0: all of it."""
    append_bytes_max: int = 4 * MIB
    """Payload of one append request. A single larger entry goes alone."""
    probe_bytes_max: int = 64 * 1024
    """Payload of an append request to a peer whose log is not known yet; it may be nothing."""
    persist_bytes_max: int = 8 * MIB
    """Payload of `Ready.entries`. A single larger entry goes alone; the rest comes in the next `Ready`."""
    committed_bytes_max: int = 8 * MIB
    """Payload of `Ready.committed`. A single larger entry goes alone; the rest comes in the next `Ready`."""
    uncommitted_bytes_max: int = 256 * MIB
    """Payload that a leader holds uncommitted, earlier terms' included; above it proposals get `Busy`. One that is
    larger alone is taken when nothing else is uncommitted."""
    quiesce_after_ms: int = 0
    """A leader whose group is idle for this long, every voter holding and having committed all of it, stops its
    heartbeats (RULES C5); 0: never. Needs a host that watches nodes for the groups asleep."""
    reads_max: int = 4096
    """Reads that wait for a confirmation, own and forwarded; further ones are refused."""
    follower_bytes_max: int = 256 * MIB
    """Payload that a follower holds and that is not durable there yet, or not known committed. While its disk lags,
    entries that would cross this are dropped, as if the network had lost them; the leader sends them again later."""
    caught_up_bytes_max: int = 1 * MIB
    """A learner may be promoted when it lacks at most this much of the leader's log, and answered lately."""
    held_messages_max: int = 1024
    """Answers that wait for the disk; further ones are dropped, as if the network had lost them."""

    def validate(self) -> list[str]:
        """All problems at once, one line each; empty when the configuration can be used."""
        zero_is_fine = {"announce_ms", "quiesce_after_ms", "place_delay_ms", "hint_delay_ms"}
        zero_is_fine |= {"hint_retry_ms_min", "probe_bytes_max", "unloaded_after_bytes"}
        problems = []
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in zero_is_fine else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                problems.append(f"{field.name} must be a whole number of at least {least}, not {value!r}")
        if problems:
            return problems
        if self.heartbeat_ms >= self.election_timeout_ms:
            problems.append(
                f"heartbeat_ms ({self.heartbeat_ms}) must be below election_timeout_ms ({self.election_timeout_ms})"
            )
        if self.hint_retry_ms_min > self.hint_retry_ms_max:
            problems.append(
                f"hint_retry_ms_min ({self.hint_retry_ms_min}) must not exceed hint_retry_ms_max "
                f"({self.hint_retry_ms_max})"
            )
        if self.append_bytes_max > self.inflight_bytes_max:
            problems.append(
                f"append_bytes_max ({self.append_bytes_max}) must not exceed inflight_bytes_max "
                f"({self.inflight_bytes_max})"
            )
        if self.probe_bytes_max > self.append_bytes_max:
            problems.append(
                f"probe_bytes_max ({self.probe_bytes_max}) must not exceed append_bytes_max ({self.append_bytes_max})"
            )
        return problems
