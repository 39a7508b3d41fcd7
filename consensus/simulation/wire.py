"""Envelopes through the real encoding and back, as they would travel.

Owns nothing but the detour. Invariant: what comes out equals what went in, payloads included, or the run fails. Must
not know: links.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from consensus.core.configuration import next_replica_of
from consensus.core.interface import NodeId
from consensus.simulation.errors import Violated
from consensus.transport.codec import decode, encode, verified
from consensus.transport.interface import Envelope, SnapshotChunk
from consensus.transport.sockets import wire


def through_codec(source: NodeId, envelopes: Sequence[Envelope]) -> Sequence[Envelope]:
    """As one frame of a connection. Raises `Violated` when parsing gives anything else than what was encoded."""
    data = b"".join(wire.frame_parts(*encode(envelopes)))
    prefix = wire.decode_prefix(data[: wire.PREFIX_BYTES], bytes_max=len(data))
    body = memoryview(data)[wire.PREFIX_BYTES :]
    header = bytes(body[: prefix.header_bytes])
    prefix.check(header)
    received = decode(header, body[prefix.header_bytes :], envelopes[0].message.incarnation)
    dropped: Counter[str] = Counter()
    parsed = [envelope for part in verified(received, dropped) for envelope in part or ()]
    if parsed != [_written_out(envelope) for envelope in envelopes] or dropped:
        raise Violated(f"the codec changed what node {source} sent: {envelopes} became {parsed}, dropped {dropped}")
    return parsed


def _written_out(envelope: Envelope) -> Envelope:
    """A configuration says on the wire what it left to be understood: the next replica id."""
    message = envelope.message
    if not isinstance(message, SnapshotChunk):
        return envelope
    configuration = message.meta.configuration
    configuration = replace(configuration, next_replica=next_replica_of(configuration))
    return replace(envelope, message=replace(message, meta=replace(message.meta, configuration=configuration)))
