"""What one rank of the bundled training loop is told: a `TrainConfig`.

Owns its defaults and checks, and what follows from it: the model's spec, the network, the data set. Must not know: how
training goes on, command lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paramserver.wire.spec import Codec, ModelSpec, NonFinite, OptimizerSpec, TensorSpec, adam, momentum, sgd
from worker import device as devices
from worker.arguments import parse_servers
from worker.data import digits, sources
from worker.data.augment import USUAL, Augmentation
from worker.data.batches import Batches
from worker.data.dataset import Dataset
from worker.data.idx import BAD_ROWS, OnBadRows
from worker.errors import InvalidArgument
from worker.reference.mixed import Mixed
from worker.reference.network import NETWORKS, Network, build

OPTIMIZERS: dict[str, Callable[[float], OptimizerSpec]] = {"sgd": sgd, "momentum": momentum, "adam": adam}
DEFAULT_RATES = {
    "mlp": {"sgd": 0.2, "momentum": 0.1, "adam": 0.004},
    "cnn": {"sgd": 0.1, "momentum": 0.02, "adam": 0.002},
}
PRECISIONS = ("fp32", "mixed")
EVALUATE_EVERY_MIN = 25


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
    optimizer: OptimizerSpec = field(default_factory=lambda: adam(DEFAULT_RATES["mlp"]["adam"]))
    seed: int = 1
    """Of initial values and batches."""
    network: str = "mlp"
    """One of NETWORKS."""
    hidden: tuple[int, ...] = (128, 64)
    """Units of the hidden layers of an mlp."""
    data: str = digits.NAME
    """"digits", or a folder of IDX files."""
    classes: int = digits.CLASSES
    bad_rows: OnBadRows = "refuse"
    """What to do with rows of the data that cannot be right."""
    augmentation: Augmentation = USUAL
    precision: str = "fp32"
    """One of PRECISIONS: how gradients are computed; weights and gradients of the model are float32 with either."""
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
    evaluate_every: int | None = None
    """Steps between evaluations on the held-out images; None: once a data epoch, at least EVALUATE_EVERY_MIN steps."""
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
            ("classes", 2, 256),
            ("evaluate_every", 1, 10**9),
            ("seed", 0, 2**63 - 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                problems.append(f"{name} {value}: expected {low} to {high}")
        if not 0 <= self.rank < self.ranks:
            problems.append(f"rank {self.rank}: expected 0 to {self.ranks - 1} (ranks is {self.ranks})")
        if not all(1 <= units <= 8192 for units in self.hidden):
            problems.append(f"hidden {self.hidden}: expected layers of 1 to 8192 units")
        for name, choices in (
            ("device", devices.CHOICES),
            ("network", NETWORKS),
            ("precision", PRECISIONS),
            ("bad_rows", BAD_ROWS),
        ):
            if getattr(self, name) not in choices:
                problems.append(f"{name} {getattr(self, name)!r}: expected one of {', '.join(choices)}")
        problems += [f"augmentation: {problem}" for problem in self.augmentation.validate()]
        for name in ("connect_timeout_s", "patience_s"):
            if not 0 < getattr(self, name) <= 86_400:
                problems.append(f"{name} {getattr(self, name)}: expected more than 0 and at most 86400")
        if self.network in NETWORKS:
            try:
                problems += [str(problem) for problem in self.spec().validate()]
            except InvalidArgument as error:
                problems.append(f"{error.cause}: {error.hint}")
            except ValueError as error:
                problems.append(f"network {self.network}: {error}")
        return problems

    def spec(self) -> ModelSpec:
        """Raises InvalidArgument when the data is not there, ValueError when its images are too small."""
        tensors = tuple(TensorSpec(name, shape) for name, shape in self.build().shapes().items())
        return ModelSpec(
            self.model_name,
            tensors,
            self.optimizer,
            self.ranks,
            block_bytes=self.block_bytes,
            log_codec=self.log_codec,
            # A step whose gradient float16 cannot hold is left out by all ranks together (RULES S10).
            non_finite=NonFinite.SKIP if self.precision == "mixed" else NonFinite.REJECT,
        )

    def build(self, xp: Any = np) -> Network:
        """Raises as `spec`."""
        network = build(self.network, sources.image_size(self.data), self.classes, self.hidden, xp)
        return Mixed(network, xp) if self.precision == "mixed" else network

    def load(self) -> Dataset:
        """Raises InvalidArgument."""
        return sources.load(self.data, classes=self.classes, bad_rows=self.bad_rows)

    def batches(self, data: Dataset) -> Batches:
        """Of this rank."""
        return Batches(
            data,
            seed=self.seed,
            rank=self.rank,
            ranks=self.ranks,
            size=self.batch,
            augmentation=self.augmentation,
        )


def parse_optimizer(text: str, network: str = "mlp") -> OptimizerSpec:
    """ "sgd", "momentum" or "adam", with a learning rate of one's own after a colon: "adam:0.002"; without
    one, that of `network`. Raises ValueError."""
    name, colon, rate = text.partition(":")
    if name not in OPTIMIZERS:
        raise ValueError(f"expected one of {', '.join(OPTIMIZERS)}, such as adam or adam:0.002")
    usual = DEFAULT_RATES.get(network, DEFAULT_RATES["mlp"])[name]
    try:
        optimizer = OPTIMIZERS[name](float(rate) if colon else usual)
    except ValueError:
        raise ValueError(f"expected a learning rate after the colon, such as {name}:{usual}") from None
    if problems := optimizer.validate():
        raise ValueError("; ".join(str(problem) for problem in problems))
    return optimizer
