"""A cluster in memory that speaks the worker's side of the protocol: leaders, views, leases, blocks, and faults on
request.

It is a model of the servers' answers, not of how they come to them: no log, no replicas. Commands are taken at once.
All methods may be called from any thread; what a stream receives is handed to its own event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import Codec, decode, encode
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import BlockFrame, BlockStatus, Hello, PushFrame, PushKind
from paramserver.wire.layout import Layout
from paramserver.wire.protos import spec_from_proto, spec_to_proto
from worker.network import Method, PushMethod, StreamEnded

CLUSTER = bytes(range(16))
LEARNING_RATE = np.float32(0.5)
LEASE_MS = 10_000

Deliver = Callable[[Any], None]


def unavailable(message: str = "connection refused") -> Refusal:
    """What gRPC makes of a broken connection."""
    return Refusal(Reason.NOT_READY, message, code="UNAVAILABLE")


@dataclass(eq=False)
class Stream:
    """The server's end of a push stream."""

    cluster: FakeCluster
    node: int
    method: PushMethod
    deliver: Deliver
    hello: Hello | None = None
    ended: bool = False

    def take(self, frame: PushFrame) -> None:
        self.cluster.take(self, frame)

    def reply(self, frame: BlockFrame) -> None:
        if not self.ended:
            self.deliver(frame)

    def end(self, why: Refusal | None) -> None:
        if not self.ended:
            self.ended = True
            self.deliver(why)
        self.cluster.streams.discard(self)


@dataclass
class Rank:
    epoch: int = 0
    held: bool = False
    session: int = 0


@dataclass
class FakeModel:
    number: int
    spec: Any
    layout: Layout
    shards: list[tuple[int, int, int]]
    ranks: list[Rank]
    view: int = 1
    open: bool = False
    init_epoch: int = 0
    init_session: int = 0
    weights: dict[int, np.ndarray] = field(default_factory=dict)
    before: dict[int, np.ndarray] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    sums: dict[int, dict[int, PushFrame]] = field(default_factory=dict)

    def group_of(self, block: int) -> int:
        return next(group for group, first, count in self.shards if first <= block < first + count)


class FakeCluster:
    """Three nodes, data groups 1 to 3, group 0; group g is led by node g in term 1, group 0 by node 1."""

    def __init__(self, nodes: int = 3) -> None:
        self.lock = threading.RLock()
        self.addresses = {node: f"node{node}:7000" for node in range(1, nodes + 1)}
        self.down: set[int] = set()
        self.leaders: dict[int, tuple[int, int]] = {0: (1, 1), **{node: (node, 1) for node in range(1, nodes + 1)}}
        self.streams: set[Stream] = set()
        self.watchers: list[tuple[int, Deliver]] = []
        self.models: dict[int, FakeModel] = {}
        self.sessions: dict[bytes, tuple[int, bytes]] = {}
        self.answers: dict[tuple[int, int], Any] = {}
        self.frames: list[tuple[int, int, int]] = []
        """(rank, block, step) of every frame taken, in order."""
        self.payloads: list[tuple[int, int, bytes]] = []
        """(block, step, bytes)"""
        self.applied: list[tuple[int, int]] = []
        """(block, version) in order: each must be there once."""
        self.hellos: list[Hello] = []
        self.calls: list[tuple[str, Method]] = []
        self.swallow_replies = 0
        """So many applied blocks are not answered: the leader dies before it can."""
        self.without_weights = False
        self.corrupt_replies = 0
        self.hold = False
        """Contributions are taken and not applied."""
        self.refuse: list[Refusal] = []
        """The next hellos get these."""
        self.lease_ms = LEASE_MS
        self.pulls: list[tuple[int, Any]] = []
        """(node, request) of every pull, in order."""
        self.no_quorum: set[int] = set()
        """Groups whose reads nobody confirms."""
        self.old_codec: Codec | None = None
        """Servers that know no other codec answer in this one."""
        self.zones: dict[int, str] = {}
        """Node -> label, of those that have one."""
        self.age_ms = 0
        """Of what consistent pulls get."""

    # --- faults

    def kill(self, node: int) -> None:
        with self.lock:
            self.down.add(node)
            for stream in [one for one in self.streams if one.node == node]:
                stream.end(unavailable("Socket closed"))
            for watcher in [one for one in self.watchers if one[0] == node]:
                self.watchers.remove(watcher)
                watcher[1](unavailable("Socket closed"))
            for group, (leader, _) in self.leaders.items():
                if leader == node and group:
                    self._drop_sums(group)

    def restart(self, node: int) -> None:
        with self.lock:
            self.down.discard(node)

    def elect(self, group: int, node: int, *, announce: bool = True, end_streams: bool = True) -> None:
        """Another leader in the next term. Without `end_streams` the old one fell silent and ends nothing."""
        with self.lock:
            _, term = self.leaders[group]
            self.leaders[group] = (node, term + 1)
            self._drop_sums(group)
            if end_streams:
                for stream in [one for one in self.streams if one.hello and one.hello.group == group]:
                    stream.end(self.not_leader(group, hint=False))
            if announce:
                self.announce(group)

    def announce(self, group: int) -> None:
        node, term = self.leaders[group]
        for watched, deliver in list(self.watchers):
            if watched == node:
                deliver(pb.Announcement(group=group, term=term, node=node, address=self.addresses[node]))

    def set_view(self, model: FakeModel) -> None:
        """The view of now takes effect in all groups: sums are dropped, streams end (RULES S8)."""
        model.view += 1
        model.sums.clear()
        for stream in [one for one in self.streams if one.hello and one.hello.model == model.number]:
            stream.end(Refusal(Reason.VIEW_CHANGED, f"view {model.view}", view=model.view))

    def not_leader(self, group: int, hint: bool = True) -> Refusal:
        node, term = self.leaders[group]
        known = {"leader_address": self.addresses[node], "term": term} if hint else {}
        return Refusal(Reason.NOT_LEADER, f"group {group} is led elsewhere", group=group, **known)

    def _drop_sums(self, group: int) -> None:
        for model in self.models.values():
            for block in [one for one in model.sums if model.group_of(one) == group]:
                del model.sums[block]

    # --- push streams

    def take(self, stream: Stream, frame: PushFrame) -> None:
        with self.lock:
            if stream.ended:
                return
            try:
                self._take(stream, frame)
            except Refusal as refusal:
                stream.end(refusal)

    def _take(self, stream: Stream, frame: PushFrame) -> None:
        if frame.hello is not None:
            self._open(stream, frame.hello)
            return
        hello = stream.hello
        assert hello is not None
        model = self.models[hello.model]
        assert model.group_of(frame.block) == hello.group
        self.frames.append((hello.rank, frame.block, frame.step))
        self.payloads.append((frame.block, frame.step, bytes(frame.payload)))
        if len(frame.payload) and crc32c(frame.payload) != frame.crc:
            raise Refusal(Reason.CHECKSUM, "crc")
        if frame.kind is PushKind.INITIAL:
            model.weights[frame.block] = np.frombuffer(bytes(frame.payload), np.float32)
            model.versions[frame.block] = 0
            stream.reply(BlockFrame(block=frame.block, step=0, version=0, status=BlockStatus.STORED))
            return
        version = model.versions[frame.block]
        if frame.step < version:
            self._answer(stream, model, frame, BlockStatus.DUPLICATE)
        elif frame.step == version:
            self._contribute(model, hello.rank, frame)
        else:
            raise Refusal(Reason.FAR_AHEAD, f"block {frame.block} is at {version}, not {frame.step}")

    def _open(self, stream: Stream, hello: Hello) -> None:
        self.hellos.append(hello)
        if self.refuse:
            raise self.refuse.pop(0)
        if self.leaders[hello.group][0] != stream.node:
            raise self.not_leader(hello.group)
        model = self.models[hello.model]
        if stream.method is PushMethod.INITIALIZE:
            if model.open:
                raise Refusal(Reason.ALREADY_OPEN, "open")
            if hello.initialization_epoch != model.init_epoch:
                raise Refusal(Reason.STALE_LEASE, "epoch")
        else:
            if hello.lease_epoch != model.ranks[hello.rank].epoch:
                raise Refusal(Reason.STALE_LEASE, f"rank {hello.rank} has a later lease", rank=hello.rank)
            if hello.view != model.view:
                raise Refusal(Reason.VIEW_CHANGED, f"view {model.view}", view=model.view)
        stream.hello = hello
        stream.reply(BlockFrame(block=0, step=0, version=0, status=BlockStatus.STREAM_OPEN))

    def _contribute(self, model: FakeModel, rank: int, frame: PushFrame) -> None:
        block = frame.block
        open_sum = model.sums.setdefault(block, {})
        open_sum[rank] = frame
        if self.hold or len(open_sum) < len(model.ranks):
            return
        del model.sums[block]
        self.apply(model, block, open_sum)
        for stream in list(self.streams):
            hello = stream.hello
            if (
                hello
                and hello.model == model.number
                and hello.group == model.group_of(block)
                and hello.rank in open_sum
            ):
                if self.swallow_replies:
                    self.swallow_replies -= 1
                    continue
                self._answer(stream, model, open_sum[hello.rank], BlockStatus.APPLIED)

    def apply(self, model: FakeModel, block: int, contributions: dict[int, PushFrame]) -> None:
        weights = model.weights[block]
        total = np.zeros_like(weights)
        for rank in sorted(contributions):
            if contributions[rank].kind is PushKind.GRADIENT:
                frame = contributions[rank]
                total = total + decode(frame.codec, bytes(frame.payload), total.size)
        skip = any(frame.kind is PushKind.SKIP for frame in contributions.values())
        model.before[block] = weights
        nothing = skip or all(frame.kind is PushKind.EMPTY for frame in contributions.values())
        model.weights[block] = weights if nothing else weights - LEARNING_RATE * total / np.float32(len(contributions))
        model.versions[block] += 1
        self.applied.append((block, model.versions[block]))

    def _answer(self, stream: Stream, model: FakeModel, frame: PushFrame, status: BlockStatus) -> None:
        block, step = frame.block, frame.step
        wants = frame.want_weights or (stream.hello is not None and stream.hello.want_weights)
        codec = self.old_codec or (stream.hello.weights_codec if stream.hello is not None else Codec.FP32)
        without = self.without_weights or not wants
        payload = b"" if without else bytes(encode(codec, model.weights[block].astype("<f4")))
        crc = crc32c(payload)
        if self.corrupt_replies:
            self.corrupt_replies -= 1
            crc ^= 1
        version = model.versions[block]
        stream.reply(
            BlockFrame(block=block, step=step, version=version, status=status, codec=codec, crc=crc, payload=payload)
        )

    # --- unary calls

    def call(self, address: str, method: Method, request: Any) -> Any:
        with self.lock:
            node = self.node_at(address)
            self.calls.append((address, method))
            if method is Method.DESCRIBE_CLUSTER:
                return self._describe_cluster(node)
            if self.leaders[0][0] != node:
                raise self.not_leader(0)
            if method is Method.OPEN_SESSION:
                known = self.sessions.setdefault(request.client, (len(self.sessions) + 1, request.secret_digest))
                return pb.OpenSessionResponse(session=known[0])
            if method is Method.DESCRIBE_MODEL:
                return self.describe(self._find(request))
            return self._authenticated(method, request)

    def node_at(self, address: str) -> int:
        node = next(one for one, known in self.addresses.items() if known == address)
        if node in self.down:
            raise unavailable()
        return node

    def _describe_cluster(self, node: int) -> Any:
        members = [pb.GroupMember(replica=one, node=one) for one in self.addresses]
        return pb.ClusterDescription(
            cluster=CLUSTER,
            node=node,
            zone=self.zones.get(node, ""),
            nodes=[pb.NodeDescription(node=one, address=address) for one, address in self.addresses.items()],
            groups=[
                pb.GroupDescription(group=group, members=members, leader_node=leader, term=term)
                for group, (leader, term) in self.leaders.items()
            ],
        )

    def _authenticated(self, method: Method, request: Any) -> Any:
        digest = hashlib.sha256(request.secret).digest()
        if (request.session, digest) not in self.sessions.values():
            raise Refusal(Reason.WRONG_SECRET, "secret")
        if method is Method.RENEW_LEASE:
            return self._renew(request)
        key = (request.session, request.sequence)
        assert request.sequence > 0
        if key not in self.answers:
            try:
                self.answers[key] = self._command(method, request)
            except Refusal as refusal:
                self.answers[key] = refusal
        answer = self.answers[key]
        if isinstance(answer, Refusal):
            raise answer
        return answer

    def _command(self, method: Method, request: Any) -> Any:
        match method:
            case Method.CREATE_MODEL:
                return self._create(request)
            case Method.CLAIM_INITIALIZATION:
                model = self.models[request.model]
                if model.open or model.init_session not in (0, request.session):
                    return pb.ClaimInitializationResponse(open=model.open, holder="another", lease_ends_ms=50)
                model.init_session, model.init_epoch = request.session, model.init_epoch + 1
                return pb.ClaimInitializationResponse(granted=True, epoch=model.init_epoch)
            case Method.OPEN_MODEL:
                model = self.models[request.model]
                if len(model.weights) < model.layout.blocks:
                    raise Refusal(Reason.NOT_OPEN, "blocks are missing", code="FAILED_PRECONDITION")
                model.open = True
                return self.describe(model)
            case Method.CLAIM_RANK:
                return self._claim(request)
            case Method.RELEASE_RANK:
                self.models[request.model].ranks[request.rank].held = False
                return pb.ReleaseRankResponse()
        raise AssertionError(method)

    def _create(self, request: Any) -> Any:
        spec = spec_from_proto(request.spec)
        for model in self.models.values():
            if model.spec.name == spec.name:
                if model.spec != spec:
                    raise Refusal(Reason.SPEC_MISMATCH, f"{spec.name} exists with another spec", expected="ranks 1")
                return self.describe(model)
        layout = Layout(spec)
        groups = len(self.leaders) - 1
        cuts = [layout.blocks * index // groups for index in range(groups + 1)]
        shards = [(index + 1, cuts[index], cuts[index + 1] - cuts[index]) for index in range(groups)]
        ranks = [Rank() for _ in range(spec.ranks)]
        model = FakeModel(len(self.models) + 1, spec, layout, [one for one in shards if one[2]], ranks)
        self.models[model.number] = model
        return self.describe(model)

    def _claim(self, request: Any) -> Any:
        model = self.models[request.model]
        rank = model.ranks[request.rank]
        if rank.held and rank.session != request.session:
            raise Refusal(
                Reason.RANK_TAKEN, "taken", rank=request.rank, holder=f"session {rank.session}", lease_ends_ms=7000
            )
        rank.epoch, rank.held, rank.session = rank.epoch + 1, True, request.session
        self.set_view(model)
        return pb.ClaimRankResponse(
            lease_epoch=rank.epoch,
            view=self._view(model),
            lowest_version=min(model.versions.values()),
            lease_ms=self.lease_ms,
        )

    def _renew(self, request: Any) -> Any:
        model = self.models[request.model]
        if not request.initialization_epoch:
            rank = model.ranks[request.rank]
            if not rank.held or rank.epoch != request.lease_epoch or rank.session != request.session:
                raise Refusal(Reason.STALE_LEASE, "not held under that epoch", epoch=rank.epoch)
        return pb.RenewLeaseResponse(lease_ms=self.lease_ms, view=self._view(model))

    def _find(self, request: Any) -> FakeModel:
        for model in self.models.values():
            if model.number == request.model or model.spec.name == request.name:
                return model
        raise Refusal(Reason.NOT_FOUND, f"no model {request.name!r}")

    def _view(self, model: FakeModel) -> Any:
        return pb.View(number=model.view, first_step=0, lease_epochs=[rank.epoch for rank in model.ranks])

    def describe(self, model: FakeModel) -> Any:
        return pb.ModelDescription(
            model=model.number,
            generation=1,
            spec=spec_to_proto(model.spec),
            shards=[pb.Shard(group=group, first_block=first, blocks=count) for group, first, count in model.shards],
            placement_epoch=1,
            view=self._view(model),
            open=model.open,
            ranks=[
                pb.RankState(rank=number, lease_epoch=rank.epoch, held=rank.held, session=rank.session)
                for number, rank in enumerate(model.ranks)
            ],
        )

    # --- pulls

    def pull(self, address: str, request: Any) -> list[BlockFrame]:
        with self.lock:
            self.pulls.append((self.node_at(address), request))
            consistent = request.linearizable or request.bounded_ms
            too_old = self.no_quorum and 0 < request.bounded_ms < self.age_ms
            if too_old or (request.group in self.no_quorum and request.linearizable):
                raise Refusal(Reason.UNCONFIRMED, f"no leader of group {request.group} confirms it", hint="a majority")
            model = self.models[request.model]
            first, count = next((first, count) for group, first, count in model.shards if group == request.group)
            frames = []
            for block in request.blocks or range(first, first + count):
                version, weights = model.versions[block], model.weights[block]
                if request.WhichOneof("want") == "version":
                    if request.version == version - 1 and block in model.before:
                        version, weights = version - 1, model.before[block]
                    elif request.version < version:
                        raise Refusal(
                            Reason.GONE, f"version {request.version} of block {block} is gone", version=version
                        )
                    elif request.version > version:
                        raise Refusal(Reason.DEADLINE, f"version {request.version} did not come")
                codec = self.old_codec or Codec(request.codec or Codec.FP32)
                known = request.HasField("if_newer_than") and version <= request.if_newer_than
                payload = b"" if known else bytes(encode(codec, weights.astype("<f4")))
                frames.append(
                    BlockFrame(
                        block=block,
                        step=0,
                        version=version,
                        status=BlockStatus.NOT_NEWER if known else BlockStatus.VALUE,
                        codec=codec,
                        crc=crc32c(payload),
                        age_ms=self.age_ms if consistent else 0,
                        payload=payload,
                    )
                )
            return frames

    # --- announcements

    def watch(self, address: str, deliver: Deliver) -> None:
        with self.lock:
            node = self.node_at(address)
            self.watchers.append((node, deliver))
            if zone := self.zones.get(node):
                deliver(pb.Announcement(node=node, address=address, zone=zone))
            for group, (leader, term) in self.leaders.items():
                if leader == node:
                    deliver(pb.Announcement(group=group, term=term, node=node, address=address))

    def push(self, address: str, method: PushMethod, deliver: Deliver) -> Stream:
        with self.lock:
            node = next(one for one, known in self.addresses.items() if known == address)
            stream = Stream(self, node, method, deliver)
            if node in self.down:
                stream.end(unavailable())
            else:
                self.streams.add(stream)
            return stream


class FakeNetwork:
    """`worker.network.Network` over a FakeCluster, for one client."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        self._loop = asyncio.get_running_loop()

    async def call(self, address: str, method: Method, request: Any, timeout_s: float) -> Any:
        await asyncio.sleep(0)
        return self.cluster.call(address, method, request)

    def push(self, address: str, method: PushMethod) -> FakePushStream:
        return FakePushStream(self.cluster, address, method, self._queue())

    async def pull(self, address: str, request: Any, timeout_s: float) -> AsyncGenerator[BlockFrame, None]:
        await asyncio.sleep(0)
        for frame in self.cluster.pull(address, request):
            yield frame

    async def announcements(self, address: str, request: Any) -> AsyncGenerator[Any, None]:
        queue, deliver = self._queue()
        self.cluster.watch(address, deliver)
        while True:
            item = await queue.get()
            if isinstance(item, Refusal):
                raise item
            yield item

    def reachable(self, address: str) -> bool:
        return all(self.cluster.addresses[node] != address for node in self.cluster.down)

    async def close(self) -> None:
        pass

    def _queue(self) -> tuple[asyncio.Queue[Any], Deliver]:
        queue: asyncio.Queue[Any] = asyncio.Queue()

        def deliver(item: Any) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(queue.put_nowait, item)

        return queue, deliver


class FakePushStream:
    def __init__(
        self, cluster: FakeCluster, address: str, method: PushMethod, queue: tuple[asyncio.Queue[Any], Deliver]
    ) -> None:
        self._queue, deliver = queue
        self._stream = cluster.push(address, method, deliver)

    async def send(self, frame: PushFrame) -> None:
        await asyncio.sleep(0)
        if self._stream.ended:
            raise StreamEnded
        self._stream.take(frame)

    async def receive(self) -> BlockFrame | None:
        item = await self._queue.get()
        if isinstance(item, Refusal):
            raise item
        frame: BlockFrame | None = item
        return frame

    def cancel(self) -> None:
        with self._stream.cluster.lock:
            self._stream.ended = True
            self._stream.cluster.streams.discard(self._stream)
