"""Envelopes through the real encoding and back, as they would travel.

Owns nothing but the detour. Invariant: what comes out equals what went in, payloads included, or the run fails. Must
not know: links.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from consensus.core.interface import NodeId
from consensus.simulation.errors import Violated
from consensus.transport.codec import Origin, decode, encode, verified
from consensus.transport.interface import Envelope


def through_codec(cluster: bytes, source: NodeId, envelopes: Sequence[Envelope]) -> Sequence[Envelope]:
    """`cluster`: 16 bytes. Raises `Violated` when parsing gives anything else than what was encoded."""
    incarnation = envelopes[0].message.incarnation
    origin = Origin(cluster, source, bytes(16), incarnation)
    received = decode(encode(origin, envelopes))
    dropped: Counter[str] = Counter()
    parsed = [envelope for part in verified(received, dropped) for envelope in part or ()]
    if parsed != list(envelopes) or dropped:
        raise Violated(f"the codec changed what node {source} sent: {envelopes} became {parsed}, dropped {dropped}")
    return parsed
