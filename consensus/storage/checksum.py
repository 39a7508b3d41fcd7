"""CRC32C, the checksum of everything that storage writes: the core's, under the name that storage uses."""

from __future__ import annotations

from consensus.core.checksum import crc32c

__all__ = ["crc32c"]
