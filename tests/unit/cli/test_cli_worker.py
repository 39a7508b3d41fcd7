"""What `paramserver worker` writes down and shows of a run."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paramserver.cli import codes, flags
from paramserver.cli import worker as command
from paramserver.cli.codes import CommandError, UsageProblems
from paramserver.cli.entry import Command, run_command
from paramserver.cli.recorder import Recorder
from paramserver.cli.show import Facts, LiveScreen, PlainScreen, box, screen
from paramserver.lab import records
from paramserver.lab.demo import DemoOptions
from paramserver.wire.codecs import Codec
from worker import errors
from worker.data.idx import BAD_ROWS
from worker.reference import events
from worker.reference.config import PRECISIONS, TrainConfig, parse_optimizer
from worker.reference.evaluate import ClassFigures, Evaluation
from worker.reference.network import NETWORKS
from worker.reference.train import TrainResult

CONFIG = TrainConfig(servers="127.0.0.1:1", rank=1, ranks=2, steps=10)
EVALUATION = Evaluation(0.25, 0.95, (ClassFigures(0, 0.9, 1.0, 18, 20), ClassFigures(1, None, 0.0, 2, 0)))
STORY = (
    events.DataLoaded(0.0, "mnist\n", 90, 20, (28, 28), 2, "0123456789abcdef", ("labels: 1 row cut off: 7",)),
    events.Connected(0.0, "cafe", {1: "127.0.0.1:1"}, "/session", "numpy", "a cpu"),
    events.Started(1.0, 1, 2, 3, 10, 5000, 77),
    events.StepDone(2.0, 3, 0.5, None),
    events.Waiting(3.5, 4, "group 2 has no leader\n", 1.5),
    events.LeaderChanged(3.6, 2, 3, "127.0.0.1:3", 4),
    events.Resumed(4.0, 4, 2.0),
    events.StepDone(4.0, 4, 0.4, 0.95),
    events.Ended(5.0, 5, EVALUATION, "ab", True),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_run_is_written_down_and_shown(tmp_path: Path) -> None:
    stream, path = io.StringIO(), tmp_path / "record"
    teller = command.Teller(PlainScreen(stream, every_s=0.0), CONFIG, Recorder(path))
    for event in STORY:
        teller(event)
    record = records.read(path, 1)
    assert record.events == (
        records.Start(1.0, 77, 3),
        records.Step(3, 2.0, 0.5, None),
        records.Wait(3.5, "group 2 has no leader\n"),
        records.Step(4, 4.0, 0.4, 0.95),
        records.End(5.0, 0.95, "ab"),
    )
    shown = stream.getvalue()
    assert "step 0/" not in shown, "where a restarted worker goes on is not known before it holds its rank"
    assert "data mnist\\x0a: 90 images of 28 x 28 to train on, 20 held out, 2 classes; digest 01234567\n" in shown
    assert "* left out: labels: 1 row cut off: 7\n" in shown
    assert "* step 4 waits (1.5 s): group 2 has no leader\\x0a\n" in shown
    assert "* node 3 leads group 2 now (term 4)" in shown
    assert "step 5/10  loss 0.4000  accuracy 95.00%  0.5 steps/s  leaders 2:3\n" in shown


def test_a_terminal_gets_a_live_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    shown = screen(stream)
    assert isinstance(shown, LiveScreen)
    with shown:
        shown.update(Facts("a [bold]run[/bold]", 5, 10, 0.5, 0.9, 3.0, {1: 2}, ("server 3 is dead\x07",)))
        shown.event("kill [red]-9[/red]\x1b[2J", strong=True)
    text = stream.getvalue()
    assert "a [bold]run[/bold]" in text  # nothing from outside is markup
    assert "kill [red]-9[/red]\\x1b[2J" in text
    assert "server 3 is dead\\x07" in text
    box("Title", [("bit-identical", "yes")], stream, plain=False, good=True)
    assert "yes" in stream.getvalue()


@pytest.mark.parametrize("setting", ["dumb", ""])
def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("TERM", setting)
    assert isinstance(screen(Terminal()), PlainScreen)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(screen(Terminal(), plain=True), PlainScreen)
    assert isinstance(screen(io.StringIO()), PlainScreen)


def test_the_last_lines(capsys: pytest.CaptureFixture[str]) -> None:
    result = TrainResult(
        first_step=3, step=10, evaluation=EVALUATION, digest="ab", seconds=7.0, bit_identical_claimed=True
    )
    command.tell(result, io.StringIO(), as_json=True)
    fields = json.loads(capsys.readouterr().out)
    assert (fields["digest"], fields["loss"], fields["accuracy"]) == ("ab", 0.25, 0.95)
    assert fields["classes"][1] == {"class": 1, "precision": None, "recall": 0.0, "images": 2, "taken": 0}
    stream = io.StringIO()
    command.tell(result, stream, as_json=False)
    assert stream.getvalue().splitlines() == [
        "held-out images: loss 0.2500  accuracy 95.00%",
        "class  precision  recall   images  taken for it",
        "0      90.00%     100.00%  18      20",
        "1      -          0.00%    2       0",
        "done: 10 steps (3 before this start), 1.0 steps/s  accuracy 95.00%  digest ab",
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Unavailable("nobody", "start one"), codes.UNREACHABLE),
        (errors.DeadlineExceeded("late"), codes.UNREACHABLE),
        (errors.RankTaken("taken", holder="x"), codes.USAGE),
        (errors.SpecMismatch("another"), codes.USAGE),
        (errors.SessionFileError("locked"), codes.USAGE),
        (errors.StepPassed("gone on"), codes.CHECK_FAILED),
    ],
)
def test_exit_codes(error: errors.ParameterServerError, code: int) -> None:
    told = command.command_error(error)
    assert (told.code, told.cause) == (code, error.cause)


def test_all_problems_of_a_worker_at_once() -> None:
    line = ["--servers", "nowhere", "--rank", "2", "--ranks", "2", "--optimizer", "adm", "--model-name", "../x"]
    with pytest.raises(UsageProblems) as caught:
        run_command(Command("worker", "", "paramserver.cli.worker"), line)
    problems = "\n".join(caught.value.problems)
    for part in ("--servers 'nowhere'", "--rank 2: expected 0 to 1", "did you mean adam?", "no path"):
        assert part in problems, problems


def test_a_record_that_cannot_be_written_stops_before_anything_starts(tmp_path: Path) -> None:
    line = ["--servers", "127.0.0.1:1", "--record", str(tmp_path / "no" / "record")]
    with pytest.raises(CommandError) as caught:
        run_command(Command("worker", "", "paramserver.cli.worker"), line)
    assert caught.value.code == codes.USAGE


def test_flags_and_config_agree_on_defaults() -> None:
    """What --help says is what happens without the flag."""
    shown = {flag.key: flag.default for flag in command.FLAGS}
    usual = TrainConfig(servers="127.0.0.1:1")
    same = ("rank", "ranks", "steps", "model_name", "batch", "seed", "device", "data", "classes", "bad_rows")
    for key in (*same, "precision", "evaluate_every"):
        assert shown[key] == getattr(usual, key), key
    assert (shown["model"], shown["augment"]) == (usual.network, str(usual.augmentation))
    values = flags.Values({**shown, "servers": ("127.0.0.1:1",)}, frozenset())
    config = command.config_of(values, [])
    assert config.optimizer == usual.optimizer
    assert (config.codec, config.weights_codec, config.log_codec) == (Codec.FP32,) * 3


def test_the_flags_take_what_the_configuration_takes() -> None:
    """The command names the choices itself, so that its help starts without NumPy."""
    takes = {flag.key: flag.convert for flag in command.FLAGS}
    for key, choices in (("model", NETWORKS), ("precision", PRECISIONS), ("bad_rows", BAD_ROWS)):
        convert = takes[key]
        assert convert is not None
        with pytest.raises(ValueError, match=f"expected one of {', '.join(choices)}$"):
            convert("?")
    usual = {flag.key: flag.default for flag in command.FLAGS} | {"servers": ("127.0.0.1:1",)}
    chosen = {"model": "cnn", "precision": "mixed", "augment": "rotate:10", "evaluate_every": 7, "bad_rows": "skip"}
    config = command.config_of(flags.Values(usual | chosen, frozenset()), [])
    assert (config.network, config.precision, config.evaluate_every, config.bad_rows) == ("cnn", "mixed", 7, "skip")
    assert str(config.augmentation) == "rotate:10"
    assert config.optimizer == parse_optimizer("adam", "cnn") != parse_optimizer("adam")


def test_each_codec_has_its_flag_and_the_demos_sets_them_all() -> None:
    usual = {flag.key: flag.default for flag in command.FLAGS} | {"servers": ("127.0.0.1:1",)}
    chosen = {"codec": "bf16", "weights_codec": "fp16", "log_codec": "fp32"}
    config = command.config_of(flags.Values(usual | chosen, frozenset()), [])
    assert (config.codec, config.weights_codec, config.log_codec) == (Codec.BF16, Codec.FP16, Codec.FP32)
    assert config.spec().log_codec is Codec.FP32
    options = DemoOptions(codec="fp16", worker_flags=("--batch=8",))
    codecs = ("--codec=fp16", "--weights-codec=fp16", "--log-codec=fp16")
    assert options.flags_of_workers == ("--model=mlp", *codecs, "--batch=8")


@pytest.mark.parametrize(
    "words",
    [
        ["worker", "--servers", "127.0.0.1:1", "--rank", "5", "--ranks", "2"],
        ["server", "--node", "3", "--members", "1=127.0.0.1:1", "--data-dir", "nowhere"],
    ],
    ids=lambda words: words[0],
)
def test_one_blas_thread_before_numpy_unless_the_environment_says_otherwise(words: list[str]) -> None:
    code = (
        "import os, sys\n"
        "os.environ['OMP_NUM_THREADS'] = '3'\n"
        "import paramserver.cli\n"
        "assert 'numpy' not in sys.modules\n"
        f"paramserver.cli.main({words})\n"
        "print(os.environ['OPENBLAS_NUM_THREADS'], os.environ['OMP_NUM_THREADS'], len(os.listdir('/proc/self/task')))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30)
    assert ran.stdout.split() == ["1", "3", "1"], ran.stderr
