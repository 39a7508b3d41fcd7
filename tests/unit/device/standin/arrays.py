"""The stand-in's arrays and the functions on them: eager, on what the current stream has done by then.

As with CuPy, an array never becomes a NumPy array by itself, nor the other way round. Must not know: kernels.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from tests.unit.device.standin.world import World, unheld

FUNCTIONS = ("maximum", "exp", "log", "isfinite", "matmul", "concatenate", "array_equal", "where")
METHODS = ("sum", "max", "min", "mean", "all", "any", "argmax", "astype", "copy")


class Pointer:
    """cupy.cuda.MemoryPointer"""

    def __init__(self, world: World, array: Any) -> None:
        self._world = world
        self._array = array
        self.ptr = array._a.ctypes.data

    def memset_async(self, value: int, size: int, stream: Any) -> None:
        self._world.called("memset")
        target = self._array._a
        assert size == target.nbytes
        stream.queue.give("memset", lambda: target.view(np.uint8).fill(value))


def make(world: World, current: Any, device_class: Any) -> types.SimpleNamespace:
    """The class and the functions. `current()`: the calling thread's stream; `device_class`: cupy.cuda.Device."""

    def ready() -> None:
        world.called("array")
        current().queue.run()

    def bare(value: Any) -> Any:
        if isinstance(value, ndarray):
            return value._a
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError(f"Unsupported type {type(value)}")
        if isinstance(value, tuple | list):
            return type(value)(map(bare, value))
        return value

    def wrap(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            return ndarray(np.asarray(value))
        return value

    class ndarray(NDArrayOperatorsMixin):
        __module__ = "cupy"

        def __init__(self, array: np.ndarray, memory: Any = None) -> None:
            if memory is None:
                memory = world.allocate(array.nbytes)
                place = memory.bytes.view(array.dtype).reshape(array.shape)
                np.copyto(place, array)
                array = place
            self._a, self._memory = array, memory

        def _view(self, array: np.ndarray) -> Any:
            return ndarray(array, self._memory) if np.shares_memory(array, self._a) else ndarray(array)

        shape = property(lambda self: self._a.shape)
        dtype = property(lambda self: self._a.dtype)
        size = property(lambda self: self._a.size)
        ndim = property(lambda self: self._a.ndim)
        nbytes = property(lambda self: self._a.nbytes)
        strides = property(lambda self: self._a.strides)
        flags = property(lambda self: self._a.flags)
        data = property(lambda self: Pointer(world, self))
        device = property(lambda self: device_class(0))
        T = property(lambda self: self._view(self._a.T))

        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
            ready()
            if out is not None:
                kwargs["out"] = tuple(one._a for one in out)
            result = getattr(ufunc, method)(*map(bare, inputs), **kwargs)
            return out[0] if out is not None else wrap(result)

        def __len__(self) -> int:
            return len(self._a)

        def __getitem__(self, key: Any) -> Any:
            found = self._a[bare(key)]
            if isinstance(found, np.ndarray) and np.shares_memory(found, self._a):
                return ndarray(found, self._memory)
            ready()
            return wrap(self._a[bare(key)])

        def __setitem__(self, key: Any, value: Any) -> None:
            ready()
            self._a[bare(key)] = bare(value)

        def reshape(self, *shape: Any) -> Any:
            made = self._a.reshape(*shape)
            if not np.shares_memory(made, self._a):
                ready()
                made = self._a.reshape(*shape)
            return self._view(made)

        def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> Any:
            world.called("download")
            stream = stream or current()
            host = np.empty(self.shape, self.dtype) if out is None else out
            if host.dtype != self.dtype:
                raise TypeError(f"{host.dtype} array cannot be obtained from {self.dtype} array")
            if host.shape != self.shape:
                raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {host.shape}")
            source, memory = self._a, self._memory
            assert out is None or (host.flags.c_contiguous and source.flags.c_contiguous)
            target = unheld(host) if world.is_pinned(host) else host
            stream.queue.give("download", lambda: (memory, np.copyto(target, source))[1])
            if out is not None and not world.is_pinned(host):
                world.counts["copy pageable"] += 1
                blocking = True
            if blocking:
                stream.queue.run()
            return host

        def set(self, arr: Any, stream: Any = None) -> None:
            world.called("upload")
            if not isinstance(arr, np.ndarray):
                raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
            if arr.dtype != self.dtype:
                raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
            if arr.shape != self.shape:
                raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
            if not (self._a.flags.c_contiguous or self._a.flags.f_contiguous):
                raise RuntimeError("Cannot set to non-contiguous array")
            if not world.is_pinned(arr):
                world.counts["copy pageable"] += 1
                arr = arr.copy()
            elif arr.flags.c_contiguous:
                arr = unheld(arr)
            target, memory = self._a, self._memory
            (stream or current()).queue.give("upload", lambda: (memory, np.copyto(target, arr))[1])

        def item(self) -> Any:
            return self.get().item()

        def __float__(self) -> float:
            return float(self.item())

        def __int__(self) -> int:
            return int(self.item())

        def __bool__(self) -> bool:
            return bool(self.item())

    def method(name: str) -> Any:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            ready()
            made = getattr(self._a, name)(*args, **kwargs)
            return self if made is self._a else wrap(made)  # astype(copy=False) gives itself

        return call

    for name in METHODS:
        setattr(ndarray, name, method(name))

    def function(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            ready()
            made = getattr(np, name)(*map(bare, args), **kwargs)
            first = args[0] if args else None
            return first if isinstance(first, ndarray) and made is first._a else wrap(made)

        return call

    def asarray(value: Any, dtype: Any = None) -> Any:
        ready()
        if isinstance(value, ndarray):
            return value if dtype in (None, value.dtype) else value.astype(dtype)
        return ndarray(np.array(value, dtype))

    def ascontiguousarray(array: Any) -> Any:
        if array.flags.c_contiguous:
            return array if array.shape else array.reshape(1)  # as CuPy does; nothing runs
        ready()
        return ndarray(np.ascontiguousarray(array._a))

    def created(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            ready()
            return ndarray(getattr(np, name)(*args, **kwargs))

        return call

    def zeros(shape: Any, dtype: Any = float) -> Any:
        """As a GPU: not yet."""
        made = empty(shape, dtype)
        target, memory = made._a, made._memory
        current().queue.give("zeros", lambda: (memory, target.fill(0))[1])
        return made

    def empty(shape: Any, dtype: Any = float) -> Any:
        world.called("array")
        kind = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        memory = world.allocate(int(np.prod(shape)) * kind.itemsize)
        return ndarray(memory.bytes.view(kind).reshape(shape), memory)

    def as_strided(array: Any, shape: Any, strides: Any) -> Any:
        return ndarray(np.lib.stride_tricks.as_strided(array._a, shape, strides), array._memory)

    def from_dlpack(value: Any) -> Any:
        found = value.__dlpack__(stream=current().ptr)
        assert isinstance(found, ndarray)
        return found

    functions = {name: function(name) for name in FUNCTIONS}
    return types.SimpleNamespace(
        ndarray=ndarray,
        asarray=asarray,
        ascontiguousarray=ascontiguousarray,
        array=asarray,
        arange=created("arange"),
        ones=created("ones"),
        zeros=zeros,
        empty=empty,
        asnumpy=lambda array: array.get() if isinstance(array, ndarray) else np.asarray(array),
        from_dlpack=from_dlpack,
        lib=types.SimpleNamespace(stride_tricks=types.SimpleNamespace(as_strided=as_strided)),
        **functions,
    )
