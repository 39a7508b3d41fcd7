"""FAULTS bad input 22 (flags) and 23: a wrong command line starts nothing, and says all that is wrong."""

import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PARAMSERVER = (sys.executable, "-m", "paramserver")
NOBODY = "127.0.0.1:1"


def run(*words: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PARAMSERVER, *words], capture_output=True, text=True, timeout=timeout, check=False)


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


def test_server_reports_all_problems_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    done = run(
        *("server", "--node", "9", "--members", "1=127.0.0.1:7001,2=127.0.0.1:7002", "--data-dir", str(folder)),
        *("--heartbeat-ms", "500", "--election-timeout-ms", "300", "--tokn", "x", "--lease-ms", "soon"),
    )
    assert done.returncode == 2
    said = lines(done)
    assert any("unknown flag --tokn; did you mean --token?" in line for line in said), said
    assert any("--lease-ms 'soon'" in line for line in said), said
    assert any("heartbeat" in line and "election" in line for line in said), said
    assert any("9" in line and "member" in line for line in said), said
    assert said[-1].startswith("hint: ")
    assert not folder.exists(), "half-started: the data folder was made"


def test_server_with_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = run("server", "--node", "1", "--members", f"1=127.0.0.1:{port}", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 2
    *others, told = lines(done)
    assert f"cannot bind 127.0.0.1:{port}: Address already in use" in told
    assert all(" INFO " in line for line in others), others


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "usage: paramserver"),
        (("trian",), "no command 'trian'"),
        (("sever",), "did you mean server?"),
        (("stat\x1bus",), "no command 'stat\\x1bus'"),
        (("status",), "--servers is missing"),
        (("status", "--servers", "localhost"), "expected host:port"),
        (("status", "--servers", "a:1,b:99999"), "b:99999"),
        (("status", "--servers", "\x1b[2J:1"), "\\x1b[2J:1"),
        (("worker", "--servers", NOBODY, "--rank", "2", "--ranks", "2"), "--rank 2"),
        (("worker", "--servers", NOBODY, "--optimizer", "adm"), "did you mean adam?"),
        (("worker", "--rank", "-1"), "--rank '-1'"),
        (("worker", "--servers", NOBODY, "--model", "cn"), "did you mean cnn?"),
        (("worker", "--servers", NOBODY, "--data", "/nowhere\x1b"), "data /nowhere\\x1b: no such folder: give digits"),
        (("worker", "--servers", NOBODY, "--data", "/etc"), "no train-images-idx3-ubyte or train-images"),
        (("worker", "--servers", NOBODY, "--augment", "spin:10\x1b"), "--augment 'spin:10\\x1b': expected none, or"),
        (("worker", "--servers", NOBODY, "--log-codec", "bf6"), "did you mean bf16?"),
        (("demo", "--codec", "int8"), "expected one of fp32, bf16, fp16"),
        (("demo", "--steps", "100"), "--steps 100"),
        (("demo", "--sead", "1"), "did you mean --seed?"),
        (("sim",), "needs one more word: run, replay"),
        (("sim", "rnu"), "did you mean run?"),
        (("sim", "run"), "--seeds is missing"),
        (("sim", "run", "--seeds", "7"), "expected A:B"),
        (("sim", "run", "--seeds", "7:7"), "no seed lies in that range"),
        (("sim", "run", "--seeds", "9:7"), "no seed lies in that range"),
        (("sim", "run", "--seeds=-3:7"), "expected A:B"),
        (("sim", "run", "--seeds", "0:5", "--nodes", "0"), "--nodes '0'"),
        (("sim", "replay"), "SEED is missing"),
        (("sim", "replay", "x\x1b"), "SEED 'x\\x1b'"),
    ],
)
def test_wrong_command_lines(words: tuple[str, ...], told: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr


def test_status_of_an_unreachable_cluster() -> None:
    done = run("status", "--servers", NOBODY)
    assert done.returncode == 69
    cause, hint = lines(done)
    assert NOBODY in cause
    assert "refused" in cause
    assert hint.startswith("hint: ")


def test_worker_of_an_unreachable_cluster(tmp_path: Path) -> None:
    session = tmp_path / "session"
    done = run("worker", "--servers", NOBODY, "--steps", "1", "--timeout", "1", "--session", str(session))
    assert done.returncode == 69
    said = lines(done)
    assert said[-1].startswith("hint: ")
    assert not session.exists(), "partial state"


@pytest.mark.usefixtures("interruptible")
def test_interrupt(tmp_path: Path) -> None:
    """Ctrl-C in the middle: a line, 130, nothing left behind."""
    session = tmp_path / "session"
    words = [*PARAMSERVER, "worker", "--servers", NOBODY, "--timeout", "60", "--session", str(session)]
    # Its first line says that it is at work: from then on Ctrl-C is ours to handle.
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not session.exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    try:
        done = subprocess.run(
            [*PARAMSERVER, "--help"], stdout=write, stderr=subprocess.PIPE, env=environment, timeout=30, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_told(unbuffered: str) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PARAMSERVER, "--help"], stdout=full, stderr=subprocess.PIPE, env=environment, timeout=30, check=False
        )
    assert done.returncode == 1
    assert b"o space left" in done.stderr
    assert b"defect" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "words", ["--help", "status --servers 127.0.0.1:1", "worker --servers 127.0.0.1:1 --timeout 1"]
)
def test_closed_streams(words: str) -> None:
    """Their numbers are not given to the next file or socket, and nothing is printed there."""
    command = " ".join((*PARAMSERVER, words))
    done = subprocess.run(["/bin/sh", "-c", f"{command} <&- >&-"], capture_output=True, timeout=30, check=False)
    assert done.returncode == (0 if words == "--help" else 69)
    assert b"defect" not in done.stderr
    silent = subprocess.run(["/bin/sh", "-c", f"{command} <&- >&- 2>&-"], timeout=30, check=False)
    assert silent.returncode == done.returncode


def test_the_way_out_of_loopback_is_named_once(tmp_path: Path) -> None:
    done = run("server", "--node", "1", "--members", "1=192.0.2.1:7001", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 2
    assert done.stderr.count("--allow-remote") == 1


def test_no_colours_without_a_terminal() -> None:
    assert "\x1b" not in run("--help").stdout


def test_help_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [*PARAMSERVER, "--help"], stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, timeout=30, check=False
        )
        assert done.returncode == 0
        assert b"commands:" in os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)
