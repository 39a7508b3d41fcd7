"""The array namespace, NumPy or CuPy, and what moves gradients and weights between it and host memory.

`get("auto")` takes CuPy where it is installed and sees a GPU, NumPy otherwise. Model code is written against
`Device.xp`; host memory is NumPy. `link.Link` ties a device to a handle of a model: it alone in this folder knows of
models; nothing here knows of servers. CuPy is imported only when it is asked for, or given.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from worker.device.backend import Backend
from worker.device.cuda import Cuda
from worker.device.guard import guarded
from worker.device.host import Host
from worker.errors import InvalidArgument

Prefer = Literal["auto", "numpy", "cupy"]
CHOICES: tuple[Prefer, ...] = ("auto", "numpy", "cupy")


@dataclass(frozen=True, slots=True)
class Device:
    """`xp` is numpy or cupy. `description` names the hardware, for people; `number` is CuPy's."""

    name: str
    xp: Any
    description: str
    number: int = 0

    def backend(self) -> Backend:
        """A new one, with streams of its own. Raises DeviceFailed."""
        return Host() if self.xp is np else Cuda(self.xp, self.number)

    def guarded(self, what: str) -> AbstractContextManager[None]:
        """What the library raises in it for lack of memory or a CUDA error is DeviceOutOfMemory or DeviceFailed;
        `what` is being done."""
        return guarded(what)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.xp is not np:
            with guarded("waiting for the device"):
                self.xp.cuda.Device(self.number).synchronize()

    def free(self) -> None:
        """Give memory back that the library keeps for later."""
        if self.xp is not np:
            with guarded("freeing memory"):
                self.xp.get_default_memory_pool().free_all_blocks()
                self.xp.get_default_pinned_memory_pool().free_all_blocks()

    def from_host(self, array: npt.NDArray[Any]) -> Any:
        """The same values on the device; NumPy: the array itself, not a copy."""
        return self.xp.asarray(array)

    def to_host(self, array: Any, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """A host array with the values, or `out` filled with them. Waits for the device."""
        if self.xp is not np:
            host: npt.NDArray[Any] = self.xp.asnumpy(array)
        else:
            host = np.asarray(array)
        if out is None:
            return host
        np.copyto(out, host, casting="no")
        return out


def get(prefer: str = "auto") -> Device:
    """Raises InvalidArgument for a name outside CHOICES, or for "cupy" where there is none; "auto" never does."""
    if prefer not in CHOICES:
        raise InvalidArgument(f"device {prefer!r}", f"expected one of {', '.join(CHOICES)}")
    if prefer == "numpy":
        return _numpy()
    device, problem = _cupy()
    if device is not None:
        return device
    if prefer == "cupy":
        raise InvalidArgument(f"device cupy: {problem}", "pip install 'paramserver[gpu]', or use --device numpy")
    return _numpy()


def of_number(number: int) -> Device:
    """CuPy's device of that number, which an array of CuPy's is on."""
    import cupy

    return Device("cupy", cupy, "", number)


def _numpy() -> Device:
    return Device("numpy", np, "CPU")


def _cupy() -> tuple[Device | None, str]:
    try:
        import cupy
    except ImportError as error:
        return None, str(error)
    except Exception as error:  # a broken installation (missing driver libraries) raises what it likes
        return None, f"{type(error).__name__}: {error}"
    try:
        if cupy.cuda.runtime.getDeviceCount() < 1:
            return None, "no GPU"
        number = cupy.cuda.Device().id
        name = cupy.cuda.runtime.getDeviceProperties(number)["name"]
        return Device("cupy", cupy, name.decode() if isinstance(name, bytes) else str(name), number), ""
    except Exception as error:  # no driver, no device, a driver too old: each its own class
        return None, f"{type(error).__name__}: {error}"
