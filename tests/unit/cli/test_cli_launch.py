"""What a launched worker is told, how often it starts, and that everything ends: with small scripts for workers."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paramserver.cli.entry import run
from paramserver.cli.launch_job import JobPlan
from paramserver.cli.launch_lines import LINE_BYTES_MAX, Lines
from worker.environment import from_environment, rank_from_environment
from worker.errors import InvalidArgument

ROOT = Path(__file__).parents[3]
SERVERS = "127.0.0.1:7001,127.0.0.1:7002"
# Says that it listens, then says which signal came and ends with 0.
LISTENS = (
    "import os, signal, sys\n"
    "def heard(number, frame):\n    print('heard', signal.Signals(number).name); sys.exit(0)\n"
    "for one in (signal.SIGINT, signal.SIGTERM): signal.signal(one, heard)\n"
    "print('listening', os.getpid())\n"
    "while True: signal.pause()\n"
)
DEAF = LISTENS.replace("signal.signal(one, heard)", "signal.signal(one, signal.SIG_IGN)")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "paramserver", "launch", *words]


def python(code: str) -> tuple[str, ...]:
    return ("--servers", SERVERS, "--", sys.executable, "-ISu", "-c", code)


def launched(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command(*words), env=environment, capture_output=True, text=True, timeout=30, check=False)


@contextmanager
def launching(*words: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(*words), env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def listening(process: subprocess.Popen[str], workers: int) -> list[int]:
    """Their process ids, when all have said it."""
    assert process.stdout is not None
    return [int(process.stdout.readline().split()[-1]) for _ in range(workers)]


def rest(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What is still said, until nobody can say any more."""
    # Not communicate(), which would miss what was read ahead with the first lines.
    assert process.stdout is not None
    assert process.stderr is not None
    said = process.stdout.read(), process.stderr.read()
    process.wait(20)
    return said


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# --- what a worker is told


def test_environment() -> None:
    plan = JobPlan(("x",), 4, SERVERS, Path("/s"), 3, 10.0)
    found = plan.environment(2, 1, {"HOME": "/h", "RANK": "77"})
    assert found == {
        "HOME": "/h",
        "PARAMSERVER_SERVERS": SERVERS,
        "PARAMSERVER_RANK": "2",
        "PARAMSERVER_RANKS": "4",
        "PARAMSERVER_SESSION": "/s/rank2.session",
        "RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
        "TORCHELASTIC_RESTART_COUNT": "1",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
    }
    assert plan.environment(0, 0, {"OMP_NUM_THREADS": "8"})["OMP_NUM_THREADS"] == "8"
    assert "OMP_NUM_THREADS" not in JobPlan(("x",), 1, SERVERS, Path("/s"), 3, 10.0).environment(0, 0, {})


def test_connect_reads_the_environment_when_no_servers_are_named() -> None:
    told = {"PARAMSERVER_SERVERS": SERVERS, "PARAMSERVER_SESSION": "/s/rank0.session"}
    assert from_environment(None, None, told) == (SERVERS, "/s/rank0.session")
    assert from_environment(None, "mine", told) == (SERVERS, "mine")
    assert from_environment("a:1", None, told) == ("a:1", None)
    assert from_environment(None, None, {"PARAMSERVER_SERVERS": SERVERS}) == (SERVERS, None)
    with pytest.raises(InvalidArgument, match="PARAMSERVER_SERVERS is not set"):
        from_environment(None, None, {})


def test_ranks_come_from_the_launcher_torchrun_or_the_caller() -> None:
    ours, torchrun = {"PARAMSERVER_RANK": "1", "PARAMSERVER_RANKS": "3"}, {"RANK": "2", "WORLD_SIZE": "4"}
    assert rank_from_environment(None, None, {}) == (0, 1)
    assert rank_from_environment(None, None, torchrun) == (2, 4)
    assert rank_from_environment(None, None, {**torchrun, **ours}) == (1, 3)
    assert rank_from_environment(0, None, ours) == (0, 3)
    assert rank_from_environment(0, 2, {"RANK": "x"}) == (0, 2)
    with pytest.raises(InvalidArgument, match="RANK='x' in the environment; expected a whole number"):
        rank_from_environment(None, None, {"RANK": "x"})


def test_lines_have_their_rank_and_output_keeps_its_stream() -> None:
    code = "import os, sys; print('a\\nb'); print('c', file=sys.stderr); sys.stdout.write('no end')"
    done = launched("-n", "2", *python(code))
    assert sorted(done.stdout.splitlines()) == ["[0] a", "[0] b", "[0] no end", "[1] a", "[1] b", "[1] no end"]
    assert {"[0] c", "[1] c"} <= set(done.stderr.splitlines())
    assert done.returncode == 0


def test_lines() -> None:
    out = io.BytesIO()
    lines = Lines(b"> ", out)
    for piece in (b"a\r", b"\nb", b"c\n\n\r10%", b"\r20%\r", b"x" * (LINE_BYTES_MAX + 1)):
        lines.feed(piece)
    assert out.getvalue() == b"> a\n> bc\n> \n> 10%\n> 20%\n> " + b"x" * LINE_BYTES_MAX + b"\n"
    lines.end()
    assert out.getvalue().endswith(b"x\n> x\n")


def test_log_files(tmp_path: Path) -> None:
    code = "import os, sys; print('out', os.environ['RANK']); print('error', file=sys.stderr)"
    done = launched("-n", "2", "--log-dir", str(tmp_path / "logs"), *python(code))
    assert (done.returncode, done.stdout) == (0, "")
    assert sorted((tmp_path / "logs/rank1.log").read_text().split()) == ["1", "error", "out"]


# --- restarts


def test_the_dead_start_again_and_know_how_often(tmp_path: Path) -> None:
    code = (
        "import json, os, signal\n"
        "count = os.environ['TORCHELASTIC_RESTART_COUNT']\n"
        "print(json.dumps([os.environ['RANK'], count, os.environ['PARAMSERVER_SESSION']]))\n"
        "if os.environ['RANK'] == '1' and count < '2': os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = launched("-n", "2", "--max-restarts", "2", "--session-dir", str(tmp_path), *python(code))
    assert done.returncode == 0, done.stderr
    told = sorted(json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines())
    place = f"{tmp_path}/rank1.session"
    assert told == [["0", "0", f"{tmp_path}/rank0.session"], *(["1", count, place] for count in "012")]
    assert "rank 1 was killed by SIGKILL" in done.stderr
    assert "restart 2 of 2" in done.stderr


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)])
def test_who_fails_for_good_ends_all(ending: str, code: int) -> None:
    """The budget is the job's; the others are told to end, and the code is that of who failed."""
    fails = f"import os, sys\nif os.environ['RANK'] == '1': print('failing'); {ending}\n{LISTENS}"
    done = launched("-n", "3", "--max-restarts", "2", *python(fails))
    assert done.returncode == code, done.stderr
    assert done.stdout.count("[1] failing") == 3
    assert "no restart left of 2, stopping 2 others" in done.stderr
    assert "SIGKILL for" not in done.stderr


# --- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on(number: signal.Signals) -> None:
    with launching("-n", "2", *python(LISTENS)) as process:
        pids = listening(process, 2)
        process.send_signal(number)
        out, error = rest(process)
    assert process.returncode == 128 + number
    assert sorted(out.splitlines()) == [f"[0] heard {number.name}", f"[1] heard {number.name}"], error
    assert not any(runs(pid) for pid in pids)


def test_who_does_not_hear_is_killed_after_the_grace() -> None:
    with launching("-n", "2", "--grace", "0.2", *python(DEAF)) as process:
        pids = listening(process, 2)
        process.send_signal(signal.SIGTERM)
        _, error = rest(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGKILL for rank 0, 1" in error
    assert not any(runs(pid) for pid in pids)


def test_a_second_ctrl_c_kills() -> None:
    with launching("--grace", "3600", *python(DEAF)) as process:
        (pid,) = listening(process, 1)
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        while "passed on" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        rest(process)
    assert process.returncode == 128 + signal.SIGINT
    assert not runs(pid)


def test_what_a_worker_leaves_behind_ends_with_it() -> None:
    """And the job does not wait for it, though it holds the pipe."""
    code = "import os, signal\nif pid := os.fork(): print('child', pid); os._exit(0)\nwhile True: signal.pause()"
    done = launched(*python(code))
    assert done.returncode == 0
    assert not runs(int(done.stdout.split()[-1]))


def test_no_worker_outlives_a_killed_launcher() -> None:
    with launching("-n", "2", *python(DEAF)) as process:
        watched = [os.pidfd_open(pid) for pid in listening(process, 2)]
        process.kill()
        # Readable once the worker has ended.
        ended = [bool(select.select([one], [], [], 20)[0]) for one in watched]
    for one in watched:
        os.close(one)
    assert ended == [True, True]


# --- bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-n", "2", "--servers", SERVERS], "no command: it stands after --"),
        (["-n", "2", "--servers", SERVERS, "--"], "no command: it stands after --"),
        (["-n", "0", "--servers", SERVERS, "--", "true"], "--workers '0': expected a whole number from 1 to 64"),
        (["-n", "-1", "--servers", SERVERS, "--", "true"], "--workers '-1': expected a whole number from 1 to 64"),
        (["--servers", "here", "--", "true"], "--servers 'here': expected host:port"),
        (["--", "true"], "--servers is missing, and PARAMSERVER_SERVERS is not set"),
        (["--servers", SERVERS, "--", "pyhton3", "x"], "command 'pyhton3': no such program; did you mean python3?"),
        (["--servers", SERVERS, "--", str(ROOT / "README.md")], "the file is not executable; try: python"),
        (["--servers", SERVERS, "--session-dir", "/proc/no", "--", "true"], "--session-dir '/proc/no': "),
        (["--servers", SERVERS, "--worker", "2", "--", "true"], "unknown flag --worker; did you mean --workers?"),
    ],
)
def test_bad_input(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PARAMSERVER_SERVERS", raising=False)
    assert run(["launch", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert said in lines[0]
    assert lines[1].startswith("hint: ")


def test_servers_of_the_environment_are_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARAMSERVER_SERVERS", "here")
    assert run(["launch", "--", "true"]) == 2
    assert "PARAMSERVER_SERVERS 'here' of the environment: expected host:port" in capsys.readouterr().err


def test_a_script_without_an_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("print('hello')\n")
    script.chmod(0o755)
    done = launched("--servers", SERVERS, "--", str(script))
    assert done.returncode == 2
    assert "Exec format error" in done.stderr
    assert "hint: a script needs its interpreter" in done.stderr
