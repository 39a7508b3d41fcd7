"""What a leader knows of one peer, and what is on its way there.

Owns: match and next index, the window of unanswered requests. Invariants: match < next; match is durable at the peer
and equal to the leader's log; it never falls but for a restarted peer, of which everything is forgotten (RULES C4).
While requests are in flight nothing that they carry is sent again (HAZARDS 3). Must not know: messages, terms, commit.

    PROBE      where the logs meet is unknown: one small request at a time
    REPLICATE  known: requests follow each other up to the window's bounds, `next_index` runs ahead
    SNAPSHOT   what it needs next is compacted away: nothing is sent until the host reports
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from consensus.core.interface import ReplicaId


class ProgressState(IntEnum):
    PROBE = 1
    REPLICATE = 2
    SNAPSHOT = 3


class Progress:
    __slots__ = (
        "answered",
        "commit_sent",
        "contact",
        "forgetful",
        "match_index",
        "next_index",
        "probe_end",
        "probing",
        "quiet_ms",
        "replica",
        "round",
        "silence_ms",
        "state",
        "untold_ms",
        "window",
        "window_bytes",
    )

    def __init__(self, replica: ReplicaId, *, next_index: int) -> None:
        self.replica = replica
        self.contact = False
        """It answered since the leader last looked (check-quorum), and counts."""
        self.silence_ms = 0
        """Since its last answer, or the beginning of this leadership."""
        self.round = 0
        """The latest heartbeat round it answered: it followed this leader when that arrived."""
        self.commit_sent = 0
        """The highest commit index it was told together with the entries."""
        self.forget(next_index)

    def forget(self, next_index: int) -> None:
        """A new term, or the peer restarted: nothing it said before holds."""
        self.match_index = 0
        self.answered = False
        """In this life of the peer."""
        self.forgetful = False
        """It said of itself that it may have forgotten what it acknowledged: it counts for nothing (RULES W7)."""
        self.window: deque[tuple[int, int]] = deque()
        """(last index, payload bytes) of unanswered requests, oldest first."""
        self.probe(next_index)

    def heard(self, *, forgetful: bool) -> bool:
        """An answer came. True when the peer has just begun to count: what it holds does from now on. Within a life
        that happens once, so an answer that says otherwise was overtaken."""
        recovers = self.forgetful and not forgetful
        self.forgetful = forgetful and (self.forgetful or not self.answered)
        self.answered = True
        self.silence_ms = 0
        self.contact |= not self.forgetful
        return recovers

    def probe(self, next_index: int) -> None:
        self.state = ProgressState.PROBE
        self.next_index = max(next_index, self.match_index + 1)
        self.probing = False
        """A probe is on its way."""
        self.probe_end = 0
        """The last index that it carried or followed."""
        self.window.clear()
        self.window_bytes = 0
        self.quiet_ms = 0
        self.commit_sent = 0
        self.untold_ms = 0
        """For so long it was not told of a commit."""

    def wait_for_snapshot(self) -> None:
        self.state = ProgressState.SNAPSHOT
        self.probing = False
        self.window.clear()
        self.window_bytes = 0

    def probe_sent(self, last_index: int) -> None:
        self.probing = True
        self.probe_end = last_index

    def sent(self, last_index: int, payload_bytes: int) -> None:
        """A request with entries up to `last_index` went out in REPLICATE."""
        if not self.window:
            self.quiet_ms = 0
        self.window.append((last_index, payload_bytes))
        self.window_bytes += payload_bytes
        self.next_index = last_index + 1

    def window_full(self, *, messages_max: int, bytes_max: int) -> bool:
        return len(self.window) >= messages_max or self.window_bytes >= bytes_max

    def matched(self, index: int, *, probed: bool) -> bool:
        """The peer holds everything up to `index` durably; True when that is news, or ends a probe (`probed`: it took a
        request, perhaps the probe)."""
        news = index > self.match_index
        if news:
            self.match_index = index
            self.quiet_ms = 0
            while self.window and self.window[0][0] <= index:
                self.window_bytes -= self.window.popleft()[1]
        if self.state is ProgressState.REPLICATE:
            # An answer to a request from before a probe may know more than the probe assumed.
            self.next_index = max(self.next_index, self.match_index + 1)
        elif self.state is ProgressState.PROBE and self.match_index >= self.next_index - 1 and (probed or news):
            self._replicate()
            return True
        return news

    def _replicate(self) -> None:
        """The logs meet. What the probe carried is still on its way to the disk there."""
        carried = self.probe_end
        self.state = ProgressState.REPLICATE
        self.probing = False
        self.next_index = self.match_index + 1
        if carried > self.match_index:
            self.sent(carried, 0)

    def rejected(self, retry_index: int) -> bool:
        """The peer lacks the predecessor of something it was sent; `retry_index` is where to try next. False for an
        answer to a question that is settled."""
        if self.state is ProgressState.SNAPSHOT:
            return False
        if retry_index >= self.next_index:
            return False
        self.probe(retry_index)
        return True
