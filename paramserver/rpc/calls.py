"""The frame around every handler: bytes in, bytes out, errors as `Refusal`.

Invariants: a request is parsed here, so that bytes which are no message are INVALID_ARGUMENT and never a traceback;
every failed call carries `paramserver-error-bin`; a defect of ours is logged here and shown outside as INTERNAL without
detail; no unary call outlives SERVER_DEADLINE_MS, whatever deadline the client gave; a call beyond the node's bounds is
refused before its handler begins; a client that does not even read the end of a stream loses its connection; one that
is gone is neither a defect nor a refusal, whatever gRPC raises where a handler finds out. Must not know: what handlers
do.
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
from paramserver.rpc.admission import Admission, sever
from paramserver.rpc.limits import Limits
from paramserver.wire.errors import ERROR_METADATA_KEY, Reason, Refusal, invalid

log = logging.getLogger(__name__)

SERVER_DEADLINE_MS = 60_000
"""The server's own cap on unary calls and pulls; a client's deadline may be shorter."""

GONE_MS = 1000
"""A write that failed for a client that is gone is followed by gRPC's cancellation, mostly within a millisecond. After
so long without one it is a defect of ours."""

UNARY_BYTES_MAX = 2_200_000
"""A request of a unary call; what carries more goes in streams."""

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
    """Makes method handlers. `counters` counts refusals by reason. `admission`: whose bounds calls are held to; None:
    these are served always. `part_ms`: how long the end of a stream may lie unread."""

    def __init__(
        self, counters: Counters, admission: Admission | None = None, *, part_ms: int = Limits().reader_timeout_ms
    ) -> None:
        self._counters = counters
        self._admission = admission
        self._part_s = part_ms / 1000

    def unary(self, kind: type[Request], handler: Unary[Request]) -> grpc.RpcMethodHandler:
        async def call(data: bytes, context: Context) -> bytes:
            async def work() -> bytes:
                if len(data) > UNARY_BYTES_MAX:
                    # Not parsed: a million of tiny things would keep the loop from its votes.
                    received = f"{len(data)} bytes"
                    raise invalid("request", f"at most {UNARY_BYTES_MAX} bytes", received, reason=Reason.TOO_LARGE)
                async with _Deadline():
                    return (await handler(parse(kind, data), context)).SerializeToString()

            return await self._guard(work, context)

        return grpc.unary_unary_rpc_method_handler(call)

    def server_stream(
        self,
        kind: type[Request],
        handler: ServerStream[Request],
        *,
        bounded: Callable[[bytes], None] = lambda _: None,
    ) -> grpc.RpcMethodHandler:
        """`bounded` raises `Refusal` for a request that is too long to be parsed."""

        async def call(data: bytes, context: Context) -> None:
            async def work() -> None:
                bounded(data)
                await handler(parse(kind, data), context)

            await self._guard(work, context)

        return grpc.unary_stream_rpc_method_handler(call)

    def stream(self, handler: Stream) -> grpc.RpcMethodHandler:
        async def call(_requests: Any, context: Context) -> None:
            await self._guard(lambda: handler(context), context)

        return grpc.stream_stream_rpc_method_handler(call)

    async def _guard(self, work: Callable[[], Awaitable[Any]], context: Context) -> Any:
        admission = self._admission
        if admission is None:
            return await self._served(work, context)
        peer = context.peer()
        try:
            admission.enter(peer)
        except Refusal as refusal:
            return await self._refused(refusal, context)
        try:
            return await self._served(work, context)
        finally:
            admission.leave(peer)

    async def _served(self, work: Callable[[], Awaitable[Any]], context: Context) -> Any:
        reached: Refusal
        try:
            return await work()
        except Refusal as refusal:
            reached = refusal
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if isinstance(error, grpc.aio.BaseError) and not isinstance(error, grpc.aio.UsageError):
                await self._broken_off(error)
            log.exception("a handler failed")
            reached = Refusal(Reason.INTERNAL, "a defect of the server; its log says more")
        return await self._refused(reached, context)

    async def _broken_off(self, error: grpc.aio.BaseError) -> None:
        """gRPC went on no further with the call. Raises, unless that was our fault."""
        if not isinstance(error, grpc.aio.InternalError):
            raise error  # it was ended here, or the server is stopping
        # A write failed. Mostly its client is gone: it cancelled, died, or its deadline has passed. gRPC knows that
        # before the loop does, and cancels this call next. Where that does not come the client is there still.
        self._counters.add("calls_broken_off")
        await asyncio.sleep(GONE_MS / 1000)

    async def _refused(self, refusal: Refusal, context: Context) -> Any:
        self._counters.add(f"refused_{refusal.reason.value.lower()}")
        try:
            async with asyncio.timeout(self._part_s):
                return await abort(context, refusal)
        except TimeoutError:
            # What was written before lies unread in front of the end, and gRPC keeps all of it.
            self._counters.add("connections_closed_unread")
            sever(context.peer())
            raise asyncio.CancelledError from None


async def abort(context: Context, refusal: Refusal) -> None:
    """Ends the call. Raises `AbortError`, as gRPC wants it, or `CancelledError` when its client is gone."""
    try:
        await context.abort(status_code(refusal), refusal.message, ((ERROR_METADATA_KEY, refusal.detail()),))
    except grpc.aio.InternalError:
        # Nobody is there to be told, and gRPC would log it as a defect of ours.
        raise asyncio.CancelledError from None


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
