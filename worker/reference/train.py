"""The bundled training loop: an MLP on handwritten digits, one rank of a synchronous run.

    train(TrainConfig(servers="127.0.0.1:7001", rank=0, ranks=2), on_event=print)

Owns the order of a rank's work: pull version m, compute the gradient of step m, push it, go on with the weights that
come back. Invariants: the gradient is a function of (weights, seed, step, rank), so a rank that was killed computes
the same one again (RULES S7); an outage never ends a run: the loop says why it waits, in bounded calls, and goes on by
itself. Must not know: how events are shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from paramserver.wire.allocator import keep_memory
from paramserver.wire.spec import Codec, ModelSpec, OptimizerSpec, TensorSpec, adam, momentum, sgd
from worker import device as devices
from worker.client import Client, connect, parse_servers
from worker.data import digits
from worker.errors import DeadlineExceeded, InvalidArgument
from worker.futures import Future
from worker.model import Model
from worker.reference.events import Connected, Ended, LeaderChanged, OnEvent, Resumed, Started, StepDone, Waiting
from worker.reference.mlp import Mlp
from worker.session import default_path
from worker.tensors import Tensors

T = TypeVar("T")

OPTIMIZERS: dict[str, Callable[[float], OptimizerSpec]] = {"sgd": sgd, "momentum": momentum, "adam": adam}
DEFAULT_RATES = {"sgd": 0.2, "momentum": 0.1, "adam": 0.004}
ATTEMPT_S = 5.0
"""Budget of one call to open the model; repeated until `patience_s`."""
REPORT_S = 1.0
"""Nothing for so long: say why."""
REMIND_S = 10.0
"""Say the same reason again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One rank's part in a run. All ranks of a run give the same values but `rank`, `device` and files."""

    servers: str
    """host:port,host:port,..."""
    model_name: str = "digits"
    rank: int = 0
    ranks: int = 1
    """Workers in the run; a step waits for all of them."""
    steps: int = 400
    """The run ends when the model is at this version."""
    batch: int = 64
    """Images a rank and step."""
    optimizer: OptimizerSpec = field(default_factory=lambda: adam(DEFAULT_RATES["adam"]))
    seed: int = 1
    """Of initial values and batches."""
    hidden: tuple[int, ...] = (128, 64)
    """Units of the hidden layers."""
    block_bytes: int = 16 * 1024
    """Small, so that a small model is spread over several groups."""
    log_codec: Codec = Codec.FP32
    """Of the sums in the log; part of the model."""
    codec: Codec = Codec.FP32
    """Of this rank's gradients on the way."""
    weights_codec: Codec = Codec.FP32
    """Of the weights that come back, with which the gradient is computed."""
    device: str = "auto"
    session_file: Path | None = None
    """Where the session is kept; None: by cluster, model and rank in the user's state folder."""
    evaluate_every: int = 25
    """Steps between evaluations on the held-out images."""
    connect_timeout_s: float = 30.0
    patience_s: float = 3600.0
    """How long to wait on when nothing goes on, before the run ends with DeadlineExceeded."""

    def validate(self) -> list[str]:
        """All problems at once; empty when the run may start."""
        problems = []
        try:
            parse_servers(self.servers)
        except InvalidArgument as error:
            problems.append(str(error))
        for name, low, high in (
            ("steps", 1, 10**9),
            ("batch", 1, 65_536),
            ("evaluate_every", 1, 10**9),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                problems.append(f"{name} {value}: expected {low} to {high}")
        if not 0 <= self.rank < self.ranks:
            problems.append(f"rank {self.rank}: expected 0 to {self.ranks - 1} (ranks is {self.ranks})")
        if not all(1 <= units <= 8192 for units in self.hidden):
            problems.append(f"hidden {self.hidden}: expected layers of 1 to 8192 units")
        if self.device not in devices.CHOICES:
            problems.append(f"device {self.device!r}: expected one of {', '.join(devices.CHOICES)}")
        for name in ("connect_timeout_s", "patience_s"):
            if not 0 < getattr(self, name) <= 86_400:
                problems.append(f"{name} {getattr(self, name)}: expected more than 0 and at most 86400")
        return problems + [str(problem) for problem in self.spec().validate()]

    def spec(self) -> ModelSpec:
        tensors = tuple(TensorSpec(name, shape) for name, shape in self.network().shapes().items())
        return ModelSpec(
            self.model_name,
            tensors,
            self.optimizer,
            self.ranks,
            block_bytes=self.block_bytes,
            log_codec=self.log_codec,
        )

    def network(self) -> Mlp:
        return Mlp((digits.FEATURES, *self.hidden, digits.CLASSES))


@dataclass(frozen=True, slots=True)
class TrainResult:
    """`first_step`: where this process took up. `digest` of the final weights; `accuracy` is held-out."""

    first_step: int
    step: int
    accuracy: float
    digest: str
    seconds: float
    bit_identical_claimed: bool


def parse_optimizer(text: str) -> OptimizerSpec:
    """ "sgd", "momentum" or "adam", with a learning rate of one's own after a colon: "adam:0.002". Raises
    ValueError."""
    name, colon, rate = text.partition(":")
    if name not in OPTIMIZERS:
        raise ValueError(f"expected one of {', '.join(OPTIMIZERS)}, such as adam or adam:0.002")
    try:
        optimizer = OPTIMIZERS[name](float(rate) if colon else DEFAULT_RATES[name])
    except ValueError:
        raise ValueError(f"expected a learning rate after the colon, such as {name}:{DEFAULT_RATES[name]}") from None
    if problems := optimizer.validate():
        raise ValueError("; ".join(str(problem) for problem in problems))
    return optimizer


def train(config: TrainConfig, on_event: OnEvent = lambda _: None) -> TrainResult:
    """Run this rank to the end. Raises InvalidArgument (all problems of the configuration), and what connect, model and
    push_pull raise; DeadlineExceeded only after `patience_s` without progress. `on_event` is called on this thread."""
    if problems := config.validate():
        raise InvalidArgument("; ".join(problems))
    keep_memory()
    return _Run(config, on_event).run()


class _Run:
    def __init__(self, config: TrainConfig, on_event: OnEvent) -> None:
        self._config = config
        self._emit = on_event
        self._device = devices.get(config.device)
        self._digits = digits.load()
        self._network = Mlp(config.network().sizes, self._device.xp)
        self._held_out = self._device.from_host(self._digits.held_out_images)
        self._held_out_labels = self._device.from_host(self._digits.held_out_labels)
        self._leaders: dict[int, tuple[int, int]] = {}

    def run(self) -> TrainResult:
        config = self._config
        place = config.session_file
        path = place if place is not None else lambda cluster: default_path(cluster, config.model_name, config.rank)
        with connect(config.servers, timeout=config.connect_timeout_s, session_file=path) as client:
            self._emit(
                Connected(
                    time_s=time.monotonic(),
                    cluster=client.cluster,
                    nodes=client.nodes,
                    session_file=client.session_file,
                    device=self._device.name,
                    hardware=self._device.description,
                )
            )
            with self._open(client) as model:
                return self._train(client, model)

    def _open(self, client: Client) -> Model:
        config = self._config
        spec = config.spec()

        def attempt() -> Model:
            return client.model(
                spec.name,
                spec.tensors,
                optimizer=spec.optimizer,
                ranks=spec.ranks,
                rank=config.rank,
                initial=lambda: self._network.initial(config.seed),
                block_bytes=spec.block_bytes,
                log_codec=spec.log_codec,
                codec=config.codec,
                weights_codec=config.weights_codec,
                timeout=ATTEMPT_S,
            )

        return _Patience(self, 0).calls(attempt)

    def _train(self, client: Client, model: Model) -> TrainResult:
        config = self._config
        began = time.monotonic()
        first_step = model.step
        self._emit(
            Started(
                time_s=began,
                rank=config.rank,
                ranks=config.ranks,
                first_step=first_step,
                steps=config.steps,
                parameters=model.spec.parameters,
                pid=os.getpid(),
            )
        )
        weights = _Patience(self, first_step).calls(lambda: model.pull(timeout=ATTEMPT_S))
        gradient = model.buffer()
        accuracy: float | None = None
        while (step := model.step) < config.steps:
            loss = self._gradient(weights, step, gradient)
            future = model.push_pull(gradient, step=step, timeout=min(config.patience_s, ATTEMPT_S))
            weights = _Patience(self, step).future(model, future)
            done_s = time.monotonic()
            last = step + 1 == config.steps
            accuracy = self._accuracy(weights) if last or (step + 1) % config.evaluate_every == 0 else None
            self._emit(StepDone(done_s, step, loss, accuracy))
            self._look_at_leaders(client)
        if accuracy is None:
            accuracy = self._accuracy(weights)
        claimed = self._device.name == "numpy"
        ended = Ended(time.monotonic(), model.step, accuracy, weights.digest(), claimed)
        self._emit(ended)
        return TrainResult(first_step, model.step, accuracy, ended.digest, ended.time_s - began, claimed)

    def _gradient(self, weights: Tensors, step: int, out: Tensors) -> float:
        """The loss of this rank's batch; its gradient goes to `out`."""
        config, device = self._config, self._device
        images, labels = self._digits.batch(config.seed, step, config.rank, config.batch)
        on_device = {name: device.from_host(array) for name, array in weights.items()}
        loss, gradient = self._network.loss_and_gradient(on_device, device.from_host(images), device.from_host(labels))
        for name, array in gradient.items():
            device.to_host(array, out=out[name])
        return float(loss)

    def _accuracy(self, weights: Tensors) -> float:
        on_device = {name: self._device.from_host(array) for name, array in weights.items()}
        chosen = self._network.logits(on_device, self._held_out).argmax(axis=1)
        return float((chosen == self._held_out_labels).mean())

    def _look_at_leaders(self, client: Client) -> None:
        for group, route in client.leaders().items():
            if self._leaders.get(group) != (route.node, route.term):
                first = group not in self._leaders
                self._leaders[group] = (route.node, route.term)
                self._emit(LeaderChanged(time.monotonic(), group, route.node, route.address, route.term, first))


class _Patience:
    """Waits for one thing, says why it is not there yet, and gives up after the configured time."""

    def __init__(self, run: _Run, step: int) -> None:
        self._run = run
        self._step = step
        self._began = time.monotonic()
        self._said: tuple[str, float] | None = None
        self._asked: Future[list[int]] | None = None
        self._absent: list[int] = []

    def calls(self, call: Callable[[], T]) -> T:
        """The result of `call`, made again for as long as it ends with DeadlineExceeded."""
        while True:
            try:
                result = call()
            except DeadlineExceeded as error:
                self._late(error)
            else:
                self._resumed()
                return result

    def future(self, model: Model, future: Future[Tensors]) -> Tensors:
        """The result of a step, however long it takes, up to `patience_s`."""
        late = False
        while True:
            try:
                # Half the time: then group 0 is asked who is missing, so that its answer is there when it is due.
                result = future.result(timeout=REPORT_S / 2)
            except DeadlineExceeded as error:
                if future.done():
                    future = model.resume(timeout=ATTEMPT_S)
                absent = self._absent_ranks(model)
                if late:
                    self._late(error, absent)
                late = True
            else:
                self._resumed()
                return result

    def _late(self, error: DeadlineExceeded, remark: str = "") -> None:
        now = time.monotonic()
        if now - self._began > self._run._config.patience_s:
            raise error
        why = (error.why or error.cause) + remark
        if self._said is not None and self._said[0] == why and now - self._said[1] < REMIND_S:
            return
        self._said = (why, now)
        self._run._emit(Waiting(now, self._step, why, now - self._began))

    def _absent_ranks(self, model: Model) -> str:
        """What group 0 said last: the usual reason why a step does not complete. It is never waited for."""
        if self._asked is None or self._asked.done():
            if self._asked is not None:
                self._absent = [] if self._asked.exception() is not None else self._asked.result()
            self._asked = model.absent_ranks(timeout=REPORT_S)
        ranks = ", ".join(map(str, self._absent))
        return f"; rank{'s' * (len(self._absent) > 1)} {ranks} not held by any worker" if ranks else ""

    def _resumed(self) -> None:
        if self._said is not None:
            now = time.monotonic()
            self._run._emit(Resumed(now, self._step, now - self._began))
