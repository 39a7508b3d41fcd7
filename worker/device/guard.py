"""What goes wrong on a device, as errors of the worker (fault 32).

CuPy raises many classes: of its memory pool, of the CUDA runtime and driver, of cuBLAS, of the compiler. Whatever of
them leaves `guarded` is DeviceOutOfMemory, after which the device still works, or DeviceFailed: CUDA keeps an error of
a kernel for as long as the process lives, so nothing that is asked of the device afterwards can be believed. Must not
know: gradients, servers. CuPy is known by the names of its modules: it is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from worker.errors import DeviceFailed, DeviceOutOfMemory

_MODULES = frozenset({"cupy", "cupyx", "cupy_backends"})
_OF_CUDA = frozenset({"CUDARuntimeError", "CUDADriverError"})
_MEMORY = 2
"""Their cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY: also what page-locked host memory ends with."""


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """`what` is being done, for people: "computing the gradient"."""
    try:
        yield
    except Exception as error:
        kind = type(error)
        if kind.__module__.partition(".")[0] not in _MODULES:
            raise
        cause = f"{what}: {kind.__name__}: {str(error).strip() or 'no reason given'}"
        lacking = kind.__name__ in _OF_CUDA and getattr(error, "status", None) == _MEMORY
        if lacking or isinstance(error, MemoryError):
            raise DeviceOutOfMemory(
                cause, "the device works on: free some of its memory, or compute with less, such as a smaller batch"
            ) from error
        raise DeviceFailed(
            cause,
            "CUDA keeps the error for as long as this process lives: start it again, it takes its rank and step up",
        ) from error
