"""The harness itself: nothing outlives it, nothing is believed before it is said."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paramserver.lab.cluster import wait_for
from paramserver.lab.errors import DeadlinePassed, Died, NotReady
from paramserver.lab.ports import ReservedPorts
from paramserver.lab.processes import Child

# Says `ready`, then waits for a signal; SIGTERM ends it with 7.
POLITE = (
    "import signal, sys\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    "print('noise'); print('ready now')\n"
    "while True: signal.pause()\n"
)


def child(tmp_path: Path, code: str) -> Child:
    return Child("child", (sys.executable, "-c", code), tmp_path / "child.log")


def gone(pid: int) -> bool:
    """Dead: reaped, or a zombie that somebody else has to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_life(tmp_path: Path) -> None:
    one = child(tmp_path, POLITE)
    one.start()
    assert one.await_line("ready", 10) == "ready now"
    assert one.running
    with pytest.raises(ValueError, match="runs already"):
        one.start()
    assert one.terminate() == 7
    one.start()
    one.await_line("ready", 10)
    one.kill()
    assert (one.running, one.code) == (False, -signal.SIGKILL)
    assert one.log.read_text().count("ready now") == 2
    assert one.output() == "noise\nready now\n"  # of the latest start


def test_a_paused_process_can_be_terminated(tmp_path: Path) -> None:
    one = child(tmp_path, POLITE)
    one.start()
    one.await_line("ready", 10)
    one.pause()
    stat = Path(f"/proc/{one.pid}/stat")
    wait_for(lambda: stat.read_text().rsplit(")", 1)[1].split()[0] == "T", "the stop", 5)
    assert one.terminate() == 7


def test_death_is_told_with_last_words(tmp_path: Path) -> None:
    one = child(tmp_path, "import sys; print('the disk is full'); sys.exit(74)")
    one.start()
    with pytest.raises(Died, match="ended with 74") as caught:
        one.await_line("ready", 10)
    assert caught.value.code == 74
    assert "the disk is full" in caught.value.hint


def test_silence_is_told(tmp_path: Path) -> None:
    one = child(tmp_path, "import signal; signal.pause()")
    one.start()
    with pytest.raises(NotReady):
        one.await_line("ready", 0.05)
    with pytest.raises(NotReady):
        one.wait(0.05)
    one.kill()


def test_deadline_names_what_was_awaited() -> None:
    with pytest.raises(DeadlinePassed, match="the moon"):
        wait_for(lambda: None, "the moon", 0.02)


@pytest.mark.parametrize("end", [signal.SIGKILL, None], ids=["parent killed", "parent raises"])
def test_no_child_outlives_its_parent(tmp_path: Path, end: signal.Signals | None) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from paramserver.lab.processes import Child\n"
        f"one = Child('c', (sys.executable, '-c', {POLITE!r}), pathlib.Path({str(tmp_path / 'c.log')!r}))\n"
        "one.start(); one.await_line('ready', 10); print(one.pid, flush=True)\n"
    )
    code += "time.sleep(60)\n" if end is not None else "raise SystemExit(3)\n"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    if end is not None:
        parent.send_signal(end)
    parent.wait(10)
    parent.stdout.close()
    wait_for(lambda: gone(pid), "the child's end", 5)


def test_reserved_ports_serve_us_and_nobody_else() -> None:
    with ReservedPorts(2) as ports:
        assert len(set(ports.numbers)) == 2
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((ports.host, ports.numbers[0]))
        server.listen()
        with socket.socket() as other, pytest.raises(OSError):
            other.bind((ports.host, ports.numbers[1]))
        server.close()
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports.numbers[1]))


def test_start_is_quick(tmp_path: Path) -> None:
    """The go-between that ties a child to its parent is not what a test waits for."""
    one = Child("echo", ("/bin/echo", "ready"), tmp_path / "echo.log")
    started = time.monotonic()
    one.start()
    one.await_line("ready", 10)
    assert one.wait(5) == 0
    assert time.monotonic() - started < 5.0
    assert os.getpid() != one.pid
