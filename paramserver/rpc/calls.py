"""The frame around every handler: bytes in, bytes out, errors as `Refusal`.

Invariants: a request is parsed here, so that bytes which are no message are INVALID_ARGUMENT and never a traceback;
every failed call carries `paramserver-error-bin`; a defect of ours is logged here and shown outside as INTERNAL without
detail; no unary call outlives SERVER_DEADLINE_MS, whatever deadline the client gave. Must not know: what handlers do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from paramserver.observe.counters import Counters
from paramserver.wire.errors import ERROR_METADATA_KEY, Reason, Refusal

log = logging.getLogger(__name__)

SERVER_DEADLINE_MS = 60_000
"""The server's own cap on unary calls and pulls; a client's deadline may be shorter."""

Context: TypeAlias = Any
"""`grpc.aio.ServicerContext[bytes, bytes]`."""
Request = TypeVar("Request", bound=Message)
Unary: TypeAlias = Callable[[Request, Context], Awaitable[Message]]
Stream: TypeAlias = Callable[[Context], Coroutine[Any, Any, None]]
"""Reads with `context.read()` and writes with `context.write()`."""
ServerStream: TypeAlias = Callable[[Request, Context], Coroutine[Any, Any, None]]


def parse(kind: type[Request], data: bytes) -> Request:
    try:
        return kind.FromString(data)
    except DecodeError:
        name = kind.DESCRIPTOR.name
        raise Refusal(
            Reason.INVALID,
            f"request: expected a {name} message, received {len(data)} bytes that are none",
            field="request",
            expected=name,
            received=f"{len(data)} bytes",
        ) from None


def status_code(refusal: Refusal) -> grpc.StatusCode:
    return grpc.StatusCode[refusal.code]


class Calls:
    """Makes method handlers. `counters` counts refusals by reason."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def unary(self, kind: type[Request], handler: Unary[Request]) -> grpc.RpcMethodHandler:
        async def call(data: bytes, context: Context) -> bytes:
            async def work() -> bytes:
                async with _Deadline():
                    return (await handler(parse(kind, data), context)).SerializeToString()

            return await self._guard(work(), context)

        return grpc.unary_unary_rpc_method_handler(call)

    def server_stream(self, kind: type[Request], handler: ServerStream[Request]) -> grpc.RpcMethodHandler:
        async def call(data: bytes, context: Context) -> None:
            async def work() -> None:
                await handler(parse(kind, data), context)

            await self._guard(work(), context)

        return grpc.unary_stream_rpc_method_handler(call)

    def stream(self, handler: Stream) -> grpc.RpcMethodHandler:
        async def call(_requests: Any, context: Context) -> None:
            await self._guard(handler(context), context)

        return grpc.stream_stream_rpc_method_handler(call)

    async def _guard(self, work: Coroutine[Any, Any, Any], context: Context) -> Any:
        reached: Refusal
        try:
            return await work
        except Refusal as refusal:
            reached = refusal
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("a handler failed")
            reached = Refusal(Reason.INTERNAL, "a defect of the server; its log says more")
        self._counters.add(f"refused_{reached.reason.value.lower()}")
        return await abort(context, reached)


async def abort(context: Context, refusal: Refusal) -> None:
    """Ends the call. Raises `AbortError`, as gRPC wants it."""
    await context.abort(status_code(refusal), refusal.message, ((ERROR_METADATA_KEY, refusal.detail()),))


class _Deadline:
    """`asyncio.timeout` that ends in a `Refusal`."""

    def __init__(self) -> None:
        self._timeout = asyncio.timeout(SERVER_DEADLINE_MS / 1000)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError:
            message = f"not done within the server's own bound of {SERVER_DEADLINE_MS} ms"
            raise Refusal(Reason.DEADLINE, message) from None
