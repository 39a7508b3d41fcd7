"""How two specs of one name differ, in words. Must not know: why they are compared."""

from __future__ import annotations

from enum import IntEnum

from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.spec import ModelSpec, TensorSpec


def mismatch(existing: ModelSpec, asked: ModelSpec) -> Refusal:
    """Both specs, as far as they differ."""
    differences = [
        (field, _shown(here), _shown(there))
        for field in ("optimizer", "ranks", "reduction", "non_finite", "block_bytes", "log_codec")
        if (here := getattr(existing, field)) != (there := getattr(asked, field))
    ]
    if existing.tensors != asked.tensors:
        pairs = zip(existing.tensors, asked.tensors, strict=False)
        first = next((i for i, (here, there) in enumerate(pairs) if here != there), None)
        if first is None:
            differences.append(("tensors", *_counted(existing.tensors, asked.tensors)))
        else:
            differences.append((f"tensors[{first}]", _tensor(existing.tensors[first]), _tensor(asked.tensors[first])))
    expected = "; ".join(f"{field} {here}" for field, here, _ in differences)
    received = "; ".join(f"{field} {there}" for field, _, there in differences)
    return Refusal(
        Reason.SPEC_MISMATCH,
        f"model {existing.name!r} exists with another spec: it has {expected}; asked was {received}",
        field=differences[0][0] if differences else "spec",
        expected=expected,
        received=received,
        hint="open the model with its own spec, or take another name",
    )


def _shown(value: object) -> str:
    return value.name if isinstance(value, IntEnum) else str(value)


def _tensor(tensor: TensorSpec) -> str:
    return f"{tensor.name!r} of shape {tensor.shape}"


def _counted(existing: tuple[TensorSpec, ...], asked: tuple[TensorSpec, ...]) -> tuple[str, str]:
    """Of two that begin alike; the longer one with the first tensor that the other has not."""
    most = min(len(existing), len(asked))
    here, there = (
        f"{len(one)} tensors" + (f", with {_tensor(one[most])}" if len(one) > most else "") for one in (existing, asked)
    )
    return here, there
