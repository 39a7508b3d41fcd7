"""What can be set about the log.

Owns `WalOptions`. Invariant: what `validate` accepts can be used as it is. Must not know: how segments are used.
"""

from __future__ import annotations

from dataclasses import dataclass

from consensus.storage.batches import ALIGN_BYTES

SEGMENT_BYTES_MIN = 4 * ALIGN_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class WalOptions:
    """All sizes in bytes."""

    segment_bytes: int = 64 << 20
    """A segment file. A batch that does not fit into an empty one gets a file of its own size."""
    flush_bytes_max: int = 8 << 20
    """Records of one batch; more is cut into several, one record that is larger is a batch alone (RULES W5)."""
    spare_segments: int = 1
    """Files kept ready, allocated and zeroed or recycled. When there is none a rotation makes one and waits for it."""
    retired_segments_max: int = 8
    """Files without live entries that are kept to be recycled, or as many as the log has needed before, if that is
    more; on a full disk no more than this. The rest is removed."""
    held_segments_max: int = 8
    """Segments that hold live entries, beside as many as these entries fill, beyond which the one that holds the least
    is rewritten, if that is little. Beyond two it is, if that is next to nothing."""
    reserve_bytes: int = 4 << 20
    """A small file kept for hard state, no-ops and configurations when the disk is full (RULES W5): 1024 batches."""
    open_copy_bytes_max: int = 8 << 20
    """A log with at most this much live payload is copied whole when it is opened."""
    recovered_bytes_max: int = 4 << 20
    """Payload that is handed over when the log is opened: that of each group's newest entries. The rest is read when it
    is needed."""

    def validate(self) -> None:
        """Raises `ValueError` that lists all problems."""
        problems = []
        for name in ("segment_bytes", "reserve_bytes"):
            size = getattr(self, name)
            if size < SEGMENT_BYTES_MIN or size % ALIGN_BYTES:
                problems.append(
                    f"{name} is {size}; at least {SEGMENT_BYTES_MIN} and a multiple of {ALIGN_BYTES} is needed"
                )
        if self.reserve_bytes > self.segment_bytes:
            problems.append(f"reserve_bytes {self.reserve_bytes} is more than segment_bytes {self.segment_bytes}")
        if not 0 < self.flush_bytes_max < 2**32:
            problems.append(f"flush_bytes_max is {self.flush_bytes_max}; 1 to {2**32 - 1} is possible")
        for name in (
            "spare_segments",
            "retired_segments_max",
            "held_segments_max",
            "open_copy_bytes_max",
            "recovered_bytes_max",
        ):
            if getattr(self, name) < 0:
                problems.append(f"{name} is {getattr(self, name)}; it can't be negative")
        if problems:
            raise ValueError("; ".join(problems))
