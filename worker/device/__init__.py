"""The array namespace: NumPy or CuPy.

`get("auto")` takes CuPy where it is installed and sees a GPU, NumPy otherwise. Model code is written against
`Device.xp`; host memory is NumPy. Must not know: models, servers. CuPy is imported only here, and only when it is
asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from worker.errors import InvalidArgument

Prefer = Literal["auto", "numpy", "cupy"]
CHOICES: tuple[Prefer, ...] = ("auto", "numpy", "cupy")


@dataclass(frozen=True, slots=True)
class Device:
    """`xp` is numpy or cupy. `description` names the hardware, for people."""

    name: str
    xp: Any
    description: str

    def from_host(self, array: npt.NDArray[Any]) -> Any:
        """The same values on the device; NumPy: the array itself, not a copy."""
        return self.xp.asarray(array)

    def to_host(self, array: Any, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """A host array with the values, or `out` filled with them. Waits for the device."""
        if self.name == "cupy":
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
        properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        name = properties["name"]
        return Device("cupy", cupy, name.decode() if isinstance(name, bytes) else str(name)), ""
    except Exception as error:  # no driver, no device, a driver too old: each its own class
        return None, f"{type(error).__name__}: {error}"
