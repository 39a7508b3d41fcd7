"""Three whole nodes on loopback with real logs: elect, replicate, lose a node, catch up; heartbeats beside payload."""

import asyncio
from pathlib import Path

import pytest

from consensus.core.interface import AppendRequest, Entry, EntryKind, NodeId
from consensus.core.raft import RaftConfig
from consensus.runtime import RuntimeOptions
from consensus.runtime.interface import Committed
from consensus.storage.checksum import crc32c
from consensus.transport.interface import Channel, Envelope
from consensus.transport.sockets.receiving import Connection
from tests.unit.transport.full_nodes import FullCluster
from tests.unit.transport.network import until


def test_three_nodes_elect_replicate_and_survive_a_stopped_leader(tmp_path: Path) -> None:
    async def main() -> None:
        async with FullCluster(tmp_path) as cluster:
            for number in range(20):
                assert isinstance(await cluster.propose(b"%d" % number), Committed)
            await until(lambda: cluster.agree(20))
            loop = asyncio.get_running_loop()
            took_s = []
            # The machine may be busy with something else at the first try or two.
            while not took_s or (took_s[-1] >= 2 and len(took_s) < 3):
                leader = (await cluster.leader()).node
                await cluster.stop(leader)
                began = loop.time()
                assert isinstance(await cluster.propose(b"after"), Committed)
                took_s.append(loop.time() - began)
                await cluster.start(leader)
                await until(lambda: cluster.agree(20 + len(took_s)))
            assert took_s[-1] < 2, took_s

    asyncio.run(main())


def test_all_stop_and_start_on_the_same_folders(tmp_path: Path) -> None:
    async def main() -> None:
        async with FullCluster(tmp_path) as cluster:
            for number in range(10):
                await cluster.propose(b"%d" % number)
            for node in list(cluster.nodes):
                await cluster.stop(node)
            await asyncio.gather(*(cluster.start(node) for node in cluster.members))
            await until(lambda: cluster.agree(10))
            assert isinstance(await cluster.propose(b"on"), Committed)

    asyncio.run(main())


def test_a_node_that_fell_behind_catches_up_by_snapshot(tmp_path: Path) -> None:
    options = RuntimeOptions(snapshot_log_bytes_min=200_000, keep_bytes_max=0)

    async def main() -> None:
        async with FullCluster(tmp_path, options) as cluster:
            await cluster.propose(b"first")
            leader = await cluster.leader()
            away = next(node for node in cluster.nodes if node != leader.node)
            await cluster.stop(away)
            for number in range(60):
                await cluster.propose(b"%d" % number + bytes(50_000))
            status = (await cluster.leader()).handle.status().core
            assert status is not None
            assert status.first_index > 2
            started = await cluster.start(away)
            await until(lambda: cluster.agree(61))
            assert started.listener.of("restored")
            await cluster.propose(b"on")
            await until(lambda: cluster.agree(62))

    asyncio.run(main())


class Held:
    """The bulk connections to some nodes are not read, from `hold` to `release`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._nodes: set[NodeId] = set()
        self._waiting: list[Connection] = []
        real = Connection._receive

        def receive(connection: Connection) -> None:
            hello = connection._hello
            if hello is not None and hello.channel is Channel.BULK and hello.to_node in self._nodes:
                connection._read(False)
                self._waiting.append(connection)
            else:
                real(connection)

        monkeypatch.setattr(Connection, "_receive", receive)

    def hold(self, *nodes: NodeId) -> None:
        self._nodes |= set(nodes)

    def release(self) -> None:
        self._nodes.clear()
        for connection in self._waiting:
            if not connection._closed:
                connection._read(True)


def test_a_held_bulk_connection_starts_no_election(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HAZARDS 30: a follower stops reading payload; heartbeats and their answers go on."""
    held = Held(monkeypatch)
    # All three nodes share one thread with the payload: a timeout that it does not reach on a busy machine either.
    raft = RaftConfig(election_timeout_ms=900)
    latest_ms = raft.election_timeout_ms + raft.election_spread_ms + 2 * raft.place_delay_ms
    beats = latest_ms // raft.heartbeat_ms + 1

    async def main() -> None:
        async with FullCluster(tmp_path, RuntimeOptions(raft=raft)) as cluster:
            leader = await cluster.leader()
            term = leader.handle.leader()[2]
            follower = next(node for node in cluster.nodes.values() if node is not leader)
            held.hold(follower.node)
            payload = bytes(1 << 20)
            for _ in range(12):
                leader.handle.propose(payload, crc32c(payload), lambda _: None)
            follower.listener.own_note = b"alive"
            # So many heartbeats take longer than the longest election timeout.
            await until(lambda: leader.listener.notes.count((follower.node, b"alive")) >= beats, seconds=20)
            assert leader.handle.ready_to_serve
            assert {node.handle.leader()[2] for node in cluster.nodes.values()} == {term}
            assert follower.listener.of("leader")[-1] == ("leader", leader.node, term)
            held.release()
            await until(lambda: cluster.agree(12))

    asyncio.run(main())


def stuffing(sender: NodeId, to: NodeId) -> tuple[Channel, list[Envelope]]:
    """Payload of a group that nobody has: it fills the connection, and is dropped when it is read."""
    payload = bytes(1 << 20)
    entry = Entry(1, 1, EntryKind.NORMAL, payload, crc32c(payload))
    request = AppendRequest(
        sender=sender, to=to, term=1, incarnation=1, previous_index=0, previous_term=0, commit=0, entries=(entry,)
    )
    return Channel.BULK, [Envelope(99, request)] * 12


def test_votes_go_on_while_bulk_connections_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HAZARDS 30: nobody reads payload, the leader goes, and the others still elect one of them."""
    held = Held(monkeypatch)

    async def main() -> None:
        async with FullCluster(tmp_path) as cluster:
            leader = await cluster.leader()
            term = leader.handle.leader()[2]
            others = [node for node in cluster.nodes.values() if node is not leader]
            held.hold(*(node.node for node in others))
            payload = bytes(1 << 20)
            for node in others:
                # Fill the ways between the two that stay.
                to = next(other for other in others if other is not node)
                node.runtime._transport.send(to.node, *stuffing(node.node, to.node))
            for _ in range(4):
                leader.handle.propose(payload, crc32c(payload), lambda _: None)
            await cluster.stop(leader.node)
            await until(lambda: max(node.handle.leader()[2] for node in others) > term, seconds=20)
            await until(lambda: any(node.handle.status().core.role.name == "LEADER" for node in others), seconds=20)
            held.release()
            await cluster.leader()

    asyncio.run(main())
