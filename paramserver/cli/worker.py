"""`paramserver worker`: one rank that trains a bundled network on handwritten digits or a folder of images.

Owns the way from flags to a `TrainConfig`, how training is shown, and which error ends with which exit code. Must not
know: steps and streams.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from paramserver.cli import blas, codes, flags
from paramserver.cli.codes import CommandError
from paramserver.cli.flags import Flag
from paramserver.cli.recorder import Recorder
from paramserver.cli.show import Facts, Screen, screen
from paramserver.cli.text import escape, table

if TYPE_CHECKING:
    from worker.errors import ParameterServerError
    from worker.reference.config import TrainConfig
    from worker.reference.evaluate import Evaluation
    from worker.reference.events import Event
    from worker.reference.train import TrainResult

DESCRIPTION = """\
Train a small network as one rank of a synchronous run, on scikit-learn's handwritten digits or on MNIST-style files: a
step waits for every rank. Kill it and start it with the same flags: it takes its rank back and goes on where the model
is."""
EPILOG = """\
example, in two terminals (R = 0, 1):
  paramserver worker --servers 127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003 --rank R --ranks 2 --steps 400

another model, on a folder with train-images-idx3-ubyte and the three files that belong to it, with .gz or without:
  paramserver worker --servers ... --model cnn --data mnist --model-name mnist --augment rotate:10,crop:2

The last line of standard output holds the accuracy and the digest of the weights; with --json it is one object.
docs/models.md tells of models, data and precision.
"""
FLAGS = (
    Flag("--servers", "some servers of the cluster; one that answers is enough", flags.endpoints,
         metavar="HOST:PORT,...", required=True),
    Flag("--rank", "this worker's place in the run, from 0", flags.integer(0, 63), 0, "R"),
    Flag("--ranks", "workers in the run", flags.integer(1, 64), 1, "N"),
    Flag("--steps", "train until the model has made so many steps", flags.integer(1, 10**9), 400, "N"),
    Flag("--model", "the network: mlp or cnn", flags.choice("mlp", "cnn"), "mlp", "NAME"),
    Flag("--data", "digits, or a folder of IDX files such as MNIST", flags.text_value, "digits", "digits|DIR"),
    Flag("--classes", "classes of the data; labels go from 0 to one less", flags.integer(2, 256), 10, "N"),
    Flag("--bad-rows", "rows of the data that cannot be right: refuse to start, or skip them and say which",
         flags.choice("refuse", "skip"), "refuse", "NAME"),
    Flag("--augment", "none, or some of flip, rotate, crop, contrast, brightness, noise with an amount each",
         flags.text_value, "crop:1", "NAME:AMOUNT,..."),
    Flag("--precision", "fp32, or mixed: gradients are computed in fp16 and scaled; part of the model",
         flags.choice("fp32", "mixed"), "fp32", "NAME"),
    Flag("--evaluate-every", "steps between evaluations on held-out images [once a data epoch, at least 25]",
         flags.integer(1, 10**9), metavar="N"),
    Flag("--model-name", "the model to create or go on with", flags.text_value, "digits", "NAME"),
    Flag("--batch", "images a rank and step", flags.integer(1, 65536), 64, "N"),
    Flag("--seed", "of weights, batches and augmentation", flags.integer(0, 2**63 - 1), 1, "N"),
    Flag("--optimizer", "sgd, momentum or adam, with a learning rate if wanted: adam:0.001", flags.text_value, "adam",
         "NAME[:RATE]"),
    Flag("--codec", "how gradients travel: fp32, bf16 or fp16", flags.choice(*flags.CODECS), "fp32", "NAME"),
    Flag("--weights-codec", "how weights come back; the same for all ranks, as they compute with them",
         flags.choice(*flags.CODECS), "fp32", "NAME"),
    Flag("--log-codec", "how the sum over all ranks is logged and replicated; part of the model",
         flags.choice(*flags.CODECS), "fp32", "NAME"),
    Flag("--device", "where gradients are computed", flags.choice("auto", "numpy", "cupy"), "auto", "NAME"),
    Flag("--session", "where this rank's session is kept [by cluster, model and rank in the state folder]",
         flags.text_value, metavar="FILE"),
    Flag("--record", "append what happens to this file, as JSON lines", flags.text_value, metavar="FILE"),
    Flag("--timeout", "seconds to look for servers at the start", flags.number(0.1, 86_400), 30.0, "SECONDS"),
    Flag("--patience", "seconds to wait on when nothing goes on", flags.number(0.1, 86_400), 3600.0, "SECONDS"),
    Flag("--json", "the last line of standard output is one JSON object; the rest goes to standard error"),
    Flag("--plain", "plain lines even on a terminal"),
)  # fmt: skip
RATE_STEPS = 50
"""Steps over which steps/s is shown."""


def run(values: flags.Values, problems: list[str]) -> int:
    import os

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC's own lines would stand between ours
    blas.one_thread()
    config = config_of(values, problems)
    flags.raise_problems(problems, "worker")

    from worker.errors import ParameterServerError
    from worker.reference.train import train

    record = Recorder(_path(values["record"]))
    stream = sys.stderr if values["json"] else sys.stdout
    with screen(stream, plain=values["plain"]) as shown:
        shown.event(f"rank {config.rank} of {config.ranks}: looking for servers at {config.servers}")
        try:
            result = train(config, Teller(shown, config, record))
        except ParameterServerError as error:
            raise command_error(error) from error
    tell(result, stream, as_json=values["json"])
    return codes.OK


def config_of(values: flags.Values, problems: list[str]) -> TrainConfig:
    """Adds to `problems` what is wrong with the options taken together."""
    from paramserver.wire.spec import codec_named
    from worker.data import digits
    from worker.data.augment import USUAL, parse_augmentation
    from worker.reference.config import OPTIMIZERS, TrainConfig, parse_optimizer

    network = values["model"]
    optimizer, augmentation = parse_optimizer("adam", network), USUAL
    try:
        augmentation = parse_augmentation(values["augment"])
    except ValueError as error:
        problems.append(f"--augment '{escape(values['augment'])}': {error}")
    try:
        optimizer = parse_optimizer(values["optimizer"], network)
    except ValueError as error:
        near = flags.did_you_mean(values["optimizer"].partition(":")[0], list(OPTIMIZERS))
        problems.append(f"--optimizer {values['optimizer']}: {error}{near}")
    config = TrainConfig(
        # Flags that could not be read are a problem already; the rest is checked all the same.
        servers=",".join(values["servers"] or ("127.0.0.1:1",)),
        model_name=values["model_name"],
        rank=values["rank"],
        ranks=values["ranks"],
        steps=values["steps"],
        batch=values["batch"],
        optimizer=optimizer,
        seed=values["seed"],
        network=network,
        data=values["data"],
        classes=values["classes"],
        bad_rows=values["bad_rows"],
        augmentation=augmentation,
        precision=values["precision"],
        evaluate_every=values["evaluate_every"],
        codec=codec_named(values["codec"] or "fp32"),
        weights_codec=codec_named(values["weights_codec"] or "fp32"),
        log_codec=codec_named(values["log_codec"] or "fp32"),
        device=values["device"],
        session_file=_path(values["session"]),
        connect_timeout_s=values["timeout"],
        patience_s=values["patience"],
    )
    problems += [
        f"--{problem}" if problem.startswith(("rank ", "ranks ")) else problem for problem in config.validate()
    ]
    if values["data"] == digits.NAME and not digits.installed():
        problems.append("the digits come with scikit-learn, which is not installed: pip install 'paramserver[demo]'")
    return config


def tell(result: TrainResult, stream: TextIO, *, as_json: bool) -> None:
    if as_json:
        fields: dict[str, Any] = {
            "accuracy": round(result.accuracy, 4),
            "loss": round(result.evaluation.loss, 6),
            "classes": [
                {
                    "class": one.label,
                    "precision": _rounded(one.precision),
                    "recall": _rounded(one.recall),
                    "images": one.images,
                    "taken": one.taken,
                }
                for one in result.evaluation.classes
            ],
            "digest": result.digest,
            "step": result.step,
            "first_step": result.first_step,
            "seconds": round(result.seconds, 3),
            "bit_identical_claimed": result.bit_identical_claimed,
        }
        print(json.dumps(fields), flush=True)
        return
    for line in evaluation_lines(result.evaluation):
        print(line, file=stream)
    rate = (result.step - result.first_step) / result.seconds if result.seconds > 0 else 0.0
    made = f"{result.step} steps ({result.first_step} before this start), {rate:.1f} steps/s"
    claim = "" if result.bit_identical_claimed else "  bit-identical: not claimed on this device"
    print(f"done: {made}  accuracy {result.accuracy:.2%}  digest {result.digest}{claim}", file=stream, flush=True)


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """On the held-out images; a dash where nothing can be said."""
    rows = [
        (str(one.label), _share(one.precision), _share(one.recall), str(one.images), str(one.taken))
        for one in evaluation.classes
    ]
    lines = table(("class", "precision", "recall", "images", "taken for it"), rows)
    return [f"held-out images: loss {evaluation.loss:.4f}  accuracy {evaluation.accuracy:.2%}", *lines]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def command_error(error: ParameterServerError) -> CommandError:
    """Who can repair it decides the code: the command line, or the servers."""
    from worker import errors

    if isinstance(error, errors.Unavailable | errors.DeadlineExceeded):
        hint = error.hint or "paramserver status --servers ... shows what the servers are doing"
        return CommandError(error.cause, hint, code=codes.UNREACHABLE)
    usage = errors.InvalidArgument | errors.SpecMismatch | errors.SessionFileError | errors.RankTaken
    if isinstance(error, usage):
        return CommandError(error.cause, error.hint, code=codes.USAGE)
    return CommandError(error.cause, error.hint, code=codes.CHECK_FAILED)


class Teller:
    """Writes down what the training loop says, and then shows it: showing may be slow, and a kill must not lose a
    step."""

    def __init__(self, shown: Screen, config: TrainConfig, record: Recorder) -> None:
        self._shown = shown
        self._config = config
        self._record = record
        self._leaders: dict[int, int] = {}
        self._times: deque[float] = deque(maxlen=RATE_STEPS)
        self._step: int | None = None
        """None until the rank is held: nobody knows yet where the model stands."""
        self._loss: float | None = None
        self._accuracy: float | None = None
        self._waiting = ""

    def __call__(self, event: Event) -> None:
        from worker.reference import events

        self._write(event)
        match event:
            case events.DataLoaded():
                size = " x ".join(map(str, event.image))
                self._shown.event(
                    f"data {event.name}: {event.training} images of {size} to train on, {event.held_out} held out, "
                    f"{event.classes} classes; digest {event.digest[:8]}"
                )
                for line in event.bad_rows:
                    self._shown.event(f"left out: {line}", strong=True)
            case events.Connected():
                nodes = ", ".join(f"{node} at {address}" for node, address in sorted(event.nodes.items()))
                self._shown.event(f"cluster {event.cluster}: nodes {nodes}")
                self._shown.event(f"gradients with {event.device} ({event.hardware}); session {event.session_file}")
            case events.Started():
                self._step = event.first_step
                again = f", going on at step {event.first_step}" if event.first_step else ""
                self._shown.event(
                    f"rank {event.rank} of {event.ranks} is held: {event.parameters} parameters, "
                    f"{event.steps} steps{again}"
                )
            case events.StepDone():
                self._step, self._loss = event.step + 1, event.loss
                self._accuracy = event.accuracy if event.accuracy is not None else self._accuracy
                self._times.append(event.time_s)
            case events.Waiting():
                self._waiting = event.why
                self._shown.event(f"step {event.step} waits ({event.waited_s:.1f} s): {event.why}", strong=True)
            case events.Resumed():
                self._waiting = ""
                self._shown.event(f"step {event.step} goes on after {event.waited_s:.1f} s")
            case events.LeaderChanged():
                self._leaders[event.group] = event.node
                if not event.first:
                    group = f"group {event.group}" if event.group else "the catalogue"
                    self._shown.event(f"node {event.node} leads {group} now (term {event.term})", strong=True)
        if self._step is not None:
            self._shown.update(self.facts())

    def _write(self, event: Event) -> None:
        from worker.reference import events

        match event:
            case events.Started():
                self._record.write(
                    "start", time_s=event.time_s, rank=event.rank, pid=event.pid, first_step=event.first_step
                )
            case events.StepDone():
                self._record.write(
                    "step",
                    time_s=event.time_s,
                    step=event.step,
                    loss=event.loss,
                    accuracy=event.accuracy,
                    held_out_loss=event.held_out_loss,
                )
            case events.Waiting():
                self._record.write("wait", time_s=event.time_s, why=event.why)
            case events.Ended():
                accuracy = event.evaluation.accuracy
                self._record.write("end", time_s=event.time_s, accuracy=accuracy, digest=event.digest)

    def facts(self) -> Facts:
        span = self._times[-1] - self._times[0] if len(self._times) > 1 else 0.0
        return Facts(
            title=f"rank {self._config.rank} of {self._config.ranks}, model {self._config.model_name}",
            step=self._step or 0,
            steps=self._config.steps,
            loss=self._loss,
            accuracy=self._accuracy,
            steps_per_s=(len(self._times) - 1) / span if span > 0 else 0.0,
            leaders=self._leaders or None,
            notes=(f"waiting: {self._waiting}",) if self._waiting else (),
        )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
