"""One version of a block's weights, in the codecs in which somebody wants them.

Owns the encodings, which are no part of the state: they are made when they are first asked for, once a version however
many take them, and go with the version. Invariant: a form is a pure function of the weights and its codec, so it does
not matter who makes it, on which replica, or whether two threads do at once; weights are never written. Must not know:
versions, streams.
"""

from __future__ import annotations

from typing import NamedTuple

from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import Codec, encode
from paramserver.wire.layout import Flat


class Form(NamedTuple):
    """An encoded block and the CRC32C of its bytes."""

    codec: Codec
    payload: memoryview
    crc: int


class Forms:
    """Of weights that nobody writes any more. Any thread may use it at any time."""

    __slots__ = ("_made", "weights")

    def __init__(self, weights: Flat, crc: int) -> None:
        """`crc`: of the fp32 bytes."""
        self.weights = weights
        self._made = {Codec.FP32: Form(Codec.FP32, weights.data.cast("B"), crc)}

    def ready(self, codec: Codec) -> Form | None:
        """The form if it was made. That of fp32 always is: it is the weights themselves."""
        return self._made.get(codec)

    def make(self, codec: Codec) -> Form:
        """The form, encoded now if it was not before: work for a lane, not for an event loop."""
        form = self._made.get(codec)
        if form is None:
            payload = encode(codec, self.weights)
            form = self._made[codec] = Form(codec, payload, crc32c(payload))
        return form
