"""Three server processes, spoken to with nothing but the generated stubs: what is promised on the wire holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from paramserver.lab import status
from paramserver.lab.cluster import Cluster, ServerOptions
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.v1 import paramserver_pb2_grpc as services
from tests.process.raw_client import BLOCK_ELEMENTS, Client, block_of, blocks_of, detail, spec

BLOCKS = 6
LEASE_MS = 2000
RATE = np.float32(0.5)
SMALL = ServerOptions(flags=("--segment-bytes", str(1 << 20), "--lease-ms", str(LEASE_MS)))
"""Small segments: nine of 64 MiB would be zeroed at each start."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(3, folder=tmp_path_factory.mktemp("cluster"), options=SMALL) as running:
        running.await_leaders(range(4))
        yield running


@pytest.fixture
def anna(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster, "anna") as client:
        yield client.open_session()


@pytest.fixture
def bert(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster, "bert") as client:
        yield client.open_session()


def numbers(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(BLOCKS * BLOCK_ELEMENTS, dtype=np.float32)


class Ranks:
    """Two ranks of one model, with a stream to each group."""

    def __init__(self, model: pb.ModelDescription, clients: list[Client]) -> None:
        self.model = model
        self.claims = [client.claim_rank(model, rank) for rank, client in enumerate(clients)]
        # The view of the last claim holds both.
        self.claims[0].view.CopyFrom(self.claims[1].view)
        self.streams = [
            {shard.group: client.ranked(model, shard.group, rank, self.claims[rank]) for shard in model.shards}
            for rank, client in enumerate(clients)
        ]

    def step(self, step: int, gradients: list[np.ndarray]) -> list[np.ndarray]:
        """Both push all blocks; the new weights as each saw them."""
        for rank, gradient in enumerate(gradients):
            for group, block in blocks_of(self.model):
                self.streams[rank][group].push(block, step, block_of(gradient, block))
        seen = []
        for streams in self.streams:
            weights = np.empty(BLOCKS * BLOCK_ELEMENTS, np.float32)
            for group, _ in blocks_of(self.model):
                frame = streams[group].receive()
                assert (frame.header.status, frame.header.version) == (pb.APPLIED, step + 1)
                block_of(weights, frame.header.block)[:] = np.frombuffer(frame.payload, "<f4")
            seen.append(weights)
        return seen

    def close(self) -> None:
        for streams in self.streams:
            for stream in streams.values():
                stream.cancel()


def expected(weights: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    return weights - RATE * ((gradients[0] + gradients[1]) / np.float32(2))


def test_a_step_of_two_ranks_from_create_to_pull(cluster: Cluster, anna: Client, bert: Client) -> None:
    model = anna.create(spec("step"))
    assert bert.create(spec("step")).model == model.model
    weights = numbers(0)
    opened = anna.initialise(model, weights)
    assert opened.open
    ranks = Ranks(opened, [anna, bert])
    assert [claim.lowest_version for claim in ranks.claims] == [0, 0]
    for step in range(3):
        gradients = [numbers(10 + 2 * step), numbers(11 + 2 * step)]
        weights = expected(weights, gradients)
        for seen in ranks.step(step, gradients):
            np.testing.assert_array_equal(seen, weights)
    for node in cluster.addresses:  # any replica serves exactly this version, and a minimum too
        np.testing.assert_array_equal(anna.pull(opened, node=node, version=3), weights)
        np.testing.assert_array_equal(anna.pull(opened, node=node, min_version=1), weights)
    ranks.close()


def test_a_step_sent_again_answers_duplicate_and_changes_nothing(anna: Client, bert: Client) -> None:
    model = anna.create(spec("again"))
    weights = numbers(1)
    opened = anna.initialise(model, weights)
    ranks = Ranks(opened, [anna, bert])
    gradients = [numbers(2), numbers(3)]
    after, _ = ranks.step(0, gradients)
    for group, block in blocks_of(opened):
        ranks.streams[0][group].push(block, 0, block_of(gradients[0], block))
        reply = ranks.streams[0][group].receive()
        assert (reply.header.status, reply.header.version) == (pb.DUPLICATE, 1)
        np.testing.assert_array_equal(np.frombuffer(reply.payload, "<f4"), block_of(after, block))
    ranks.close()


def test_a_rank_taken_back_ends_the_streams_of_the_old_view(anna: Client, bert: Client) -> None:
    model = anna.create(spec("view"))
    opened = anna.initialise(model, numbers(1))
    ranks = Ranks(opened, [anna, bert])
    claim = bert.claim_rank(opened, 1)
    assert (claim.lease_epoch, claim.view.number) == (2, ranks.claims[1].view.number + 1)
    for streams in ranks.streams:
        for stream in streams.values():
            with pytest.raises(grpc.RpcError) as caught:
                stream.receive()
            assert detail(caught.value).reason == "VIEW_CHANGED"
            assert detail(caught.value).view == claim.view.number
    ranks.close()


def test_a_rank_held_by_another_names_holder_and_end_of_lease(anna: Client, bert: Client) -> None:
    model = anna.create(spec("held"))
    anna.claim_rank(model, 0)
    with pytest.raises(grpc.RpcError) as caught:
        bert.claim_rank(model, 0)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    told = detail(caught.value)
    assert told.reason == "RANK_TAKEN"
    assert "anna" in told.holder
    assert 0 < told.lease_ends_ms <= LEASE_MS


def test_a_lease_that_is_not_renewed_ends(cluster: Cluster, anna: Client, bert: Client) -> None:
    model = anna.create(spec("expires"))
    anna.claim_rank(model, 0)

    def taken() -> pb.ClaimRankResponse | None:
        try:
            return bert.claim_rank(model, 0)
        except grpc.RpcError:
            return None

    assert cluster.wait_for(taken, "the end of the lease", 10).lease_epoch == 2


def test_a_renewed_lease_goes_on(cluster: Cluster, anna: Client) -> None:
    model = anna.create(spec("renews"))
    claim = anna.claim_rank(model, 0)
    fields = {"session": anna.session, "secret": anna.secret, "model": model.model, "rank": 0}
    response = anna.call("RenewLease", pb.RenewLeaseRequest(**fields, lease_epoch=claim.lease_epoch))
    assert response.lease_ms == LEASE_MS
    with pytest.raises(grpc.RpcError) as caught:
        anna.call("RenewLease", pb.RenewLeaseRequest(**fields, lease_epoch=claim.lease_epoch + 1))
    assert detail(caught.value).reason == "STALE_LEASE"


def test_every_leader_is_announced(cluster: Cluster, anna: Client) -> None:
    leaders = cluster.await_leaders(range(4))
    for node, address in cluster.addresses.items():
        stub = services.WatchStub(anna.channel(address))
        stream = stub.Announcements(pb.AnnouncementsRequest(cluster=anna.cluster_id, client="test"), timeout=5)
        own = {group for group, leader in leaders.items() if leader == node}
        announced = (one for one in stream if not one.directory)
        heard = [next(announced) for _ in own]
        assert {one.group for one in heard} == own
        assert {(one.node, one.address) for one in heard} <= {(node, address)}
        stream.cancel()


def test_followers_send_to_the_leader(cluster: Cluster, anna: Client) -> None:
    model = anna.create(spec("redirect"))
    group = model.shards[0].group
    leader = cluster.leader_of(group)
    follower = next(node for node in cluster.addresses if node != leader)
    stream = anna.stream(model, group, node=follower, rank=0, lease_epoch=1, view=2)
    with pytest.raises(grpc.RpcError) as caught:
        stream.receive()
    told = detail(caught.value)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert (told.reason, told.group, told.leader_address) == ("NOT_LEADER", group, cluster.addresses[leader])
    stream.cancel()


def test_a_wiped_node_is_refused_under_its_old_number(tmp_path: Path) -> None:
    with Cluster(3, folder=tmp_path, options=SMALL) as cluster:
        cluster.kill(2)
        shutil.rmtree(cluster.data_folder(2))
        cluster.servers[2].start()
        server = cluster.servers[2]
        command = f"paramserver node replace 2 2={cluster.addresses[2]}"
        cluster.wait_for(lambda: f"this admits it: {command}" in server.output(), "the command that repairs it", 10)
        assert "it was wiped or replaced" in server.output()
        assert "ready" not in server.output()
        assert "Traceback" not in server.output()
        assert server.terminate() == 0
        answers = status.named(status.ask_all(list(cluster.addresses.values())))
        assert [one.node for one in answers] == [1, 2, 3], "those that answer name the one that does not"
        # Written down: nothing in the folder can make it vote again, not even the next start.
        server.start()
        cluster.wait_for(lambda: command in server.output(), "the same after a restart", 10)
        assert "ready" not in server.output()


def test_a_node_whose_folder_was_put_back_to_an_older_copy_ends_and_names_the_repair(tmp_path: Path) -> None:
    """The copy is of the life before the last one: what the node acknowledged in that is not in it."""
    with Cluster(3, folder=tmp_path, options=SMALL) as cluster:
        server, data = cluster.servers[2], cluster.data_folder(2)
        cluster.kill(2)
        shutil.copytree(data, tmp_path / "copy")
        cluster.start_server(2)
        cluster.await_leaders(range(4))
        cluster.kill(2)
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "copy", data)
        server.start()
        assert server.wait(20) == 2
        assert f"paramserver node replace 2 2={cluster.addresses[2]}" in server.output()
        assert "put back to an older copy" in server.output()
        assert "Traceback" not in server.output()


def test_a_new_folder_waits_for_all_members_and_can_be_stopped_meanwhile(tmp_path: Path) -> None:
    cluster = Cluster(3, folder=tmp_path, options=SMALL)
    try:
        server = cluster.servers[1]
        server.start()
        cluster.wait_for(lambda: "waiting for node 2" in server.output(), "a word about who is missing")
        assert server.terminate() == 0
        assert "ready" not in server.output()
    finally:
        cluster.close()


def digests(cluster: Cluster) -> dict[tuple[int, int, int], set[tuple[int, str]]]:
    """(group, model, block) -> the (version, digest) pairs of its replicas."""
    found: dict[tuple[int, int, int], set[tuple[int, str]]] = {}
    for node in status.reached(cluster.statuses(blocks=True)):
        for group in node.groups:
            for block in group.blocks:
                key = (group.group, block.model, block.block)
                found.setdefault(key, set()).add((block.version, block.digest))
    return found


def settled(cluster: Cluster) -> dict[tuple[int, int, int], tuple[int, str]]:
    """One (version, digest) a block, once all replicas agree."""

    def agreed() -> dict[tuple[int, int, int], tuple[int, str]] | None:
        found = digests(cluster)
        if not found or any(len(pairs) != 1 for pairs in found.values()):
            return None
        return {key: next(iter(pairs)) for key, pairs in found.items()}

    return cluster.wait_for(agreed, "equal digests on all replicas")


def test_stopped_and_killed_servers_come_back_with_the_same_state(tmp_path: Path) -> None:
    with Cluster(3, folder=tmp_path, options=SMALL) as cluster:
        with Client(cluster, "anna") as anna, Client(cluster, "bert") as bert:
            anna.open_session()
            bert.open_session()
            opened = anna.initialise(anna.create(spec("kept")), numbers(0))
            ranks = Ranks(opened, [anna, bert])
            weights, _ = ranks.step(0, [numbers(1), numbers(2)])
            ranks.close()
        before = settled(cluster)
        assert len(before) == BLOCKS

        assert cluster.terminate_all() == {1: 0, 2: 0, 3: 0}
        cluster.start()
        cluster.await_leaders(range(4))
        assert settled(cluster) == before

        for node in cluster.addresses:
            cluster.kill(node)
        cluster.start()
        cluster.await_leaders(range(4))
        assert settled(cluster) == before
        with Client(cluster, "anna") as again, Client(cluster, "bert") as other:
            again.open_session()
            other.open_session()
            model = again.call("DescribeModel", pb.DescribeModelRequest(name="kept"))
            assert (model.model, model.open) == (opened.model, True)
            for node in cluster.addresses:
                np.testing.assert_array_equal(again.pull(model, node=node, version=1), weights)
