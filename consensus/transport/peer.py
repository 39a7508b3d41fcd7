"""The sending end: the connections to one peer.

Owns two connections (control and bulk), their queues, and the back-off between attempts. Invariants: nothing of one
channel waits for the other (HAZARDS 30); while there is no connection nothing is queued; a connection is only opened
after the two nodes introduced themselves in its life. Must not know: what messages mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import grpc
import grpc.aio

from consensus.core.interface import NodeId
from consensus.transport.errors import BadFrame
from consensus.transport.grpc.arguments import client_arguments
from consensus.transport.grpc.introduction import Introductions
from consensus.transport.grpc.service import SERVICE
from consensus.transport.interface import Channel, Envelope
from consensus.transport.options import TransportOptions
from consensus.transport.queues import SendQueue
from consensus.transport.sockets.sending import FrameLink
from consensus.transport.sockets.wire import Origin
from consensus.v1 import consensus_pb2 as pb

_log = logging.getLogger(__name__)


class PeerLink:
    """`changed(up)` is called when the control connection stands, and when it broke. `dial`: addresses that are reached
    at another one from here."""

    def __init__(
        self,
        *,
        node: NodeId,
        address: str,
        dial: Mapping[str, str],
        origin: Origin,
        introductions: Introductions,
        options: TransportOptions,
        dropped: Counter[str],
        changed: Callable[[bool], None],
    ) -> None:
        self.node = node
        self.address = address
        """As everybody knows it."""
        self._dial = dial
        self.up = False
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
        self._channel: grpc.aio.Channel | None = None
        self._links = {
            channel: FrameLink(
                channel,
                node=node,
                origin=origin,
                queue=queue,
                options=options,
                dropped=dropped,
                where=self._frames_address,
                uuid=lambda: introductions.known(node) or bytes(16),
            )
            for channel, queue in self._queues.items()
        }
        self._task: asyncio.Task[None] | None = None
        self._sign_of_life = asyncio.Event()

    # --- sending ----------------------------------------------------------------------------------------------------

    def queue_for(self, channel: Channel) -> SendQueue:
        """Each channel has a queue and a connection of its own."""
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
        self._make_channel()
        self._task = asyncio.create_task(self._run(), name=f"peer-{self.node}")

    def _make_channel(self) -> None:
        where = self._dial.get(self.address, self.address)
        self._channel = grpc.aio.insecure_channel(where, options=client_arguments(self._options))

    def _frames_address(self) -> str:
        """On the peer's host, at the port that it told."""
        address = f"{self.address.rpartition(':')[0]}:{self._introductions.peer_ports[self.node]}"
        return self._dial.get(address, address)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._close_channel()

    async def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _run(self) -> None:
        pause_ms = self._options.reconnect_ms_min
        while True:
            try:
                await self._connected()
            except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError, OSError, BadFrame):
                pass  # The peer is away, went away or refuses: what the state of the link and its log line say already.
            except Exception as error:
                # A peer that answers with other bytes, or a disk that does not hold its folder's uuid: a link that
                # ended here would never come back.
                self._dropped["link_failed"] += 1
                _log.error("the link to node %d: %s: %s", self.node, type(error).__name__, error)
            finally:
                was_up = self.up
                self._down()
            if was_up:
                pause_ms = self._options.reconnect_ms_min
            await self._pause(pause_ms)
            pause_ms = min(2 * pause_ms, self._options.reconnect_ms_max)

    async def _pause(self, pause_ms: int) -> None:
        """Until the next attempt is due, or the peer is heard of."""
        # Not wait_for: it forgets that it was cancelled when what it waits for comes in the same moment (Python 3.11).
        try:
            async with asyncio.timeout(pause_ms / 1000):
                await self._sign_of_life.wait()
        except TimeoutError:
            return
        self._sign_of_life.clear()
        # A channel that failed before has a back-off of its own; a new one has none.
        await self._close_channel()
        self._make_channel()

    def _down(self) -> None:
        for queue in self._queues.values():
            self._dropped["connection_lost"] += queue.clear()
        if self.up:
            self.up = False
            self._changed(False)

    async def _connected(self) -> None:
        """One life of the control connection."""
        if not await self._introduced():
            return
        control, bulk = self._links[Channel.CONTROL], self._links[Channel.BULK]
        connection = await control.dial()
        self.up = True
        self._sign_of_life.clear()
        self._changed(True)
        # Bulk may break and come back without anybody taking the peer for lost.
        beside = asyncio.create_task(bulk.run(), name=f"peer-{self.node}-bulk")
        try:
            await control.serve(connection)
        finally:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)

    async def _introduced(self) -> bool:
        assert self._channel is not None
        introduce: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        introduce = self._channel.unary_unary(f"/{SERVICE}/Introduce")
        request = self._introductions.request(self.node).SerializeToString()
        data = await introduce(request, timeout=self._options.introduce_ms / 1000)
        response = pb.IntroduceResponse.FromString(data)
        before = self._introductions.refusals.get(self.node)
        refusal = await self._introductions.answered(self.node, response)
        if refusal and refusal != before:
            _log.error("%s", refusal)
        return not refusal
