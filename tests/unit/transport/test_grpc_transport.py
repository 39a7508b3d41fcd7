"""The transport between nodes on loopback: delivery, order, closed connections, control apart from bulk,
introductions."""

import asyncio
from collections.abc import Sequence

import grpc
import grpc.aio
import pytest
from crc32c import crc32c

from consensus.core.interface import AppendRequest, Entry, EntryKind, Heartbeat, Payload
from consensus.storage.errors import StorageFailed
from consensus.transport.codec import encode
from consensus.transport.errors import FolderOutdated, IntroductionRefused
from consensus.transport.grpc.introduction import PROTOCOL
from consensus.transport.grpc.service import SERVICE
from consensus.transport.interface import Channel, Envelope
from consensus.transport.sockets import sending
from consensus.transport.sockets.receiving import Connection, FrameListener
from consensus.transport.sockets.wire import Hello
from consensus.v1 import consensus_pb2 as pb
from tests.unit.transport.network import CLUSTER, End, Folder, addresses, ends, until


def beat(round_: int, to: int = 2) -> Envelope:
    return Envelope(1, Heartbeat(sender=1, to=to, term=1, incarnation=1, commit=0, round=round_))


PAYLOAD = bytes(1 << 20)
PAYLOAD_CRC = crc32c(PAYLOAD)


def append(index: int) -> Envelope:
    entry = Entry(1, index, EntryKind.NORMAL, PAYLOAD, PAYLOAD_CRC)
    return Envelope(
        1,
        AppendRequest(
            sender=1,
            to=2,
            term=1,
            incarnation=1,
            previous_index=index - 1,
            previous_term=1,
            commit=0,
            entries=(entry,),
        ),
    )


def test_messages_arrive_in_order_on_both_channels() -> None:
    async def main() -> None:
        async with ends(2) as (one, two):
            for number in range(500):
                one.transport.send(2, Channel.CONTROL, [beat(number)])
            for number in range(1, 6):
                one.transport.send(2, Channel.BULK, [append(number)])
            await until(lambda: len(two.inbox.envelopes) == 505)
            assert two.inbox.rounds() == list(range(500))
            entries = [e.message for _, e in two.inbox.envelopes if isinstance(e.message, AppendRequest)]
            assert [message.entries[0].index for message in entries] == [1, 2, 3, 4, 5]
            assert entries[0].entries[0].payload == PAYLOAD
            assert {node for node, _ in two.inbox.envelopes} == {1}

    asyncio.run(main())


def test_what_is_queued_at_once_shares_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[int] = []
    monkeypatch.setattr(
        "consensus.transport.sockets.sending.encode",
        lambda envelopes: frames.append(len(envelopes)) or encode(envelopes),
    )

    async def main() -> None:
        async with ends(2) as (one, two):
            frames.clear()
            for number in range(200):
                one.transport.send(2, Channel.CONTROL, [beat(number)])
            await until(lambda: len(two.inbox.envelopes) == 200)
            assert frames == [200]

    asyncio.run(main())


def test_nothing_is_sent_to_strangers_and_nothing_raises_for_peers_that_are_away() -> None:
    async def main() -> None:
        members = addresses(2)
        one = End(Folder(1), members)
        await one.start()
        try:
            one.transport.send(2, Channel.CONTROL, [beat(1)])
            one.transport.send(9, Channel.CONTROL, [beat(1)])
            assert one.transport.dropped["peer_not_connected"] == 1
            assert one.transport.dropped["no_such_peer"] == 1
        finally:
            await one.stop()

    asyncio.run(main())


# --- connections ----------------------------------------------------------------------------------------------------


def test_a_peer_that_goes_is_noticed_at_once_and_its_return_soon() -> None:
    async def main() -> None:
        async with ends(2) as (one, two):
            await until(lambda: one.inbox.connections == [(2, False)])
            loop = asyncio.get_running_loop()
            began = loop.time()
            await two.abort()
            await until(lambda: one.inbox.connections[-1] == (2, True))
            assert loop.time() - began < 1
            again = End(two.folder, two.members, incarnation=2)
            await again.start()
            try:
                await until(lambda: one.inbox.connections == [(2, False), (2, True), (2, False)])
                one.transport.send(2, Channel.CONTROL, [beat(7)])
                await until(lambda: again.inbox.rounds() == [7])
            finally:
                await again.stop()

    asyncio.run(main())


def test_a_new_life_of_a_peer_is_told_as_a_break() -> None:
    async def main() -> None:
        async with ends(2) as (one, _):
            one.transport.incoming(2, incarnation=5, opened=True)
            assert one.inbox.connections == [(2, False), (2, True), (2, False)]
            one.transport.incoming(2, incarnation=1, opened=False)
            assert one.inbox.connections == [(2, False), (2, True), (2, False)]

    asyncio.run(main())


def test_heartbeats_do_not_wait_behind_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    """HAZARDS 30: the peer stops reading the bulk connection; what is control arrives all the same."""
    real = Connection._receive

    def receive(connection: Connection) -> None:
        if connection._hello is not None and connection._hello.channel is Channel.BULK:
            connection._read(False)
        else:
            real(connection)

    monkeypatch.setattr(Connection, "_receive", receive)

    async def main() -> None:
        async with ends(2) as (one, two):
            for number in range(1, 100):
                one.transport.send(2, Channel.BULK, [append(number)])
            for number in range(50):
                one.transport.send(2, Channel.CONTROL, [beat(number)])
            await until(lambda: two.inbox.rounds() == list(range(50)), seconds=2)
            assert one.transport.dropped["send_queue_full"] > 0
            assert one.inbox.connections == [(2, False)]

    asyncio.run(main())


def test_a_broken_bulk_connection_comes_back_without_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    real = FrameListener.known
    broken: list[int] = []

    def once(self: FrameListener, hello: Hello, connection: Connection) -> None:
        real(self, hello, connection)
        if hello.channel is Channel.BULK and not broken:
            broken.append(1)
            connection.close()

    monkeypatch.setattr(FrameListener, "known", once)

    async def main() -> None:
        async with ends(2) as (one, two):
            await until(lambda: one.transport.dropped["bulk_broken"] + two.transport.dropped["bulk_broken"] > 0)
            one.transport.send(2, Channel.BULK, [append(1)])
            await until(lambda: one.transport.dropped["connection_lost"] + len(two.inbox.envelopes) == 1)
            one.transport.send(2, Channel.BULK, [append(2)])
            await until(lambda: len(two.inbox.envelopes) >= 1)
            assert one.inbox.connections == [(2, False)]

    asyncio.run(main())


def test_a_bulk_connection_that_a_defect_ends_comes_back_and_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nobody expected ended the link for good, without a word."""
    real, calls = sending.encode, []

    def broken(envelopes: Sequence[Envelope]) -> tuple[bytes, list[Payload]]:
        if any(isinstance(envelope.message, AppendRequest) for envelope in envelopes):
            calls.append(1)
            if len(calls) < 3:
                raise RuntimeError("a defect")
        return real(envelopes)

    monkeypatch.setattr(sending, "encode", broken)

    async def main() -> None:
        async with ends(2) as (one, two):
            for number in range(1, 4):
                await until(lambda: one.transport.connected == {2})
                one.transport.send(2, Channel.BULK, [append(number)])
                await until(lambda number=number: len(calls) == number)  # type: ignore[misc]
            await until(lambda: len(two.inbox.envelopes) == 1)
            assert one.transport.dropped["link_failed"] == 2
            assert one.inbox.connections == [(2, False)]

    asyncio.run(main())
    told = [record for record in caplog.records if "RuntimeError: a defect" in record.getMessage()]
    assert [record.getMessage() for record in told] == ["the bulk link to node 2: RuntimeError: a defect"]
    assert told[0].exc_info is not None


# --- introductions (RULES I2) ---------------------------------------------------------------------------------------


def test_a_new_folder_waits_for_every_member_and_says_for_whom() -> None:
    async def main() -> None:
        members = addresses(3)
        started = [End(Folder(node), members) for node in (1, 2)]
        waiting: list[list[int]] = []
        for end in started:
            await end.start()
        introduced = [asyncio.create_task(end.transport.introduced(waiting.append)) for end in started]
        try:
            await until(lambda: [3] in waiting)
            assert not any(task.done() for task in introduced)
            assert not started[0].folder.activated
            third = End(Folder(3), members)
            started.append(third)
            await third.start()
            introduced.append(asyncio.create_task(third.transport.introduced()))
            await asyncio.wait_for(asyncio.gather(*introduced), 5)
            assert all(end.folder.activated for end in started)
            assert third.folder.peers == {1: bytes([1]) * 16, 2: bytes([2]) * 16}
        finally:
            for task in introduced:
                task.cancel()
            for end in started:
                await end.stop()

    asyncio.run(main())


def test_peers_of_another_durability_are_told_of_until_they_have_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """They were neither refused nor told of; a cluster is changed from one to the other node by node."""

    async def main() -> None:
        members = addresses(2)
        one = End(Folder(1), members, durability="fsync")
        two = End(Folder(2), members, durability="replicated")
        await one.start()
        try:
            await two.start()
            await until(lambda: one.transport.connected == {2} and two.transport.connected == {1})
            assert one.transport.introductions.differing == {2: "replicated"}
            assert two.transport.introductions.differing == {1: "fsync"}
            await two.stop()
            again = End(two.folder, members, incarnation=2, durability="fsync")
            await again.start()
            try:
                await until(lambda: one.transport.connected == {2} and again.transport.connected == {1})
                assert one.transport.introductions.differing == again.transport.introductions.differing == {}
            finally:
                await again.stop()
        finally:
            await one.stop()

    asyncio.run(main())
    told = sorted(record.getMessage().partition(":")[0] for record in caplog.records if record.levelname == "WARNING")
    assert told == [
        "node 1 runs with --durability fsync, node 2 with replicated",
        "node 2 runs with --durability replicated, node 1 with fsync",
    ]


def test_a_folder_that_was_confirmed_before_does_not_wait() -> None:
    async def main() -> None:
        one = End(Folder(1, activated=True), addresses(3))
        await asyncio.wait_for(one.transport.introduced(), 1)
        await one.transport.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("stranger", "kernel", "words"),
    [
        (Folder(2, uuid=b"w" * 16), b"", "wiped or replaced"),
        (Folder(2, cluster=b"another cluster!"), b"", "member list, token and number of groups"),
        (Folder(2), b"other bits", "computes other bits"),
        (Folder(2, uuid=bytes([1]) * 16), b"", "copy of this node's folder"),
    ],
    ids=["wiped", "another cluster", "other arithmetic", "copied"],
)
def test_strangers_are_refused_with_the_repair(stranger: Folder, kernel: bytes, words: str) -> None:
    async def main() -> None:
        members = addresses(2)
        folder = Folder(1, activated=True)
        if words == "wiped or replaced":
            folder.peers[2] = bytes([2]) * 16
        one = End(folder, members, kernel_answers=b"these bits")
        two = End(stranger, members, kernel_answers=kernel or b"these bits")
        await one.start()
        await two.start()
        try:
            with pytest.raises(IntroductionRefused) as caught:
                await asyncio.wait_for(two.transport.introduced(), 5)
            assert words in str(caught.value)
            assert "\n" not in str(caught.value)
            assert not stranger.activated
            assert one.inbox.connections == []
            assert one.transport.dropped["introduction_refused"] > 0
        finally:
            await one.stop()
            await two.stop()

    asyncio.run(main())


# --- lives of a folder ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [4, 5], ids=["an older incarnation", "the same one in another process"])
def test_a_folder_that_was_put_back_is_refused_with_the_repair(shown: int) -> None:
    """Each start raises the incarnation durably before it speaks, so one that is not above the last is no restart; the
    memory outlives those that hold it."""

    async def main() -> None:
        members = addresses(2)
        one, two = End(Folder(1, activated=True), members), End(Folder(2, activated=True), members, incarnation=5)
        for end in (one, two):
            await end.start()
        await until(lambda: one.transport.connected == {2} and 2 in one.folder.lives)
        for end in (one, two):
            await end.stop()
        one = End(one.folder, members, incarnation=2)
        old = End(two.folder, members, incarnation=shown)
        old.folder.lives.clear()
        for end in (one, old):
            await end.start()
        try:
            error = await asyncio.wait_for(old.transport.outdated(), 5)
            assert f"comes back with {'only' if shown == 4 else 'another process with'} incarnation {shown}" in str(
                error
            )
            assert f"paramserver node replace 2 2={members[2]} --servers {members[1]}" in str(error)
            assert "\n" not in str(error)
            with pytest.raises(FolderOutdated):
                old.transport.check_folder()
            assert one.inbox.connections == []
            assert one.transport.connected == frozenset()
            assert not one.transport.introductions.outdated.is_set()
        finally:
            await one.stop()
            await old.stop()

    asyncio.run(main())


def test_restarts_are_no_older_lives_and_a_new_folder_begins_anew() -> None:
    async def main() -> None:
        async with ends(2) as (one, two):
            await until(lambda: one.transport.connected == {2})
            for incarnation in (2, 3, 9):
                await two.abort()
                await until(lambda: one.transport.connected == frozenset())
                two = End(two.folder, two.members, incarnation=incarnation)
                await two.start()
                await until(lambda: one.transport.connected == {2})
            await two.abort()
            await until(lambda: one.folder.lives[2][0] == 9)
            await one.transport.admit(2, two.members[2], b"n" * 16)
            new = Folder(2, uuid=b"n" * 16, activated=True)
            two = End(new, two.members, incarnation=1)
            await two.start()
            try:
                await until(lambda: one.transport.connected == {2})
                assert not two.transport.introductions.outdated.is_set()
            finally:
                await two.stop()

    asyncio.run(main())


# --- members that come and go ---------------------------------------------------------------------------------------


def uuid(node: int) -> bytes:
    return bytes([node]) * 16


def test_a_node_that_is_admitted_later_is_dialled_and_heard() -> None:
    async def main() -> None:
        members = addresses(3)
        async with ends(2) as (one, two):
            three = End(Folder(3, activated=True), {3: members[3]})
            await three.start()
            try:
                for end in (one, two):
                    await end.transport.admit(3, members[3], uuid(3))
                for node, end in ((1, one), (2, two)):
                    await three.transport.admit(node, end.members[node], uuid(node))
                await until(lambda: one.transport.connected == {2, 3} and three.transport.connected == {1, 2})
                three.transport.send(1, Channel.CONTROL, [beat(7, to=1)])
                one.transport.send(3, Channel.CONTROL, [beat(8, to=3)])
                await until(lambda: one.inbox.rounds() == [7] and three.inbox.rounds() == [8])
                assert one.folder.peers[3] == uuid(3)
            finally:
                await three.stop()

    asyncio.run(main())


def test_another_folder_takes_a_node_s_place_and_the_old_one_is_cut_off() -> None:
    async def main() -> None:
        async with ends(2) as (one, two):
            await one.transport.admit(2, two.members[2], b"n" * 16)
            assert (2, True) in one.inbox.connections
            two.transport.send(1, Channel.CONTROL, [beat(1, to=1)])
            await until(lambda: one.transport.dropped["frame_of_stranger"] > 0)
            assert one.inbox.rounds() == []
            await until(lambda: "paramserver node replace 2 2=" in str(two.transport.introductions.refusals.get(1)))
            assert two.transport.introductions.other_folder

    asyncio.run(main())


def test_a_dismissed_node_is_not_dialled_and_is_refused() -> None:
    async def main() -> None:
        async with ends(2) as (one, two):
            await one.transport.dismiss(2)
            assert one.transport.connected == frozenset()
            two.transport.send(1, Channel.CONTROL, [beat(1, to=1)])
            await until(lambda: one.transport.dropped["frame_of_stranger"] > 0)
            await until(lambda: "expected another member" in str(two.transport.introductions.refusals.get(1)))
            assert one.inbox.rounds() == []
            one.transport.send(2, Channel.CONTROL, [beat(2)])
            assert one.transport.dropped["no_such_peer"] == 1

    asyncio.run(main())


# --- bad input on the Peer service (FAULTS, bad input 1 and 17); that on frames: test_transport_sockets ------------


def test_a_bad_introduction_of_somebody_who_is_gone_is_no_defect() -> None:
    class Gone:
        async def abort(self, code: grpc.StatusCode, details: str) -> None:
            raise grpc.aio.InternalError("Failed grpc_call_start_batch: 8")

    async def main() -> None:
        one = End(Folder(1, activated=True), addresses(2))
        with pytest.raises(asyncio.CancelledError):
            await one.transport.service._introduce(b"\xff", Gone())  # type: ignore[arg-type]
        assert one.transport.dropped["bad_introduction"] == 1
        await one.transport.close()

    asyncio.run(main())


def test_bad_introductions_and_unknown_methods_get_their_status() -> None:
    async def main() -> None:
        async with ends(2) as (one, _), grpc.aio.insecure_channel(one.members[1]) as channel:
            for data, words in ((b"\xff\xff", "not an IntroduceRequest"), (bytes(20_000), "20000 bytes")):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(f"/{SERVICE}/Introduce")(data)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert words in (caught.value.details() or "")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"/{SERVICE}/Nothing")(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            for request in (
                pb.IntroduceRequest(cluster=CLUSTER, node=9, to_node=1, protocol=PROTOCOL, node_uuid=b"n" * 16),
                pb.IntroduceRequest(cluster=CLUSTER, node=2, to_node=3, protocol=PROTOCOL, node_uuid=bytes([2]) * 16),
                pb.IntroduceRequest(cluster=CLUSTER, node=2, to_node=1, protocol=9, node_uuid=bytes([2]) * 16),
                pb.IntroduceRequest(cluster=CLUSTER, node=2, to_node=1, protocol=PROTOCOL, node_uuid=b"short"),
                pb.IntroduceRequest(),
            ):
                answer = pb.IntroduceResponse.FromString(
                    await channel.unary_unary(f"/{SERVICE}/Introduce")(request.SerializeToString())
                )
                assert not answer.accepted
                assert not answer.holds_uuid
                assert "expected" in answer.refusal or "check" in answer.refusal

    asyncio.run(main())


@pytest.mark.parametrize("trouble", ["disk", "bytes"])
def test_a_link_outlives_an_introduction_that_goes_wrong(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; what was wrong is over when it is tried again."""

    async def main() -> None:
        members = addresses(2)
        one, two = (End(Folder(node), members) for node in members)
        wrong: list[str] = []
        real_remember, real_answered = one.folder.remember_peer, one.transport.introductions.answered

        def remember(node: int, uuid: bytes) -> None:
            if not wrong:
                wrong.append(trouble)
                raise StorageFailed("no space left on device")
            real_remember(node, uuid)

        async def answered(node: int, response: pb.IntroduceResponse) -> str:
            if not wrong:
                wrong.append(trouble)
                pb.IntroduceResponse.FromString(b"\xff" * 20)
            return await real_answered(node, response)

        if trouble == "disk":
            monkeypatch.setattr(one.folder, "remember_peer", remember)
        else:
            monkeypatch.setattr(one.transport.introductions, "answered", answered)
        try:
            await two.server.start()
            await one.start()
            await until(lambda: wrong == [trouble])
            two.transport.start()
            await until(lambda: one.transport.connected == {2})
            assert one.transport.dropped["link_failed"] == 1
        finally:
            await one.stop()
            await two.stop()

    asyncio.run(main())


def test_a_second_server_on_the_same_port_is_an_error() -> None:
    async def main() -> None:
        members = addresses(1)
        one = End(Folder(1), members)
        await one.start()
        try:
            with pytest.raises(RuntimeError):
                End(Folder(1), members)
        finally:
            await one.stop()

    asyncio.run(main())
