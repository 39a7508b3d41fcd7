"""Waiting for what goes on on the client's thread."""

import _thread
import concurrent.futures
import threading
import time

import pytest

from worker.loop import outcome


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_that_does_not_wake_the_wait_is_noticed() -> None:
    """`interrupt_main` is a signal that came just before the system call: it is pending, and nothing wakes."""
    main = threading.Timer(0.2, _thread.interrupt_main)
    main.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        outcome(concurrent.futures.Future(), 20)
    assert time.monotonic() - began < 10, "only when the wait was over"


def test_a_wait_ends_with_its_result_its_error_or_its_time() -> None:
    future: concurrent.futures.Future[int] = concurrent.futures.Future()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        outcome(future, 0.7)
    assert time.monotonic() - began >= 0.7
    threading.Timer(0.7, future.set_result, (7,)).start()
    assert outcome(future) == 7
    failed: concurrent.futures.Future[int] = concurrent.futures.Future()
    failed.set_exception(TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        outcome(failed)
