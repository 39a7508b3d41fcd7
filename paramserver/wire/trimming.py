"""Keeps protobuf from giving the process's free memory back to the kernel.

Its C runtime calls `malloc_trim(0)` after every 10,000 blocks of messages it has freed. A server frees so many in some
seconds, on the event loop: each time all free pages of the heap go, hundreds of MB, with the interpreter's lock and the
allocator's held, and are faulted in and zeroed again one by one. (Upstream has switched the call off since.)

What is done: the one slot through which that library calls `malloc_trim` is pointed at `abs`, for `abs(0)` does what is
wanted. Invariants: nothing is written unless every step found what it expected (a 64-bit ELF library for Linux, one
such slot, in memory that may be written, holding the address of `malloc_trim` or of the library's own stub); nobody
else's calls change. Must not know: why memory is kept.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ELF64_LITTLE = b"\x7fELF\x02\x01"
_LOAD, _DYNAMIC = 1, 2
_STRINGS, _SYMBOLS, _RELOCATIONS, _RELOCATIONS_BYTES, _JUMPS_BYTES, _JUMPS = 5, 6, 7, 8, 2, 23
_RELOCATION, _SYMBOL_BYTES = struct.Struct("<QQq"), 24
NAME_BYTES_MAX = 64


@dataclass(frozen=True, slots=True)
class _Library:
    """A shared library's file, and what its header says. Offsets and addresses in bytes."""

    data: bytes
    loads: tuple[tuple[int, int, int], ...]
    """(address, offset in the file, size) of what is loaded."""
    dynamic: dict[int, int]

    @classmethod
    def read(cls, path: str) -> _Library | None:
        data = Path(path).read_bytes()
        if data[:6] != _ELF64_LITTLE:
            return None
        table, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
        loads, dynamic = [], dict[int, int]()
        for number in range(count):
            kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, table + number * size)
            if kind == _LOAD:
                loads.append((address, offset, length))
            elif kind == _DYNAMIC:
                dynamic = dict(struct.iter_unpack("<QQ", data[offset : offset + length]))
        return cls(data, tuple(loads), dynamic)

    def at(self, address: int) -> int:
        """Offset in the file of what is loaded there."""
        for start, offset, length in self.loads:
            if start <= address < start + length:
                return address - start + offset
        raise ValueError(f"nothing is loaded at {address:#x}")

    def slots(self, name: str) -> Iterator[int]:
        """Addresses of the slots that hold the function of that name once it is found."""
        symbols, strings = self.at(self.dynamic[_SYMBOLS]), self.at(self.dynamic[_STRINGS])
        for table, size in ((_JUMPS, _JUMPS_BYTES), (_RELOCATIONS, _RELOCATIONS_BYTES)):
            if table not in self.dynamic:
                continue
            start = self.at(self.dynamic[table])
            for address, info, _ in _RELOCATION.iter_unpack(self.data[start : start + self.dynamic[size]]):
                (at,) = struct.unpack_from("<I", self.data, symbols + (info >> 32) * _SYMBOL_BYTES)
                found = self.data[strings + at : strings + at + NAME_BYTES_MAX].partition(b"\0")[0]
                if info >> 32 and found.decode("latin-1") == name:
                    yield address


def _mapped(path: str) -> list[tuple[int, int, bool]]:
    """(start, end, writable) of the file in this process, in rising order."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == path:
            start, end = (int(part, 16) for part in fields[0].split("-"))
            found.append((start, end, "w" in fields[1]))
    return found


def keep_protobuf_from_trimming() -> bool:
    """Whether it does not trim any more."""
    try:
        from google._upb import _message

        return _redirect(str(Path(_message.__file__).resolve()))
    except (ImportError, OSError, ValueError, KeyError, AttributeError, struct.error):
        return False  # another runtime, or another way of building it: it is left as it is


def _redirect(path: str) -> bool:
    library, mapped = _Library.read(path), _mapped(path)
    if library is None or not mapped:
        return False
    slots = list(library.slots("malloc_trim"))
    if not slots:
        return True  # a version that has no such call
    base = mapped[0][0] - min(address for address, _, _ in library.loads)
    address = base + slots[0]
    if len(slots) != 1 or not any(start <= address < end and writable for start, end, writable in mapped):
        return False
    libc = ctypes.CDLL(None)
    trim, nothing = (ctypes.cast(function, ctypes.c_void_p).value for function in (libc.malloc_trim, libc.abs))
    slot = ctypes.c_uint64.from_address(address)
    if slot.value == nothing:
        return True
    own = any(start <= slot.value < end for start, end, _ in mapped)
    if nothing is None or not (slot.value == trim or own):
        return False
    slot.value = nothing
    return True
