"""Arrays of other libraries: on the way in to the host, on the way out to where the caller wants them.

A NumPy array is taken as it is. A CuPy array is copied from its device; everything else that speaks DLPack (PyTorch,
JAX, TensorFlow, ...) is looked at in place where it lies in host memory, and goes through CuPy where it lies on a CUDA
device. No library is imported but CuPy, and that only for an array on a device. Invariant: what cannot be taken is
InvalidArgument with the tensor's name. Must not know: layouts, servers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from worker.errors import InvalidArgument

if TYPE_CHECKING:
    from worker.device.spread import Spread
    from worker.tensors import Tensors

ON_HOST = frozenset({1, 3, 11, 13})
"""DLPack's kDLCPU, kDLCUDAHost, kDLROCMHost, kDLCUDAManaged: memory that the processor reads."""
CUDA = 2
DEVICE_NAMES = {2: "CUDA", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI"}


def on_host(arrays: Mapping[str, Any], what: str = "gradients") -> Mapping[str, Any]:
    """The same names with NumPy arrays; the mapping itself where they all are. Nothing is copied that lies in host
    memory. Raises InvalidArgument."""
    if not isinstance(arrays, Mapping):
        raise InvalidArgument(f"{what}: {type(arrays).__name__}", "expected a mapping of tensor names to arrays")
    if set(map(type, arrays.values())) <= {np.ndarray}:
        return arrays
    return {name: array_of(name, value) for name, value in arrays.items()}


def array_of(name: str, value: Any) -> npt.NDArray[Any]:
    """One of them. Raises InvalidArgument."""
    if isinstance(value, np.ndarray):
        return value
    if is_cupy(value):
        host: npt.NDArray[Any] = value.get()
        return host
    try:
        if hasattr(value, "__dlpack__"):
            return _exchanged(name, value)
        array = np.asarray(value)
    except InvalidArgument:
        raise
    except Exception as error:  # what other libraries raise here is their affair: each its own class
        raise InvalidArgument(
            f"tensor {name!r}: {_of(value)} cannot be read: {error}",
            "expected an array of floats (NumPy, CuPy, or anything with DLPack; of PyTorch: tensor.detach())",
        ) from None
    if array.dtype == object:
        raise InvalidArgument(f"tensor {name!r}: expected an array of floats, received {_of(value)}")
    return array


def _exchanged(name: str, value: Any) -> npt.NDArray[Any]:
    kind, number = _device(value)
    if kind in ON_HOST:
        return np.from_dlpack(value)
    where = f"{DEVICE_NAMES.get(kind, f'device type {kind}')}:{number}"
    if kind != CUDA:
        raise InvalidArgument(
            f"tensor {name!r}: expected an array in host memory or on CUDA, received {_of(value)} on {where}",
            "copy it to the host first",
        )
    try:
        import cupy
    except ImportError:
        raise InvalidArgument(
            f"tensor {name!r}: expected an array in host memory, received {_of(value)} on {where}, and CuPy, which "
            "would copy it, is not installed",
            "pip install 'paramserver[gpu]', or copy it to the host first (of PyTorch: tensor.cpu())",
        ) from None
    host: npt.NDArray[Any] = cupy.from_dlpack(value).get()
    return host


def _device(value: Any) -> tuple[int, int]:
    """DLPack's (device type, device number)."""
    kind, number = value.__dlpack_device__()
    return int(kind), int(number)


def on_cuda(value: Any) -> bool:
    """It speaks DLPack and lies in the memory of a CUDA device."""
    return hasattr(value, "__dlpack_device__") and _device(value)[0] == CUDA


def is_cupy(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "cupy" and hasattr(value, "get")


def _of(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def device_of(arrays: Any) -> int | None:
    """Which device holds them, where all are CuPy arrays and of one device."""
    if not isinstance(arrays, Mapping) or not arrays or not all(map(is_cupy, arrays.values())):
        return None
    numbers = {int(array.device.id) for array in arrays.values()}
    return numbers.pop() if len(numbers) == 1 else None


class Destination:
    """Arrays of the caller's that weights are copied to: float32 or float64, of the tensors' shapes, of any strides.
    Checked before anything is asked for; raises InvalidArgument."""

    def __init__(
        self,
        out: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        spread: Callable[[int], Spread] | None = None,
    ) -> None:
        """`spread`: by number of a device, what fills arrays of it at once, where `shapes` are of a whole model."""
        if not isinstance(out, Mapping):
            raise InvalidArgument(
                f"out: {type(out).__name__}", "expected what pull(), push_pull() or buffer() gave, or name -> array"
            )
        problems = [
            f"tensor {name!r}: expected one of the model, received an unknown one" for name in _beyond(out, shapes)
        ]
        problems += [
            f"tensor {name!r}: expected shape {shape}, received nothing"
            for name, shape in shapes.items()
            if name not in out
        ]
        if problems:
            raise InvalidArgument(f"out: {'; '.join(problems)}")
        self._arrays = {name: _writable(name, out[name], shape) for name, shape in shapes.items()}
        self._spread = self._spread_by(spread)

    def _spread_by(self, spread: Callable[[int], Spread] | None) -> Spread | None:
        number = device_of(self._arrays)
        if spread is None or number is None or not all(one.flags.c_contiguous for one in self._arrays.values()):
            return None
        found = spread(number)
        found.begin()
        return found

    def fill(self, weights: Tensors) -> None:
        if self._spread is not None:
            self._spread.fill(weights.flat, list(self._arrays.values()))
            return
        for name, array in self._arrays.items():
            if is_cupy(array):
                _put(array, weights[name])
            else:
                np.copyto(array, weights[name])


def _put(array: Any, values: npt.NDArray[np.float32]) -> None:
    """Into a CuPy array of any strides; there when this returns, whatever stream reads it."""
    import cupy

    from worker.device.guard import guarded  # worker.device imports this

    with guarded("copying weights to a device"), array.device:
        array[...] = cupy.asarray(values)
        cupy.cuda.get_current_stream().synchronize()


def _beyond(out: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Iterable[str]:
    return (name for name in out if name not in shapes)


def _writable(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    where = f"out: tensor {name!r}"
    array = value
    if not isinstance(value, np.ndarray) and not is_cupy(value):
        if not hasattr(value, "__dlpack__") or _device(value)[0] not in ON_HOST:
            raise InvalidArgument(f"{where}: expected a NumPy or CuPy array, received {_of(value)}")
        array = array_of(name, value)
    if array.shape != shape:
        raise InvalidArgument(f"{where}: expected shape {shape}, received shape {array.shape}")
    if array.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InvalidArgument(f"{where}: expected float32 or float64, received {array.dtype}")
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        raise InvalidArgument(
            f"{where}: expected an array that may be written, received a read-only one of {_of(value)}",
            "of PyTorch: tensor.numpy()",
        )
    return array
