"""The bundled training loop: a network on a data set of images, one rank of a synchronous run.

    train(TrainConfig(servers="127.0.0.1:7001", rank=0, ranks=2), on_event=print)

Owns the order of a rank's work: pull version m, compute the gradient of step m, push it, go on with the weights that
come back; batches are made ahead on a thread. Invariants: the gradient is a function of (weights, data, seed, step,
rank), so a rank that was killed computes the same one again (RULES S7); an outage never ends a run: the loop says why
it waits, in bounded calls, and goes on by itself. Must not know: how events are shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from paramserver.wire.allocator import keep_memory
from worker import device as devices
from worker.client import Client, connect
from worker.data.batches import Batch
from worker.data.prefetch import Prefetch
from worker.device.link import Link
from worker.errors import DeadlineExceeded, DeviceOutOfMemory, InvalidArgument
from worker.futures import Future
from worker.model import Model
from worker.reference.config import EVALUATE_EVERY_MIN, TrainConfig
from worker.reference.evaluate import Evaluation, evaluate
from worker.reference.events import (
    Connected,
    DataLoaded,
    Ended,
    LeaderChanged,
    OnEvent,
    Resumed,
    Started,
    StepDone,
    Waiting,
)
from worker.session import default_path
from worker.tensors import Tensors

T = TypeVar("T")

ATTEMPT_S = 5.0
"""Budget of one call to open the model; repeated until `patience_s`."""
REPORT_S = 1.0
"""Nothing for so long: say why."""
REMIND_S = 10.0
"""Say the same reason again."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """`first_step`: where this process took up. `digest` of the final weights; `evaluation` on the held-out images."""

    first_step: int
    step: int
    evaluation: Evaluation
    digest: str
    seconds: float
    bit_identical_claimed: bool

    @property
    def accuracy(self) -> float:
        return self.evaluation.accuracy


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
        self._data = config.load()
        self._network = config.build(self._device.xp)
        with self._device.guarded("copying images to the device"):
            self._held_out = self._device.from_host(self._data.held_out_images())
        self._evaluate_every = config.evaluate_every or max(
            EVALUATE_EVERY_MIN, len(self._data.training) // (config.batch * config.ranks)
        )
        self._leaders: dict[int, tuple[int, int]] = {}

    def run(self) -> TrainResult:
        config = self._config
        place = config.session_file
        path = place if place is not None else lambda cluster: default_path(cluster, config.model_name, config.rank)
        data = self._data
        self._emit(
            DataLoaded(
                time_s=time.monotonic(),
                name=data.name,
                training=len(data.training),
                held_out=len(data.held_out),
                image=data.image,
                classes=data.classes,
                digest=data.digest(),
                bad_rows=tuple(map(str, data.bad_rows)),
            )
        )
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
                non_finite=spec.non_finite,
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
        link = Link(model, self._device)
        _Patience(self, first_step).calls(lambda: link.pull(timeout=ATTEMPT_S))
        found: Evaluation | None = None
        with Prefetch(config.batches(self._data).make, first_step, config.steps) as ahead:
            while (step := model.step) < config.steps:
                loss, future = self._push(link, ahead.get(step), step)
                _Patience(self, step).future(model, future)
                done_s = time.monotonic()
                link.load()
                last = step + 1 == config.steps
                found = self._evaluate(link) if last or (step + 1) % self._evaluate_every == 0 else None
                self._emit(
                    StepDone(done_s, step, loss, found.accuracy if found else None, found.loss if found else None)
                )
                self._look_at_leaders(client)
        if found is None:
            found = self._evaluate(link)
        claimed = self._device.name == "numpy"
        ended = Ended(time.monotonic(), model.step, found, link.landed.digest(), claimed)
        self._emit(ended)
        return TrainResult(first_step, model.step, found, ended.digest, ended.time_s - began, claimed)

    def _push(self, link: Link, batch: Batch, step: int) -> tuple[float, Future[Tensors]]:
        """The loss of this rank's batch; its gradient is on its way. When the device's memory does not suffice it is
        emptied of what is kept for later, and the step computed once more: nothing of it was sent (fault 32)."""
        try:
            loss = self._gradient(link, batch)
        except DeviceOutOfMemory:
            link.discard()
            self._device.free()
            loss = self._gradient(link, batch)
        return loss, link.push_pull(step=step, timeout=min(self._config.patience_s, ATTEMPT_S))

    def _gradient(self, link: Link, batch: Batch) -> float:
        """It goes to `link` tensor by tensor, and is copied to the host while the rest is computed."""
        device = self._device
        with device.guarded("computing a gradient"):
            images, labels = device.from_host(batch.images), device.from_host(batch.labels)
            loss, _ = self._network.loss_and_gradient(link.weights, images, labels, into=link)
            return float(loss)

    def _evaluate(self, link: Link) -> Evaluation:
        labels = self._data.held_out.labels
        with self._device.guarded("evaluating"):
            return evaluate(
                self._network, link.weights, self._held_out, labels, classes=self._data.classes, xp=self._device.xp
            )

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
