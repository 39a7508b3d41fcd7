"""The real network: grpc.aio channels, one an address, kept open to all nodes.

Owns channel options and the translation of gRPC's errors. Invariants: a message is bounded in both directions;
reconnecting backs off 100 to 500 ms, so an outage ends soon after the server is back; a dead connection is noticed by
keepalive. Must not know: who leads, what is retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc
import grpc.aio

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import ERROR_METADATA_KEY, Refusal
from paramserver.wire.frames import BlockFrame, PushFrame, decode_block, encode_push
from worker.network import Method, PushMethod, PushStream, StreamEnded

MESSAGE_BYTES_MAX = 8 << 20
KEEPALIVE_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_frame_size", (16 << 20) - 1),
    ("grpc.http2.lookahead_bytes", 64 << 20),
    # Retries are the engine's business: it knows what was acknowledged.
    ("grpc.enable_retries", 0),
    # Parameter servers stand beside their workers; a web proxy from the environment would only break the streams.
    ("grpc.enable_http_proxy", 0),
)

PREFIX = "/paramserver.v1."
RESPONSES: dict[Method, Callable[[bytes], Any]] = {
    Method.DESCRIBE_CLUSTER: pb.ClusterDescription.FromString,
    Method.OPEN_SESSION: pb.OpenSessionResponse.FromString,
    Method.CREATE_MODEL: pb.ModelDescription.FromString,
    Method.DESCRIBE_MODEL: pb.ModelDescription.FromString,
    Method.CLAIM_INITIALIZATION: pb.ClaimInitializationResponse.FromString,
    Method.OPEN_MODEL: pb.ModelDescription.FromString,
    Method.CLAIM_RANK: pb.ClaimRankResponse.FromString,
    Method.RENEW_LEASE: pb.RenewLeaseResponse.FromString,
    Method.RELEASE_RANK: pb.ReleaseRankResponse.FromString,
    Method.SET_LEARNING_RATE: pb.SetLearningRateResponse.FromString,
    Method.PIN_MODEL: pb.PinModelResponse.FromString,
    Method.RELEASE_PIN: pb.ReleasePinResponse.FromString,
    Method.LIST_MODELS: pb.ListModelsResponse.FromString,
    Method.DELETE_MODEL: pb.DeleteModelResponse.FromString,
    Method.LOAD_MODEL: pb.LoadModelResponse.FromString,
}


class GrpcNetwork:
    """`worker.network.Network` over grpc.aio."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def call(self, address: str, method: Method, request: Any, timeout_s: float) -> Any:
        multicallable = self._channel(address).unary_unary(
            PREFIX + method,
            request_serializer=_serialize,
            response_deserializer=RESPONSES[method],
        )
        try:
            return await multicallable(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise refusal_of(error) from None

    def push(self, address: str, method: PushMethod) -> PushStream:
        # Frames are written and read by hand (wire.frames): gRPC gets and gives bytes.
        return GrpcPushStream(self._channel(address).stream_stream(PREFIX + method)())

    async def pull(self, address: str, request: Any, timeout_s: float) -> AsyncGenerator[BlockFrame, None]:
        method: Any = self._channel(address).unary_stream(PREFIX + "Data/Pull", request_serializer=_serialize)
        call = method(request, timeout=timeout_s)
        try:
            async for data in call:
                yield decode_block(data)
        except grpc.aio.AioRpcError as error:
            raise refusal_of(error) from None
        finally:
            call.cancel()

    async def announcements(self, address: str, request: Any) -> AsyncGenerator[Any, None]:
        call = self._channel(address).unary_stream(
            PREFIX + "Watch/Announcements",
            request_serializer=_serialize,
            response_deserializer=pb.Announcement.FromString,
        )(request)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise refusal_of(error) from None
        finally:
            call.cancel()

    def reachable(self, address: str) -> bool:
        channel = self._channels.get(address)
        return channel is not None and channel.get_state() is grpc.ChannelConnectivity.READY

    async def close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=OPTIONS)
        return channel


class GrpcPushStream:
    """`worker.network.PushStream` over one grpc.aio call."""

    def __init__(self, call: Any) -> None:
        self._call = call
        if hasattr(call, "_cython_call"):
            call._cython_call = _TrueStatus(call._cython_call)

    async def send(self, frame: PushFrame) -> None:
        try:
            await self._call.write(encode_push(frame))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            raise StreamEnded from None

    async def receive(self) -> BlockFrame | None:
        try:
            data = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise refusal_of(error) from None
        return None if data is grpc.aio.EOF else decode_block(data)

    def cancel(self) -> None:
        self._call.cancel()


class _TrueStatus:
    """A call of grpc.aio as it is, but for this: when a write meets a stream that the server has just ended, grpc.aio
    makes INTERNAL of it, and the server's own status, with the time to retry, is lost. Here that one is waited for: it
    is about to arrive."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def set_internal_error(self, _: str) -> None:
        pass


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """The server's refusal, or one made of gRPC's own status."""
    detail = next((value for key, value in error.trailing_metadata() or () if key == ERROR_METADATA_KEY), None)
    return Refusal.from_detail(
        error.code().name, error.details() or error.code().name, detail if isinstance(detail, bytes) else None
    )


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
