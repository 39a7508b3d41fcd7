"""The receiving end of first contacts.

Owns the Peer service. Invariants: an introduction is bounded before it is read; whatever it is, it gets an answer or a
status that says why, and is counted when it is refused. Must not know: how introductions are judged, frames.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from consensus.transport.errors import BadFrame
from consensus.transport.grpc.introduction import Introductions
from consensus.v1 import consensus_pb2 as pb

SERVICE = "consensus.v1.Peer"
INTRODUCE_BYTES_MAX = 16 << 10
"""An introduction; a longer one is refused."""


class PeerService:
    """Registered on a server by `handlers`."""

    def __init__(self, *, introductions: Introductions, dropped: Counter[str]) -> None:
        self._introductions = introductions
        self._dropped = dropped

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Introduce": grpc.unary_unary_rpc_method_handler(self._introduce),
            },
        )

    async def _introduce(self, data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            if len(data) > INTRODUCE_BYTES_MAX:
                raise BadFrame(f"IntroduceRequest: {len(data)} bytes, expected at most {INTRODUCE_BYTES_MAX}")
            request = pb.IntroduceRequest.FromString(data)
        except (DecodeError, ValueError, BadFrame) as error:
            self._dropped["bad_introduction"] += 1
            text = str(error) if isinstance(error, BadFrame) else "these bytes are not an IntroduceRequest"
            try:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
            except grpc.aio.InternalError:
                raise asyncio.CancelledError from None  # It is gone; gRPC would log that as a defect of ours.
        response = await self._introductions.judge(request)
        if not response.accepted:
            self._dropped["introduction_refused"] += 1
        answer: bytes = response.SerializeToString()
        return answer
