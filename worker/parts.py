"""Part of a model, by tensor name: which blocks hold it, and what else lies in these.

A block is the unit in which everything is sent, so a part is sent as the blocks that hold it; what lies there beside it
is zeros in a gradient, and not looked at in weights. Must not know: what is sent, servers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from paramserver.wire.layout import Flat, Layout
from worker.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Part:
    """`names` in the model's order. `spans`: what of the flat space the blocks cover, in ascending pieces; `gaps`: what
    of it belongs to other tensors."""

    names: tuple[str, ...]
    blocks: frozenset[int]
    spans: tuple[slice, ...]
    gaps: tuple[slice, ...]

    def clear_gaps(self, flat: Flat) -> None:
        for gap in self.gaps:
            flat[gap] = 0


class Parts:
    """Parts of one model, each worked out once as long as it is asked for again."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._positions: dict[str, int] = {}
        self._last: tuple[frozenset[str], Part] | None = None

    def of(self, names: Iterable[str]) -> Part:
        """Raises InvalidArgument for no name at all, and for those that the model does not have."""
        if isinstance(names, str):
            raise InvalidArgument(f"tensors {names!r}", "expected a list of names, not one string")
        wanted = frozenset(names)
        if self._last is not None and self._last[0] == wanted:
            return self._last[1]
        if not self._positions:
            self._positions = {tensor.name: at for at, tensor in enumerate(self._layout.spec.tensors)}
        unknown = sorted(str(name) for name in wanted if name not in self._positions)
        if unknown:
            raise InvalidArgument(
                "; ".join(f"tensor {name!r}: expected one of the model, received an unknown one" for name in unknown)
            )
        if not wanted:
            raise InvalidArgument("tensors: none", "expected at least one name")
        part = self._part(sorted(self._positions[name] for name in wanted))
        self._last = (wanted, part)
        return part

    def _part(self, positions: list[int]) -> Part:
        layout = self._layout
        size = layout.block_elements_full
        places = [layout.tensor_slice(position) for position in positions]
        blocks = {block for place in places for block in range(place.start // size, (place.stop - 1) // size + 1)}
        spans = _joined(layout.block_slice(block) for block in sorted(blocks))
        covered = _joined(places)
        gaps: list[slice] = []
        for span in spans:
            at = span.start
            for place in covered:
                if place.stop > at and place.start < span.stop:
                    if place.start > at:
                        gaps.append(slice(at, place.start))
                    at = place.stop
            if at < span.stop:
                gaps.append(slice(at, span.stop))
        names = tuple(layout.spec.tensors[position].name for position in positions)
        return Part(names, frozenset(blocks), tuple(spans), tuple(gaps))


def _joined(pieces: Iterable[slice]) -> list[slice]:
    """Ascending pieces, those that touch made one."""
    joined: list[slice] = []
    for piece in pieces:
        if joined and joined[-1].stop == piece.start:
            joined[-1] = slice(joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return joined
