"""Times and limits of connections between nodes. Must not know: what travels."""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportOptions:
    """The same on all nodes of a cluster."""

    message_bytes_max: int = 32 * MIB
    """A frame, sent or received; a longer one is refused before memory is taken for it."""
    stream_window_bytes: int = 4 * MIB
    """What a peer or client may send ahead on one stream that is not read: gRPC holds this much for each, and the
    message that is being read. A long link carries at most this much a round trip."""
    reconnect_ms_min: int = 100
    reconnect_ms_max: int = 500
    """Pause before a broken connection is tried again, growing from min to max."""
    introduce_ms: int = 2000
    """Deadline of one introduction, and of opening a connection."""
    keepalive_ms: int = 10_000
    keepalive_timeout_ms: int = 5_000
    """gRPC asks a silent peer for a sign of life after the first, and gives it up after the second. On connections of
    frames each end gives one, and looks for one, every `keepalive_timeout_ms`. A link that falls silent without a
    reset is noticed after their sum, in both."""
    control_queue_envelopes: int = 8192
    control_queue_bytes: int = 8 * MIB
    """Waiting to be sent to one peer (a note counts, and 128 bytes an envelope); beyond, the newest are lost."""
    bulk_queue_envelopes: int = 8192
    bulk_queue_bytes: int = 64 * MIB
    """The same for payload, which is held by reference."""
    frame_envelopes_max: int = 256
    """Messages joined into one frame."""
    frame_bytes_max: int = 1 * MIB
    """Payload, and what describes it, joined into one frame; a message with more goes alone."""

    @property
    def quiet_looks_max(self) -> int:
        """After so many looks in a row that found no sign of life a peer is given up. Looks are counted, not time: a
        process that stood still itself has heard nothing either."""
        return max(2, self.keepalive_ms // self.keepalive_timeout_ms)

    def validate(self) -> list[str]:
        """All problems at once, one line each."""
        problems = []
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                problems.append(f"{field.name} must be a whole number of at least 1, not {value!r}")
        if not problems and self.reconnect_ms_min > self.reconnect_ms_max:
            problems.append(
                f"reconnect_ms_min ({self.reconnect_ms_min}) must not exceed reconnect_ms_max ({self.reconnect_ms_max})"
            )
        return problems
