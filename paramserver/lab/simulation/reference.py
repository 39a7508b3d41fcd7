"""The same training without servers: plain numpy, one machine, one array.

Owns what the result must be, bit by bit: gradients as a function of (weights, seed, rank, step), sums over ranks in the
order of the specification's tree, what codecs round on the way, and textbook updates. Shares no code with the server
but the layout of blocks. Must not know: groups, faults, time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt

from paramserver.wire.frames import PushKind
from paramserver.wire.layout import Layout
from paramserver.wire.spec import Adam, Codec, ModelSpec, Momentum, OptimizerSpec, Sgd

Array: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Codecs:
    """By rank: in which each pushes, and in which it has weights come back."""

    push: tuple[Codec, ...]
    weights: tuple[Codec, ...]

    def met(self, spec: ModelSpec) -> list[str]:
        """What a run with these is for."""
        return [
            f"sums logged in {spec.log_codec.name}",
            *(f"gradients in {codec.name}" for codec in self.push),
            *(f"weights in {codec.name}" for codec in self.weights),
        ]


def rounded(codec: Codec, values: Array) -> Array:
    """To the nearest number that the codec has, of two equally near ones to the even one; in fp64, where every step is
    exact. Of values within its range."""
    if codec is Codec.FP32:
        return values
    digits, least = {Codec.BF16: (8, -126), Codec.FP16: (11, -14)}[codec]
    _, exponents = np.frexp(values.astype(np.float64))
    quantum = np.ldexp(1.0, np.maximum(exponents - 1, least) - (digits - 1))
    return (np.rint(values / quantum) * quantum).astype(np.float32)


def tree_sum(parts: Sequence[Array | None]) -> Array | None:
    """Over ranks [0, n): left half plus right half, the left one as long as the largest power of two below n; who has
    nothing to add is left out."""
    if len(parts) == 1:
        return parts[0]
    half = 1
    while half * 2 < len(parts):
        half *= 2
    left, right = tree_sum(parts[:half]), tree_sum(parts[half:])
    if left is None or right is None:
        return right if left is None else left
    return left + right


class Training:
    def __init__(self, seed: int, spec: ModelSpec, codecs: Codecs | None = None) -> None:
        """`codecs`: FP32 for all where they are left out."""
        self.spec = spec
        self.codecs = codecs or Codecs((Codec.FP32,) * spec.ranks, (Codec.FP32,) * spec.ranks)
        self.layout = Layout(spec)
        self.initial = self._noise(seed, 0, 0)
        self.rate_at: Callable[[int], float | None] = lambda _step: None
        """The learning rate of a step where it was changed; asked once a step, when its result is."""
        self._seed = seed
        self._weights: list[Array] = [self.initial]
        self._blocks = [
            Block(spec.optimizer, self.initial[self.layout.block_slice(block)]) for block in range(self.layout.blocks)
        ]
        self._states = [[block.state() for block in self._blocks]]

    def resumed(self, version: int) -> Self:
        """The run that goes on from that version elsewhere, with rates of its own."""
        self.at(version)
        other = type(self)(self._seed, self.spec, self.codecs)
        other._weights = self._weights[: version + 1]
        other._states = self._states[: version + 1]
        for block, state in zip(other._blocks, self._states[version], strict=True):
            block.resume(*state)
        return other

    def at(self, version: int) -> Array:
        """All weights after that many steps."""
        while len(self._weights) <= version:
            self._step(len(self._weights) - 1)
        return self._weights[version]

    def state_at(self, version: int, block: int) -> tuple[list[Array], tuple[float, ...]]:
        """What the optimizer remembers of a block after that many steps: its arrays, its numbers."""
        self.at(version)
        return self._states[version][block]

    @property
    def computed(self) -> int:
        """The newest version that anybody asked for."""
        return len(self._weights) - 1

    def seen(self, rank: int, version: int) -> Array:
        """All weights of that version as they come to a rank."""
        return rounded(self.codecs.weights[rank], self.at(version))

    def _noise(self, *where: int) -> Array:
        return np.random.default_rng(where).standard_normal(self.layout.elements, dtype=np.float32)

    def kind(self, rank: int, step: int, block: int) -> PushKind:
        """Now and then a rank skips a step, or leaves a block out."""
        draw = np.random.default_rng((self._seed, 7, rank, step)).integers(0, 100, 1 + self.layout.blocks)
        if draw[0] < 2:
            return PushKind.SKIP
        return PushKind.EMPTY if draw[1 + block] < 10 else PushKind.GRADIENT

    def gradient(self, rank: int, step: int, weights: Array) -> Array:
        """A pure function of what a worker may depend on."""
        target = self._noise(self._seed, 1, rank)
        noise = self._noise(self._seed, 2 + rank, step)
        return (weights - target) + np.float32(0.1) * noise

    def _step(self, step: int) -> None:
        rate = self.rate_at(step)
        before = self._weights[step]
        after = before.copy()
        ranks = range(self.spec.ranks)
        gradients = [
            rounded(self.codecs.push[rank], self.gradient(rank, step, self.seen(rank, step))) for rank in ranks
        ]
        for block, state in enumerate(self._blocks):
            place = self.layout.block_slice(block)
            kinds = [self.kind(rank, step, block) for rank in ranks]
            if PushKind.SKIP in kinds:
                continue
            total = tree_sum([gradients[rank][place] if kinds[rank] is PushKind.GRADIENT else None for rank in ranks])
            if total is not None:
                logged = rounded(self.spec.log_codec, total)
                after[place] = state.update(before[place], logged / np.float32(self.spec.ranks), rate)
        self._weights.append(after)
        self._states.append([block.state() for block in self._blocks])


class Block:
    """What an optimizer remembers of a block."""

    def __init__(self, optimizer: OptimizerSpec, weights: Array) -> None:
        self._optimizer = optimizer
        self._first = np.zeros_like(weights)
        self._second = np.zeros_like(weights)
        self._power1 = self._power2 = 1.0

    def state(self) -> tuple[list[Array], tuple[float, ...]]:
        """Arrays are replaced at each update, never written."""
        match self._optimizer:
            case Sgd():
                return [], ()
            case Momentum():
                return [self._first], ()
            case Adam():
                return [self._first, self._second], (self._power1, self._power2)

    def resume(self, arrays: list[Array], numbers: tuple[float, ...]) -> None:
        """What `state` gave."""
        if arrays:
            self._first = arrays[0]
            self._second = arrays[-1]
        if numbers:
            self._power1, self._power2 = numbers

    def update(self, weights: Array, gradient: Array, changed: float | None = None) -> Array:
        """`changed`: another learning rate than the optimizer's own."""
        rate = self._optimizer.learning_rate if changed is None else changed
        match self._optimizer:
            case Sgd():
                return weights - gradient * np.float32(rate)
            case Momentum(_, momentum, _, _):
                self._first = self._first * np.float32(momentum) + gradient
                return weights - self._first * np.float32(rate)
            case Adam(_, beta1, beta2, epsilon, _):
                self._power1 *= beta1
                self._power2 *= beta2
                self._first = self._first + (gradient - self._first) * np.float32(1.0 - beta1)
                self._second = self._second * np.float32(beta2) + gradient * gradient * np.float32(1.0 - beta2)
                root = np.sqrt(self._second) / np.float32(np.sqrt(1.0 - self._power2)) + np.float32(epsilon)
                step = self._first / root * np.float32(rate / (1.0 - self._power1))
                return (weights - step).astype(np.float32, copy=False)
