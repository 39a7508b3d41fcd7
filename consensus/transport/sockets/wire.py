"""The bytes of a connection between nodes (docs/formats.md).

Owns the three shapes: the hello that opens a connection, the verdict that answers it, and frames. Invariants: all of
fixed size but what a prefix announces, so that nobody has memory taken for what is not judged yet; everything but
payload is under a CRC of its own, payload under those in its header. Must not know: sockets, what a header means.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from crc32c import crc32c

from consensus.core.interface import NodeId, Payload
from consensus.transport.errors import BadFrame
from consensus.transport.interface import Channel
from consensus.transport.messages import number, size_of

VERSION = 1
_HELLO = struct.Struct("<4sHH16sI16sQI16s")
_VERDICT = struct.Struct("<4sHBBHH")
_PREFIX = struct.Struct("<2sBBII")
_CRC = struct.Struct("<I")
_HELLO_MAGIC, _VERDICT_MAGIC, _FRAME_MAGIC = b"PSNH", b"PSNV", b"PF"
HELLO_BYTES = _HELLO.size + _CRC.size
VERDICT_BYTES = _VERDICT.size + _CRC.size
PREFIX_BYTES = _PREFIX.size + _CRC.size
REFUSAL_BYTES_MAX = 1000
FRAME, BEAT = 1, 2
JOIN_BYTES = 16 << 10
"""Shorter payloads are copied together: a piece of its own costs a system call more than that."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who sends on a connection. `cluster` and `node_uuid` are 16 bytes."""

    cluster: bytes
    node: NodeId
    node_uuid: bytes
    incarnation: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Who opens a connection, for what, and whom it takes the other end for."""

    channel: Channel
    origin: Origin
    to_node: NodeId
    to_uuid: bytes


@dataclass(frozen=True, slots=True)
class Prefix:
    """What comes next. `header_crc` goes over the prefix before it, and the header."""

    kind: int
    header_bytes: int
    payload_bytes: int
    header_crc: int
    seed: int
    """CRC of the prefix."""

    def check(self, header: bytes | memoryview) -> None:
        if crc32c(header, self.seed) != self.header_crc:
            raise BadFrame("frame: the CRC of its header does not match")


# --- opening --------------------------------------------------------------------------------------------------------


def encode_hello(hello: Hello) -> bytes:
    origin = hello.origin
    data = _HELLO.pack(
        _HELLO_MAGIC,
        VERSION,
        hello.channel,
        origin.cluster,
        origin.node,
        origin.node_uuid,
        origin.incarnation,
        hello.to_node,
        hello.to_uuid,
    )
    return data + _CRC.pack(crc32c(data))


def decode_hello(data: bytes) -> Hello:
    """Raises `BadFrame`, which names the field and what was expected."""
    magic, version, channel, cluster, node, uuid, incarnation, to_node, to_uuid = _HELLO.unpack_from(data)
    if magic != _HELLO_MAGIC:
        raise BadFrame(f"hello: begins with {magic.hex()}, expected {_HELLO_MAGIC.hex()}: not a node of this build")
    if version != VERSION:
        raise BadFrame(f"hello: version {version}, expected {VERSION}; run the same version everywhere")
    if _CRC.unpack_from(data, _HELLO.size)[0] != crc32c(data[: _HELLO.size]):
        raise BadFrame("hello: its CRC does not match")
    if channel not in (Channel.CONTROL, Channel.BULK):
        raise BadFrame(f"hello: channel {channel}, expected {Channel.CONTROL} or {Channel.BULK}")
    return Hello(Channel(channel), Origin(cluster, node, uuid, number("incarnation", incarnation)), to_node, to_uuid)


def encode_verdict(refusal: str) -> bytes:
    """Empty: accepted."""
    text = refusal.encode()[:REFUSAL_BYTES_MAX]
    head = _VERDICT.pack(_VERDICT_MAGIC, VERSION, not text, 0, len(text), 0)
    return head + _CRC.pack(crc32c(text, crc32c(head))) + text


def verdict_text_bytes(head: bytes) -> int:
    """How many bytes of text follow a verdict's head."""
    magic, version, _, _, length, _ = _VERDICT.unpack_from(head)
    if magic != _VERDICT_MAGIC or version != VERSION:
        raise BadFrame(f"verdict: begins with {head[:6].hex()}: that is no port of nodes, of version {VERSION}")
    if length > REFUSAL_BYTES_MAX:
        raise BadFrame(f"verdict: {length} bytes of text, expected at most {REFUSAL_BYTES_MAX}")
    return int(length)


def decode_verdict(head: bytes, text: bytes) -> str:
    """Why the other end refuses, or an empty string. Raises `BadFrame`."""
    accepted = _VERDICT.unpack_from(head)[2]
    if _CRC.unpack_from(head, _VERDICT.size)[0] != crc32c(text, crc32c(head[: _VERDICT.size])):
        raise BadFrame("verdict: its CRC does not match")
    return "" if accepted else text.decode(errors="replace") or "no reason given"


# --- frames ---------------------------------------------------------------------------------------------------------


def _head(kind: int, header: bytes, payload_bytes: int) -> bytes:
    prefix = _PREFIX.pack(_FRAME_MAGIC, kind, 0, len(header), payload_bytes)
    return prefix + _CRC.pack(crc32c(header, crc32c(prefix))) + header


def beat() -> bytes:
    """A sign of life."""
    return _head(BEAT, b"", 0)


def frame_parts(header: bytes, payloads: Sequence[Payload]) -> list[memoryview]:
    """A frame, to be written gathered. Large payloads are not copied."""
    parts: list[memoryview] = []
    small: list[Payload] = [_head(FRAME, header, sum(map(size_of, payloads)))]
    for payload in payloads:
        if size_of(payload) < JOIN_BYTES:
            small.append(payload)
            continue
        if small:
            parts.append(memoryview(b"".join(small)))
            small = []
        parts.append(memoryview(payload).cast("B"))
    if small:
        parts.append(memoryview(b"".join(small)))
    return parts


def decode_prefix(data: bytes, *, bytes_max: int) -> Prefix:
    """Raises `BadFrame`."""
    magic, kind, reserved, header_bytes, payload_bytes = _PREFIX.unpack_from(data)
    if magic != _FRAME_MAGIC or reserved:
        raise BadFrame(f"frame: begins with {data[:4].hex()}, expected {_FRAME_MAGIC.hex()}, a kind and 0")
    if kind not in (FRAME, BEAT):
        raise BadFrame(f"frame: kind {kind}, expected {FRAME} or {BEAT}")
    if kind == FRAME and not header_bytes:
        raise BadFrame("frame: without a header")
    if header_bytes + payload_bytes > (0 if kind == BEAT else bytes_max):
        raise BadFrame(f"frame: {header_bytes + payload_bytes} bytes, expected at most {bytes_max}, and none in a beat")
    prefix = Prefix(
        kind, header_bytes, payload_bytes, _CRC.unpack_from(data, _PREFIX.size)[0], crc32c(data[: _PREFIX.size])
    )
    if kind == BEAT:
        prefix.check(b"")
    return prefix
