"""Orders that make and delete replicas at a node: one at a time for a group, and begun means ended, whoever waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from consensus.core.interface import Configuration, Home
from consensus.runtime.interface import Refused
from consensus.storage.errors import StorageFull
from paramserver.catalogue.bootstrap import layout
from paramserver.catalogue.state import Node, NodeState
from paramserver.hosting import Hosting
from paramserver.rpc.groups import Groups
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.errors import Refusal

MEMBERS = {1: "h:1", 2: "h:2", 3: "h:3"}
NEW = 70_000
LEARNER = Configuration(voters=(1, 2, 3), learners=(), homes=(Home(NEW, 4, b"u" * 16, "h:4"),))


@dataclass
class SlowRuntime:
    """Its outcomes are given by the test."""

    creations: dict[int, Any] = field(default_factory=dict)
    groups: dict[int, Any] = field(default_factory=dict)
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    waiting: list[Callable[[Any], None]] = field(default_factory=list)
    avoided: tuple[int, ...] = ()

    def create_replica(self, *, group: int, replica: int, done: Callable[[Any], None], **_: Any) -> None:
        self.asked.append(("create", group, replica))
        self.groups[group] = SimpleNamespace(problem="")
        self.waiting.append(done)

    def delete_replica(self, group: int, replica: int, done: Callable[[Any], None]) -> None:
        self.asked.append(("delete", group, replica))
        self.waiting.append(done)

    def avoid(self, nodes: Any) -> None:
        self.avoided = tuple(nodes)


class NoPeers:
    async def admit(self, node: int, address: str, uuid: bytes) -> None: ...

    async def dismiss(self, node: int) -> None: ...


@dataclass
class Joined:
    uuid: bytes = b"u" * 16
    joined: bool = True
    activated: bool = False

    def activate(self) -> None:
        self.activated = True


@dataclass
class Bench:
    runtime: SlowRuntime = field(default_factory=SlowRuntime)
    rooms: list[tuple[int, int]] = field(default_factory=list)
    vacated: list[int] = field(default_factory=list)
    save: Callable[[pb.Directory], None] = lambda told: None

    def __post_init__(self) -> None:
        self.groups = Groups(node=4, addresses={**MEMBERS, 4: "h:4"}, layout=layout(MEMBERS))
        runtime: Any = self.runtime
        self.hosting = Hosting(
            groups=self.groups,
            runtime=runtime,
            peers=NoPeers(),
            folder=Joined(),
            room=self._room,
            save=self.save,
            vacated=self.vacated.append,
            changed=lambda version: None,
        )

    def _room(self, group: int, replica: int) -> Any:
        self.rooms.append((group, replica))
        return object(), object()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_order_that_was_given_up_is_carried_out_once_all_the_same() -> None:
    """A requester that goes away must not leave a replica that runs and that nobody knows of."""

    async def scenario() -> None:
        bench = Bench()
        bench.hosting.begin()
        first = asyncio.ensure_future(bench.hosting.create(1, NEW, LEARNER))
        await turns()
        first.cancel()
        again = asyncio.ensure_future(bench.hosting.create(1, NEW, LEARNER))
        await turns()
        assert bench.runtime.asked == [("create", 1, NEW)]
        assert bench.rooms == [(1, NEW)]
        bench.runtime.waiting.pop()("made")
        await again
        assert bench.groups.hosted[1].replica == NEW
        assert bench.vacated == []
        await bench.hosting.create(1, NEW, LEARNER)  # once more: it is there
        assert len(bench.runtime.asked) == 1

    asyncio.run(scenario())


def test_another_order_for_the_group_comes_later() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.hosting.begin()
        first = asyncio.ensure_future(bench.hosting.create(1, NEW, LEARNER))
        await turns()
        with pytest.raises(Refusal, match="another replica") as caught:
            await bench.hosting.create(1, NEW + 1, LEARNER)
        assert caught.value.retryable
        with pytest.raises(Refusal, match="another replica"):
            await bench.hosting.delete(1, NEW)
        bench.runtime.waiting.pop()(Refused(0, 0, busy=True, reason="not now"))
        with pytest.raises(Refusal, match="not now"):
            await first
        assert bench.vacated == [1]
        assert bench.groups.hosted == {}

    asyncio.run(scenario())


def test_deletion_that_was_given_up_leaves_an_empty_room() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.hosting.begin()
        made = asyncio.ensure_future(bench.hosting.create(1, NEW, LEARNER))
        await turns()
        bench.runtime.waiting.pop()("made")
        await made
        deletion = asyncio.ensure_future(bench.hosting.delete(1, NEW))
        await turns()
        deletion.cancel()
        await turns()
        bench.runtime.waiting.pop()("deleted")
        await turns()
        assert bench.vacated == [1]
        assert bench.groups.hosted == {}

    asyncio.run(scenario())


def test_order_to_a_node_that_starts_comes_later() -> None:
    async def scenario() -> None:
        bench = Bench()
        with pytest.raises(Refusal, match="node 4 is starting") as caught:
            await bench.hosting.create(1, NEW, LEARNER)
        assert caught.value.retryable

    asyncio.run(scenario())


def nodes(*states: tuple[int, NodeState]) -> tuple[Node, ...]:
    return tuple(Node(node, f"h:{node}", b"u" * 16 if node == 4 else bytes(16), state) for node, state in states)


def test_directory_says_who_is_to_lead_nothing() -> None:
    async def scenario() -> None:
        bench = Bench()
        states = (
            (1, NodeState.ACTIVE),
            (2, NodeState.NO_LEADERS),
            (3, NodeState.NO_LEADERS),
            (4, NodeState.ACTIVE),
        )
        await bench.hosting.directory(2, nodes(*states), {})
        assert bench.runtime.avoided == (2, 3)

    asyncio.run(scenario())


def test_node_remembers_that_it_was_removed() -> None:
    async def scenario() -> None:
        bench = Bench()
        node = pb.NodeDescription(node=4, address="h:4", node_uuid=b"u" * 16, state=pb.NODE_REMOVED)
        await bench.hosting.remember(pb.Directory(version=3, nodes=[node]))
        assert bench.hosting.removed

    asyncio.run(scenario())


def test_a_full_disk_does_not_keep_a_node_from_hearing_what_group_0_tells(caplog: pytest.LogCaptureFixture) -> None:
    """The order to lead nothing is the way out of a full disk."""

    def no_space(told: pb.Directory) -> None:
        raise StorageFull("no space for data/directory")

    async def scenario() -> None:
        bench = Bench(save=no_space)
        bench.hosting.begin()
        nodes = tuple(Node(node, f"h:{node}", b"u" * 16) for node in (1, 2, 3))
        me = Node(4, "h:4", b"u" * 16, NodeState.DRAINING)
        await bench.hosting.directory(7, (*nodes, me), {})
        assert bench.groups.directory == 7
        assert bench.runtime.avoided == (4,)

    asyncio.run(scenario())
    assert "no space for data/directory" in caplog.text
    assert "Traceback" not in caplog.text
