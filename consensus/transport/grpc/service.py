"""The receiving end: streams of frames from peers.

Owns the Peer service. Invariants: frames are only taken from known members of this cluster with their known folder;
everything else is counted, and ends its stream with a status that says why; nothing here decodes on behalf of a
stranger more than one frame. Must not know: what messages mean, groups.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from consensus.core.interface import NodeId
from consensus.transport.codec import Origin, decode, verified
from consensus.transport.errors import BadFrame
from consensus.transport.grpc.introduction import Introductions
from consensus.transport.interface import Channel, Receiver
from consensus.v1 import consensus_pb2 as pb

SERVICE = "consensus.v1.Peer"
INTRODUCE_BYTES_MAX = 16 << 10
"""An introduction; a longer one is refused."""


class Incoming(Protocol):
    """How the transport hears of a peer's control streams."""

    def incoming(self, node: NodeId, *, incarnation: int, opened: bool) -> None: ...


class PeerService:
    """Registered on a server by `handlers`. `receiver` is set before the first stream is served."""

    def __init__(
        self, *, cluster: bytes, node: NodeId, introductions: Introductions, incoming: Incoming, dropped: Counter[str]
    ) -> None:
        self._cluster = cluster
        self._node = node
        self._introductions = introductions
        self._incoming = incoming
        self._dropped = dropped
        self.receiver: Receiver | None = None

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Control": grpc.stream_stream_rpc_method_handler(self._control),
                "Bulk": grpc.stream_stream_rpc_method_handler(self._bulk),
                "Introduce": grpc.unary_unary_rpc_method_handler(self._introduce),
            },
        )

    async def _control(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await self._serve(Channel.CONTROL, requests, context)

    async def _bulk(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await self._serve(Channel.BULK, requests, context)

    async def _introduce(self, data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            if len(data) > INTRODUCE_BYTES_MAX:
                raise BadFrame(f"IntroduceRequest: {len(data)} bytes, expected at most {INTRODUCE_BYTES_MAX}")
            request = pb.IntroduceRequest.FromString(data)
        except (DecodeError, ValueError, BadFrame) as error:
            self._dropped["bad_introduction"] += 1
            text = str(error) if isinstance(error, BadFrame) else "these bytes are not an IntroduceRequest"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        response = await self._introductions.judge(request)
        if not response.accepted:
            self._dropped["introduction_refused"] += 1
        answer: bytes = response.SerializeToString()
        return answer

    # --- streams ----------------------------------------------------------------------------------------------------

    async def _serve(
        self, channel: Channel, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        origin: Origin | None = None
        try:
            # The other end waits for this to know that the connection stands.
            await context.send_initial_metadata(())
            async for data in requests:
                origin = await self._take(channel, data, origin, context)
        finally:
            if origin is not None and channel is Channel.CONTROL:
                self._incoming.incoming(origin.node, incarnation=origin.incarnation, opened=False)

    async def _take(
        self,
        channel: Channel,
        data: bytes,
        origin: Origin | None,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> Origin:
        """One frame. Returns whose stream this is."""
        try:
            received = decode(data)
        except BadFrame as error:
            self._dropped["bad_frame"] += 1
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        problem = self._stranger(received.origin, origin)
        if problem:
            self._dropped["frame_of_stranger"] += 1
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem)
        if origin is None and channel is Channel.CONTROL:
            self._incoming.incoming(received.origin.node, incarnation=received.origin.incarnation, opened=True)
        for step in verified(received, self._dropped):
            if step is None:
                await asyncio.sleep(0)
            elif step and self.receiver is not None:
                self.receiver.received(received.origin.node, step)
        return received.origin

    def _stranger(self, sender: Origin, before: Origin | None) -> str:
        """Why this sender's frames are not taken (RULES I1, I2), or an empty string."""
        if sender == before and self._introductions.known(sender.node) == sender.node_uuid:
            return ""  # nobody took its place meanwhile
        if before is not None and sender != before:
            return "from_node, incarnation: expected those of the stream's first frame"
        if sender.cluster != self._cluster:
            return f"cluster: {sender.cluster.hex()}, expected {self._cluster.hex()}"
        if sender.node == self._node:
            return f"from_node: {sender.node}, which is this node"
        known = self._introductions.known(sender.node)
        if known is None:
            return f"from_node: {sender.node}, which has not introduced itself"
        if known != sender.node_uuid:
            return self._introductions.another_folder(sender.node, known=known, shown=sender.node_uuid)
        met = self._introductions.met(sender.node)
        if sender.incarnation < met:
            return self._introductions.outdated_folder(sender.node, met=met, shown=sender.incarnation)
        return ""
