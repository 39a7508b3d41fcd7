"""A gradient on its way into a step: gathered, added up, and judged as a whole before its first frame (RULES S10).

Owns the buffer that dictionaries of arrays are copied to, the sum of what was accumulated, and the counts of what was
not pushed as it came. Invariants: everything is float32, element by element, in the order of the calls, so that equal
calls give equal bits; a caller's array is never written. Must not know: streams, servers, threads.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paramserver.wire.codecs import LARGEST, PIECE_ELEMENTS, Codec, Encoded, Values, first_beyond
from paramserver.wire.errors import Refusal
from paramserver.wire.frames import PushKind
from paramserver.wire.layout import FLOAT, Flat, Layout
from paramserver.wire.spec import NonFinite
from worker import errors
from worker.arrays import device_of, on_host
from worker.errors import InvalidArgument
from worker.parts import Part, Parts
from worker.refusals import to_error
from worker.steps import ranges
from worker.tensors import Tensors

UNSENT = "nothing was sent; the model's policy is to reject it"


@dataclass(frozen=True, slots=True)
class Norms:
    """Bounds on the Euclidean norm of a rank's gradient, None for none: beyond `clip` it is scaled down to that, beyond
    `reject` it is not pushed."""

    clip: float | None = None
    reject: float | None = None

    def __post_init__(self) -> None:
        for field, value in (("clip_norm", self.clip), ("reject_norm", self.reject)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InvalidArgument(f"{field} {value!r}", "expected a finite number > 0")


@dataclass(slots=True)
class Counts:
    """Gradients of a handle that were not pushed as they came: `rejected` (NonFinite, NormTooLarge), `skipped` (their
    steps changed nothing), `clipped`."""

    rejected: int = 0
    skipped: int = 0
    clipped: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """What is to be pushed. `gradient`: None for a skip. `part`: of which tensors, None for all."""

    kind: PushKind
    gradient: Values | None
    part: Part | None


@dataclass(frozen=True, slots=True)
class Staged:
    """A whole gradient as a device laid it out in host memory, in the handle's codec or as float32. `beyond`: its first
    element that is not finite, or would not be when it was encoded, and that element's value."""

    values: Values
    beyond: tuple[int, np.float32] | None


class Intake:
    """Of one handle. A caller sees to it that no step is in flight."""

    def __init__(self, layout: Layout, codec: Codec, norms: Norms, frozen: Collection[str] = ()) -> None:
        """`frozen`: tensors of which nothing is ever pushed. Raises InvalidArgument."""
        self._layout = layout
        self._codec = codec
        self._norms = norms
        self._buffer: Flat | None = None
        self._scratch: Flat | None = None
        self._parts = Parts(layout)
        self._trained: Part | None = None
        self._zeros: dict[str, npt.NDArray[np.float32]] = {}
        """What is laid out in place of frozen tensors."""
        if frozen:
            self._freeze(frozen)
        self.counts = Counts()
        self.accumulated = 0
        """Gradients in the sum."""
        self._outgoing: dict[int, Any] = {}
        """By number of the device that arrays came from."""

    @property
    def frozen(self) -> Collection[str]:
        """Tensors of which nothing is pushed."""
        return self._zeros.keys()

    @property
    def piecewise(self) -> bool:
        """Nothing has to look at the whole gradient before its first block is sent (RULES S10): no norm, and no step
        that would be skipped in all blocks."""
        whole = self._norms.clip, self._norms.reject
        return whole == (None, None) and self._layout.spec.non_finite is not NonFinite.SKIP

    def judge_piece(self, flat: Flat, place: slice, step: int) -> None:
        """Raises NonFinite by the model's policy: of one tensor of a step that is `piecewise`."""
        self._finite(flat, (place,), step, "this tensor was not put; the model's policy is to reject it")

    def take(self, gradients: Mapping[str, Any] | Staged | None, *, partial: bool, step: int) -> Taken:
        """`gradients` None: the sum, which begins anew. Raises InvalidArgument, NonFinite, NormTooLarge."""
        part = self._trained
        if isinstance(gradients, Staged):
            return self._staged(gradients, step)
        if gradients is None:
            if not self.accumulated:
                raise InvalidArgument("gradients: expected a mapping, received none", "and nothing was accumulated")
            if partial:
                raise InvalidArgument("partial without gradients", "what is accumulated is of all tensors")
            self.accumulated = 0
            flat = self._own()
        elif self.accumulated:
            raise InvalidArgument(
                f"gradients, and {self.accumulated} that were accumulated",
                "push_pull() without gradients pushes the sum, discard() forgets it",
            )
        elif partial:
            part, flat = self._some(gradients)
        elif (number := device_of(gradients)) is not None:
            return self._staged(self._from_device(gradients, number), step)
        else:
            flat = self._all(gradients)
        return self._judged(flat, part, step)

    def add(self, gradients: Mapping[str, Any], weight: float) -> None:
        """sum = sum + weight * gradients, each operation rounded to float32; the first one begins the sum."""
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise InvalidArgument(f"weight {weight!r}", "expected a finite number")
        factor = np.float32(weight)
        if not self.accumulated:
            total, new = self._own(), self._all(gradients)  # into the buffer itself, unless it is one of the caller's
            with np.errstate(all="ignore"):
                np.multiply(new, factor, out=total) if factor != 1 else np.copyto(total, new)
        else:
            if self._scratch is None:
                self._scratch = np.empty(self._layout.elements, FLOAT)
            total, new = self._own(), self._all(gradients, self._scratch)
            with np.errstate(all="ignore"):
                if factor != 1:
                    new = np.multiply(new, factor, out=self._scratch)
                np.add(total, new, out=total)
        self.accumulated += 1

    def discard(self) -> None:
        self.accumulated = 0

    # --- frozen tensors

    def _freeze(self, frozen: Collection[str]) -> None:
        ours = self._parts.of(frozen)
        tensors = self._layout.spec.tensors
        trained = [tensor.name for tensor in tensors if tensor.name not in ours.names]
        if not trained:
            raise InvalidArgument(
                "frozen: all tensors", "expected at least one that is trained; without a rank none is"
            )
        self._trained = Parts(self._layout).of(trained)
        shared = ours.blocks & self._trained.blocks
        decay = self._layout.spec.optimizer.weight_decay
        if shared and decay:
            raise InvalidArgument(
                f"frozen: blocks {ranges(shared)} hold trained tensors, too, where weight decay {decay:g} is of all",
                "expected frozen tensors that fill their blocks, or an optimizer without weight decay",
            )
        self._zeros = {
            tensor.name: np.broadcast_to(np.float32(0), tensor.shape) for tensor in tensors if tensor.name in ours.names
        }

    def _none_frozen(self, gradients: Mapping[str, Any]) -> None:
        given = [name for name in self._zeros if name in gradients]
        if given:
            text = "; ".join(
                f"tensor {name!r}: expected nothing, for it is frozen, received an array" for name in given
            )
            raise InvalidArgument(text)

    # --- gathering

    def _from_device(self, gradients: Mapping[str, Any], number: int) -> Staged:
        """All are CuPy arrays: gathered and encoded there."""
        from worker.device import of_number
        from worker.device.outgoing import Outgoing  # which imports this

        outgoing = self._outgoing.get(number)
        if outgoing is None:
            backend = of_number(number).backend()
            outgoing = self._outgoing[number] = Outgoing(self._layout, self.codec, backend, self.frozen)
        try:
            outgoing.put_all(gradients)
            staged: Staged = outgoing.take()
        except errors.DeviceFailed:
            del self._outgoing[number]  # its memory, too: the next attempt begins from nothing
            outgoing.close()
            raise
        return staged

    def _own(self) -> Flat:
        if self._buffer is None:
            self._buffer = np.empty(self._layout.elements, FLOAT)
        return self._buffer

    def _all(self, gradients: Mapping[str, Any], into: Flat | None = None) -> Flat:
        layout = self._layout
        if isinstance(gradients, Tensors) and gradients.whole and gradients.flat.shape == (layout.elements,):
            if not self._zeros:
                return gradients.flat
            gradients = {name: array for name, array in gradients.items() if name not in self._zeros}
        host = on_host(gradients)
        if self._zeros:
            self._none_frozen(host)
            host = {**host, **self._zeros}
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, which is judged as such
                return layout.flatten(host, out=self._own() if into is None else into)
        except Refusal as refusal:
            raise to_error(refusal) from None

    def _some(self, gradients: Mapping[str, Any]) -> tuple[Part, Flat]:
        host = on_host(gradients)
        self._none_frozen(host)
        part = self._parts.of(host)
        flat = self._own()
        views = self._layout.unflatten(flat)
        problems = []
        for name in part.names:
            array, view = np.asarray(host[name]), views[name]
            if array.shape != view.shape:
                problems.append(f"tensor {name!r}: expected shape {view.shape}, received shape {array.shape}")
            elif array.dtype.kind != "f":
                problems.append(f"tensor {name!r}: expected floats, received {array.dtype}")
            else:
                with np.errstate(over="ignore"):
                    np.copyto(view, array, casting="same_kind")
        if problems:
            raise InvalidArgument("; ".join(problems))
        part.clear_gaps(flat)
        return part, flat

    # --- judging

    @property
    def codec(self) -> Codec:
        """In which a device is to stage gradients: bounds on the norm are of float32 values."""
        unbounded = self._norms.clip is None and self._norms.reject is None
        return self._codec if unbounded else Codec.FP32

    def _staged(self, staged: Staged, step: int) -> Taken:
        if self.accumulated:
            raise InvalidArgument(
                f"gradients, and {self.accumulated} that were accumulated",
                "push_pull() without gradients pushes the sum, discard() forgets it",
            )
        if not isinstance(staged.values, Encoded):
            return self._judged(staged.values, self._trained, step)
        kind = PushKind.GRADIENT if staged.beyond is None else self._by_policy(*staged.beyond, step, UNSENT)
        if kind is PushKind.SKIP:
            self.counts.skipped += 1
        return Taken(kind, None if kind is PushKind.SKIP else staged.values, self._trained)

    def _judged(self, flat: Flat, part: Part | None, step: int) -> Taken:
        spans = (slice(0, self._layout.elements),) if part is None else part.spans
        kind = self._finite(flat, spans, step)
        if kind is PushKind.SKIP:
            self.counts.skipped += 1
            return Taken(kind, None, part)
        return Taken(kind, self._within_norms(flat, spans, part, step), part)

    def _finite(
        self,
        flat: Flat,
        spans: Iterable[slice],
        step: int,
        hint: str = UNSENT,
    ) -> PushKind:
        """By the model's policy for NaN, infinity, and what the codec would make infinite."""
        if self._layout.spec.non_finite is NonFinite.ALLOW:
            return PushKind.GRADIENT
        for span in spans:
            place = first_beyond(self._codec, flat[span])
            if place is not None:
                break
        else:
            return PushKind.GRADIENT
        element = span.start + place
        return self._by_policy(element, flat[element], step, hint)

    def _by_policy(self, element: int, value: np.float32, step: int, hint: str) -> PushKind:
        """Of a gradient that is not finite, there first."""
        policy = self._layout.spec.non_finite
        if policy is NonFinite.ALLOW:
            return PushKind.GRADIENT
        if policy is NonFinite.SKIP:
            return PushKind.SKIP
        self.counts.rejected += 1
        tensor, at = self._layout.tensor_at(element)
        beyond = ""
        if np.isfinite(value):
            beyond = f", beyond {LARGEST[self._codec]:g}, the largest {self._codec.name.lower()}"
            wider = "bf16" if self._codec is Codec.FP16 else "fp32"
            hint = f"{hint}; scale the loss down, or open the model with codec='{wider}'"
        raise errors.NonFinite(
            f"gradient of step {step}: {value} in tensor {tensor!r} at element {at}{beyond}",
            hint,
            tensor=tensor,
            step=step,
        )

    def _within_norms(self, flat: Flat, spans: tuple[slice, ...], part: Part | None, step: int) -> Flat:
        clip, reject = self._norms.clip, self._norms.reject
        if clip is None and reject is None:
            return flat
        norm = _norm(flat[span] for span in spans)
        if reject is not None and not norm <= reject:
            self.counts.rejected += 1
            raise errors.NormTooLarge(
                f"gradient of step {step}: expected a norm of at most {reject:g}, received {norm:g}, most of it in "
                f"tensor {self._longest(flat, part)!r}",
                "nothing was sent; this handle was opened with reject_norm",
                norm=norm,
                bound=reject,
                step=step,
            )
        if clip is None or norm <= clip:
            return flat
        self.counts.clipped += 1
        own = self._own()  # which may be `flat`
        factor = np.float32(clip / norm)
        with np.errstate(all="ignore"):
            for span in spans:
                np.multiply(flat[span], factor, out=own[span])
        return own

    def _longest(self, flat: Flat, part: Part | None) -> str:
        """The tensor whose gradient has the greatest norm, or one that is not a number."""
        tensors = self._layout.spec.tensors
        wanted = {tensor.name for tensor in tensors} if part is None else set(part.names)
        norms = {
            tensor.name: _norm([flat[self._layout.tensor_slice(position)]])
            for position, tensor in enumerate(tensors)
            if tensor.name in wanted
        }
        return max(norms, key=lambda name: (math.isnan(norms[name]), norms[name]))


def _norm(pieces: Iterable[Flat]) -> float:
    """Euclidean, summed in float64 by NumPy's own pairwise sum: no BLAS, whose threads may add in any order."""
    total = 0.0
    scratch = np.empty(PIECE_ELEMENTS, np.float64)
    with np.errstate(all="ignore"):
        for piece in pieces:
            for start in range(0, piece.size, PIECE_ELEMENTS):
                part = piece[start : start + PIECE_ELEMENTS]
                squares = scratch[: part.size]
                np.multiply(part, part, out=squares, dtype=np.float64)
                total += float(squares.sum())
    return math.sqrt(total) if total >= 0 else total
