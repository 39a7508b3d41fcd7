"""Memory settings that servers and workers make at start, before the first large allocation.

glibc serves each block above a threshold by a fresh mmap whose pages fault in at a fraction of memcpy's speed, and
gives free memory back at once; protobuf gives all of it back now and then (`trimming.py`). A parameter server allocates
and frees the same sizes all the time: it keeps what it has. The price: resident memory stays at its peak.
`PARAMSERVER_MALLOC=default` leaves glibc and protobuf as they are. Must not know: who calls.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Mapping
from functools import partial

from paramserver.wire.hugepages import lengthen_heap
from paramserver.wire.trimming import keep_protobuf_from_trimming

SWITCH = "PARAMSERVER_MALLOC"
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_GIB, _MIB = 1 << 30, 1 << 20
_TOP_PAD = 64 * _MIB
_COLLECT_AFTER = (5_000, 2, 10_000)
"""Young objects by thousands: 50,000 at a time stopped the event loop for 100 to 200 ms under load, 5,000 for ten. The
old ones by hundreds of millions."""


def collect_seldom() -> None:
    """For servers: a log holds a hundred thousand small objects for minutes, and walking all of them again and again
    for cycles cost a fifth of the time of small commands. What is counted frees memory as always."""
    gc.set_threshold(*_COLLECT_AFTER)


def keep_memory(environment: Mapping[str, str] | None = None) -> str:
    """Make the settings; returns one line that says what was done (for the log)."""
    environment = os.environ if environment is None else environment
    choice = environment.get(SWITCH, "keep")
    if choice == "default":
        return f"malloc: as it is ({SWITCH}=default)"
    try:
        libc = ctypes.CDLL(None)
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return "malloc: as it is (no glibc)"
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # Older glibc takes at most half a heap (32 MiB) as a threshold.
    threshold = next((size for size in (_GIB, 32 * _MIB) if mallopt(_M_MMAP_THRESHOLD, size)), 0)
    done = mallopt(_M_TRIM_THRESHOLD, 2 * _GIB - 1) and mallopt(_M_TOP_PAD, _TOP_PAD) and mallopt(_M_ARENA_MAX, 1)
    if not (threshold and done):
        return "malloc: as it is (settings refused)"
    trims = "" if keep_protobuf_from_trimming() else "; protobuf gives it back now and then"
    pages = ", in huge pages" if lengthen_heap(libc, partial(mallopt, _M_TOP_PAD), _TOP_PAD) else ""
    return f"malloc: memory is kept{pages}, mmap above {threshold // _MIB} MiB{trims} ({SWITCH}=default turns this off)"
