"""What of CuPy's errors is lack of memory, what is the end of the device, and what is none of its own."""

from __future__ import annotations

import pytest

from tests.unit.device.standin.world import CUDARuntimeError, OutOfMemoryError
from worker import errors
from worker.device.guard import guarded


class CompileException(Exception):
    __module__ = "cupy.cuda.compiler"


class NVRTCError(RuntimeError):
    """Its status 2 is no lack of memory."""

    __module__ = "cupy_backends.cuda.libs.nvrtc"
    status = 2


@pytest.mark.parametrize("error", [OutOfMemoryError(10, 20), CUDARuntimeError(2)])
def test_lack_of_memory_may_be_tried_again(error: Exception) -> None:
    with pytest.raises(errors.DeviceOutOfMemory, match="computing: ") as refused, guarded("computing"):
        raise error
    assert refused.value.retryable
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    assert refused.value.__cause__ is error


@pytest.mark.parametrize("error", [CUDARuntimeError(700), CUDARuntimeError(100), CompileException(), NVRTCError("x")])
def test_all_else_of_cupy_ends_the_process(error: Exception) -> None:
    with pytest.raises(errors.DeviceFailed, match="computing: ") as refused, guarded("computing"):
        raise error
    assert type(refused.value) is errors.DeviceFailed
    assert not refused.value.retryable


@pytest.mark.parametrize("error", [MemoryError(), TypeError("x"), errors.InvalidArgument("x"), KeyboardInterrupt()])
def test_errors_of_others_stay_what_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, guarded("computing"):
        raise error
    assert raised.value is error
