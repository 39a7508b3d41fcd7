"""The modules: cupy, cupyx, and what of cupy.cuda is used. They stand in sys.modules as long as `installed` is open."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.unit.device.standin import arrays, compiled, reference
from tests.unit.device.standin.world import CUDARuntimeError, OutOfMemoryError, World

DTYPES = {"P": None, "U": np.uint64, "u": np.uint32, "f": np.float32}


def _cuda(world: World) -> types.SimpleNamespace:
    class Stream:
        null: Any = None

        def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
            world.called("stream")
            self.ptr = 0 if null else world.pointer()
            self.device_id = -1 if null else 0
            self.queue = world.queue(self.ptr)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Stream) and self.ptr == other.ptr

        def __hash__(self) -> int:
            return self.ptr

        def __enter__(self) -> Stream:
            stack().append(self)
            return self

        def __exit__(self, *_: object) -> None:
            stack().pop()

        def synchronize(self) -> None:
            world.called("synchronize")
            self.queue.run()

        def wait_event(self, event: Event) -> None:
            world.called("wait_event")
            if event.mark is not None:
                self.queue.wait(event.mark)

        def record(self, event: Event | None = None) -> Event:
            event = event or Event()
            event.record(self)
            return event

    class Event:
        def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
            self.mark: Any = None

        def record(self, stream: Stream | None = None) -> None:
            world.called("record")
            self.mark = (stream or current()).queue.mark()

        def synchronize(self) -> None:
            world.called("synchronize")
            if self.mark is not None:
                self.mark.stream.run(self.mark)

        @property
        def done(self) -> bool:
            return self.mark is None or self.mark.done

    class Device:
        def __init__(self, number: int | None = None) -> None:
            self.id = 0 if number is None else number

        def __enter__(self) -> Device:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def synchronize(self) -> None:
            world.called("synchronize")
            for queue in list(world.queues.values()):
                queue.run()

    Stream.null = Stream(null=True)

    def stack() -> list[Stream]:
        if not hasattr(world.current, "stack"):
            world.current.stack = [Stream.null]
        return world.current.stack

    def current(device: int = -1) -> Stream:
        return stack()[-1]

    return types.SimpleNamespace(
        Stream=Stream,
        Event=Event,
        Device=Device,
        get_current_stream=current,
        get_elapsed_time=lambda start, end: 1.0,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=types.SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=lambda: 1,
            getDeviceProperties=lambda number: {"name": b"stand-in", "totalGlobalMem": 1 << 34},
            runtimeGetVersion=lambda: 12000,
            driverGetVersion=lambda: 12000,
        ),
    )


def _raw_module(world: World, cuda: Any, ndarray: Any) -> Any:
    class RawModule:
        def __init__(self, *, code: str, options: tuple[str, ...] = ()) -> None:
            self._code = code

        def get_function(self, name: str) -> Any:
            assert name in self._code

            def kernel(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
                world.called(f"launch {name}")
                assert 1 <= grid[0] < 2**31
                assert 1 <= block[0] <= 1024
                letters = compiled.SIGNATURES[name]
                assert len(letters) == len(args), name
                values = []
                for letter, value in zip(letters, args, strict=True):
                    if letter == "P":
                        assert isinstance(value, ndarray), (name, type(value))
                        values.append(value.data.ptr)
                    else:
                        # A Python number would be passed in 64 bits, whatever the kernel expects.
                        assert type(value) is DTYPES[letter], (name, type(value))
                        values.append(value.item())

                def run() -> None:
                    tables = args[0]._a if name in ("gather", "scatter") else ()
                    if any(map(world.is_gone, map(int, tables))):
                        world.lost = CUDARuntimeError(700)  # an illegal address
                        raise world.lost
                    (compiled.run if world.compiled else reference.run)(name, grid[0], block[0], values)

                cuda.get_current_stream().queue.give(name, run)

            return kernel

    return RawModule


@contextmanager
def installed(**options: Any) -> Iterator[World]:
    """`options`: of World."""
    world = World(**options)
    cuda = _cuda(world)
    made = arrays.make(world, cuda.get_current_stream, cuda.Device)
    cupy, cupyx = types.ModuleType("cupy"), types.ModuleType("cupyx")
    vars(cupy).update(vars(made))
    cupy.cuda = cuda
    cupy.__version__ = "stand-in"
    for kind in ("float16", "float32", "float64", "int32", "int64", "uint16", "uint32", "uint64"):
        setattr(cupy, kind, getattr(np, kind))
    cupy.RawModule = _raw_module(world, cuda, made.ndarray)
    pool = types.SimpleNamespace(free_all_blocks=lambda: world.called("free_all_blocks"))
    cupy.get_default_memory_pool = cupy.get_default_pinned_memory_pool = lambda: pool

    def empty_pinned(shape: int, dtype: Any = float) -> np.ndarray:
        world.called("pinned")
        return world.pinned_array(shape, np.dtype(dtype))

    cupyx.empty_pinned = empty_pinned
    before = {name: sys.modules.get(name) for name in ("cupy", "cupyx")}
    sys.modules.update(cupy=cupy, cupyx=cupyx)
    try:
        yield world
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
