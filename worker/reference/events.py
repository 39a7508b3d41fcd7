"""What the training loop says while it runs. Frozen values; whoever shows or records them decides how.

Times are seconds of CLOCK_MONOTONIC (`time.monotonic()`), which all processes of a machine share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from worker.reference.evaluate import Evaluation


@dataclass(frozen=True, slots=True)
class DataLoaded:
    """The images are in memory. `image`: (height, width). `digest`: equal ones are the same data. `bad_rows`: what was
    left out, a line each."""

    time_s: float
    name: str
    training: int
    held_out: int
    image: tuple[int, int]
    classes: int
    digest: str
    bad_rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Connected:
    """`nodes`: node -> address. `device`: "numpy" or "cupy"; `hardware` names it."""

    time_s: float
    cluster: str
    nodes: dict[int, str]
    session_file: str
    device: str
    hardware: str


@dataclass(frozen=True, slots=True)
class Started:
    """The rank is held. `first_step`: m of RULES S7; above 0 after a restart. `parameters` in float32 values."""

    time_s: float
    rank: int
    ranks: int
    first_step: int
    steps: int
    parameters: int
    pid: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """Every block of `step` is applied and its new weights are here. `loss` is that of this rank's batch, before the
    step; accuracy and loss on held-out images are None where they were not computed."""

    time_s: float
    step: int
    loss: float
    accuracy: float | None
    held_out_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing has come for `waited_s`. It goes on by itself; said once a reason, and again every REMIND_S."""

    time_s: float
    step: int
    why: str
    waited_s: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """After a `Waiting`: it goes on."""

    time_s: float
    step: int
    waited_s: float


@dataclass(frozen=True, slots=True)
class LeaderChanged:
    """Group 0 is the catalogue. `first`: no change, only the first that was heard of this group."""

    time_s: float
    group: int
    node: int
    address: str
    term: int
    first: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """`digest`: xxh3-128 of the final weights. `bit_identical_claimed`: gradients are a function of (weights, data,
    seed, step, rank) on this device, so a run with faults ends with the same digest (RULES S7)."""

    time_s: float
    step: int
    evaluation: Evaluation
    digest: str
    bit_identical_claimed: bool


Event: TypeAlias = DataLoaded | Connected | Started | StepDone | Waiting | Resumed | LeaderChanged | Ended
OnEvent: TypeAlias = Callable[[Event], None]
