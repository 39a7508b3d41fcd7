"""The sending end: the connections to one peer.

Owns two channels (control and bulk, each a connection of its own), their streams and queues, and the back-off between
attempts. Invariants: nothing of one channel waits for the other (HAZARDS 30); while there is no connection nothing is
queued; a stream is only opened after the two nodes introduced themselves in this connection's life. Must not know: what
messages mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from consensus.core.interface import NodeId
from consensus.transport.codec import Origin, encode
from consensus.transport.grpc.introduction import Introductions
from consensus.transport.grpc.options import GrpcOptions, client_arguments
from consensus.transport.grpc.queues import SendQueue
from consensus.transport.grpc.service import SERVICE
from consensus.transport.interface import Channel, Envelope
from consensus.v1 import consensus_pb2 as pb

_log = logging.getLogger(__name__)


class PeerLink:
    """`changed(up)` is called when the control stream stands, and when it broke."""

    def __init__(
        self,
        *,
        node: NodeId,
        address: str,
        dial: str,
        origin: Origin,
        introductions: Introductions,
        options: GrpcOptions,
        dropped: Counter[str],
        changed: Callable[[bool], None],
    ) -> None:
        self.node = node
        self.address = address
        """As everybody knows it; `dial` is where it is reached from here."""
        self._dial = dial
        self.up = False
        self._origin = origin
        self._introductions = introductions
        self._options = options
        self._dropped = dropped
        self._changed = changed
        self._queues = {
            Channel.CONTROL: SendQueue(
                envelopes_max=options.control_queue_envelopes, bytes_max=options.control_queue_bytes
            ),
            Channel.BULK: SendQueue(envelopes_max=options.bulk_queue_envelopes, bytes_max=options.bulk_queue_bytes),
        }
        self._channels: dict[Channel, grpc.aio.Channel] = {}
        self._task: asyncio.Task[None] | None = None
        self._sign_of_life = asyncio.Event()

    # --- sending ----------------------------------------------------------------------------------------------------

    def queue_for(self, channel: Channel) -> SendQueue:
        """Each channel has a queue, a stream and a connection of its own."""
        return self._queues[channel]

    def send(self, channel: Channel, envelopes: Sequence[Envelope]) -> None:
        if not self.up:
            self._dropped["peer_not_connected"] += len(envelopes)
            return
        self._dropped["send_queue_full"] += self.queue_for(channel).put(envelopes)

    # --- life -------------------------------------------------------------------------------------------------------

    def heard_of(self) -> None:
        """The peer has just connected to this node, so it is there: dial at once instead of waiting out a back-off."""
        if not self.up:
            self._sign_of_life.set()

    def start(self) -> None:
        self._make_channels()
        self._task = asyncio.create_task(self._run(), name=f"peer-{self.node}")

    def _make_channels(self) -> None:
        arguments = client_arguments(self._options)
        for channel in Channel:
            # A user agent of its own keeps the two apart in whatever pools connections by arguments.
            named = [*arguments, ("grpc.primary_user_agent", f"paramserver-{channel.name.lower()}")]
            self._channels[channel] = grpc.aio.insecure_channel(self._dial, options=named)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._close_channels()

    async def _close_channels(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    async def _run(self) -> None:
        pause_ms = self._options.reconnect_ms_min
        while True:
            try:
                await self._connected()
            except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
                pass  # The peer is away, or went away: what the state of the link says already.
            finally:
                was_up = self.up
                self._down()
            if was_up:
                pause_ms = self._options.reconnect_ms_min
            await self._pause(pause_ms)
            pause_ms = min(2 * pause_ms, self._options.reconnect_ms_max)

    async def _pause(self, pause_ms: int) -> None:
        """Until the next attempt is due, or the peer is heard of."""
        try:
            await asyncio.wait_for(self._sign_of_life.wait(), pause_ms / 1000)
        except TimeoutError:
            return
        self._sign_of_life.clear()
        # A channel that failed before has a back-off of its own; a new one has none.
        await self._close_channels()
        self._make_channels()

    def _down(self) -> None:
        for queue in self._queues.values():
            self._dropped["connection_lost"] += queue.clear()
        if self.up:
            self.up = False
            self._changed(False)

    async def _connected(self) -> None:
        """One life of the control stream."""
        if not await self._introduced():
            return
        call = self._open(Channel.CONTROL)
        try:
            await call.wait_for_connection()
            await call.write(encode(self._origin, ()))
            self.up = True
            self._sign_of_life.clear()
            self._changed(True)
            bulk = asyncio.create_task(self._run_bulk(), name=f"peer-{self.node}-bulk")
            try:
                await self._pump(call, self._queues[Channel.CONTROL])
            finally:
                bulk.cancel()
                await asyncio.gather(bulk, return_exceptions=True)
        finally:
            call.cancel()

    async def _introduced(self) -> bool:
        introduce: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        introduce = self._channels[Channel.CONTROL].unary_unary(f"/{SERVICE}/Introduce")
        request = self._introductions.request(self.node).SerializeToString()
        data = await introduce(request, timeout=self._options.introduce_ms / 1000)
        response = pb.IntroduceResponse.FromString(data)
        before = self._introductions.refusals.get(self.node)
        refusal = await self._introductions.answered(self.node, response)
        if refusal and refusal != before:
            _log.error("%s", refusal)
        return not refusal

    def _open(self, channel: Channel) -> grpc.aio.StreamStreamCall[Any, Any]:
        method = "Control" if channel is Channel.CONTROL else "Bulk"
        return self._channels[channel].stream_stream(f"/{SERVICE}/{method}")()

    async def _run_bulk(self) -> None:
        """Bulk may break and come back without anybody taking the peer for lost."""
        queue = self._queues[Channel.BULK]
        while True:
            call = self._open(Channel.BULK)
            try:
                await call.wait_for_connection()
                await call.write(encode(self._origin, ()))
                await self._pump(call, queue)
            except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
                pass  # Broken while it was written to, or before.
            finally:
                call.cancel()
            self._dropped["bulk_broken"] += 1
            self._dropped["connection_lost"] += queue.clear()
            await asyncio.sleep(self._options.reconnect_ms_min / 1000)

    async def _pump(self, call: grpc.aio.StreamStreamCall[Any, Any], queue: SendQueue) -> None:
        """Send what is queued until the stream ends."""
        call.add_done_callback(lambda _: queue.wake())
        options = self._options
        while not call.done():
            batch = queue.take(envelopes_max=options.frame_envelopes_max, bytes_max=options.frame_bytes_max)
            if batch:
                await call.write(encode(self._origin, batch))
            else:
                await queue.wait()
