"""Frames on sockets: what strangers, broken peers and hostile bytes get; whole frames from any pieces; silence."""

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.core.interface import AppendRequest, Entry, EntryKind, Heartbeat
from consensus.transport.codec import encode
from consensus.transport.errors import BadFrame
from consensus.transport.interface import Channel, Envelope
from consensus.transport.options import TransportOptions
from consensus.transport.sockets import wire
from consensus.transport.sockets.receiving import UNKNOWN_MAX, Connection
from consensus.transport.sockets.wire import Hello, Origin
from tests.unit.transport.network import CLUSTER, FAST, End, Folder, addresses, ends, until

QUICK = replace(FAST, keepalive_ms=100, keepalive_timeout_ms=50, introduce_ms=200)
"""Silence is noticed after 150 ms."""


def uuid(node: int) -> bytes:
    return bytes([node]) * 16


GOOD = Hello(Channel.BULK, Origin(CLUSTER, 2, uuid(2), 1), 1, uuid(1))


def beat(round_: int, to: int = 1) -> Envelope:
    return Envelope(1, Heartbeat(sender=2, to=to, term=1, incarnation=1, commit=0, round=round_))


def append(index: int, *payloads: bytes) -> Envelope:
    entries = tuple(
        Entry(1, at, EntryKind.NORMAL, payload, crc32c(payload)) for at, payload in enumerate(payloads, start=index)
    )
    return Envelope(
        1,
        AppendRequest(
            sender=2,
            to=1,
            term=1,
            incarnation=1,
            previous_index=index - 1,
            previous_term=1,
            commit=0,
            entries=entries,
        ),
    )


def frame(*envelopes: Envelope) -> bytes:
    return b"".join(wire.frame_parts(*encode(envelopes)))


def prefix(kind: int, header: bytes, payload_bytes: int, *, magic: bytes = b"PF", reserved: int = 0) -> bytes:
    head = struct.pack("<2sBBII", magic, kind, reserved, len(header), payload_bytes)
    return head + struct.pack("<I", crc32c(header, crc32c(head))) + header


class Raw:
    """Somebody who speaks to a node's port by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def verdict(self) -> str:
        async with asyncio.timeout(5):
            head = await self.reader.readexactly(wire.VERDICT_BYTES)
            return wire.decode_verdict(head, await self.reader.readexactly(wire.verdict_text_bytes(head)))

    async def ended(self) -> None:
        """The node closes it, whatever it says before."""
        try:
            async with asyncio.timeout(5):
                while await self.reader.read(4096):
                    pass
        except ConnectionResetError:
            pass

    async def accepted(self, hello: Hello = GOOD) -> "Raw":
        await self.say(wire.encode_hello(hello))
        assert await self.verdict() == ""
        return self


@asynccontextmanager
async def by_hand(end: End) -> AsyncIterator[Raw]:
    host = end.members[end.folder.node].rpartition(":")[0]
    reader, writer = await asyncio.open_connection(host, end.transport.introductions.peer_port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def alone(options: TransportOptions = FAST) -> AsyncIterator[End]:
    """Node 1, which knows node 2; that is not there."""
    end = End(Folder(1, activated=True), addresses(2), options=options)
    end.folder.remember_peer(2, uuid(2))
    await end.start()
    try:
        yield end
    finally:
        await end.stop()


# --- opening --------------------------------------------------------------------------------------------------------


def refused() -> Iterator[tuple[bytes, str, str]]:
    good = wire.encode_hello(GOOD)
    origin = GOOD.origin

    def with_crc(head: bytes) -> bytes:
        return head + struct.pack("<I", crc32c(head))

    yield "random", random.Random(1).randbytes(len(good)), "not a node of this build"
    yield "http", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".ljust(len(good)), "not a node of this build"
    yield "another version", with_crc(good[:4] + struct.pack("<H", 2) + good[6:-4]), "version 2, expected 1"
    yield "damaged", good[:-1] + bytes([good[-1] ^ 1]), "its CRC does not match"
    yield "no channel", with_crc(good[:6] + struct.pack("<H", 3) + good[8:-4]), "channel 3"
    for name, hello, words in (
        ("another cluster", replace(GOOD, origin=replace(origin, cluster=b"x" * 16)), "cluster: "),
        ("itself", replace(GOOD, origin=replace(origin, node=1, node_uuid=uuid(1))), "this node"),
        ("stranger", replace(GOOD, origin=replace(origin, node=9)), "has not introduced itself"),
        ("another folder", replace(GOOD, origin=replace(origin, node_uuid=uuid(7))), "wiped"),
        ("an older life", replace(GOOD, origin=replace(origin, incarnation=6)), "was met in incarnation 7"),
        ("for another node", replace(GOOD, origin=replace(origin, incarnation=7), to_node=3), "check what forwards"),
        ("for another folder", replace(GOOD, origin=replace(origin, incarnation=7), to_uuid=uuid(9)), "check what"),
    ):
        yield name, wire.encode_hello(hello), words


@pytest.mark.parametrize(("data", "words"), [pytest.param(*what, id=name) for name, *what in refused()])
@pytest.mark.parametrize("channel", Channel)
def test_who_is_not_a_peer_is_refused_with_the_cause(channel: Channel, data: bytes, words: str) -> None:
    if data[:4] == wire.encode_hello(GOOD)[:4] and data[6] == GOOD.channel:
        head = data[:6] + struct.pack("<H", channel) + data[8:-4]
        damage = struct.unpack("<I", data[-4:])[0] ^ crc32c(data[:-4])
        data = head + struct.pack("<I", crc32c(head) ^ damage)

    async def main() -> None:
        async with alone() as one:
            one.transport.introductions._lives[2] = (7, b"")
            async with by_hand(one) as stranger:
                await stranger.say(data)
                assert words in await stranger.verdict()
                await stranger.ended()
            assert one.transport.dropped["bad_frame"] + one.transport.dropped["frame_of_stranger"] == 1
            assert one.inbox.envelopes == []
            assert one.inbox.connections == []
            async with by_hand(one) as peer:
                await peer.accepted(replace(GOOD, origin=replace(GOOD.origin, incarnation=7)))

    asyncio.run(main())


def test_who_says_nothing_is_not_waited_for_and_many_of_them_take_no_memory() -> None:
    async def main() -> None:
        async with alone(QUICK) as one, AsyncExitStack() as stack:
            waiting = [await stack.enter_async_context(by_hand(one)) for _ in range(UNKNOWN_MAX + 5)]
            await asyncio.gather(*(each.ended() for each in waiting))
            assert one.transport.dropped["connections_full"] == 5
            assert one.transport.dropped["hello_late"] == UNKNOWN_MAX
            async with by_hand(one) as peer:
                await peer.accepted()

    asyncio.run(main())


def test_who_says_nothing_keeps_no_peer_out() -> None:
    async def main() -> None:
        async with alone() as one, AsyncExitStack() as stack:
            silent = [await stack.enter_async_context(by_hand(one)) for _ in range(UNKNOWN_MAX)]
            async with by_hand(one) as peer:
                await peer.accepted()
                await silent[0].ended()
                assert one.transport.dropped["connections_full"] == 1
                late = await stack.enter_async_context(by_hand(one))
                await silent[-1].accepted(replace(GOOD, channel=Channel.CONTROL))
                await late.accepted(replace(GOOD, channel=Channel.CONTROL))

    asyncio.run(main())


def test_all_addresses_of_a_host_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of both families, and a node that listens in one of them."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def both(host: str, port: int, **kinds: int) -> list[tuple[object, ...]]:
            (family, kind, protocol, name, _), *_ = await real(host, port, **kinds)
            return [(family, kind, protocol, name, (each, port)) for each in ("127.0.0.2", "127.0.0.1")]

        monkeypatch.setattr(loop, "getaddrinfo", both)
        async with ends(2) as (one, _):
            assert one.transport.dropped["bulk_broken"] == 0

    asyncio.run(main())


def test_a_hello_may_come_in_pieces() -> None:
    async def main() -> None:
        async with alone() as one, by_hand(one) as peer:
            for byte in wire.encode_hello(GOOD):
                await peer.say(bytes([byte]))
                await asyncio.sleep(0)
            assert await peer.verdict() == ""
            await peer.say(frame(beat(1)))
            await until(lambda: one.inbox.rounds() == [1])

    asyncio.run(main())


class Told:
    def __init__(self) -> None:
        self.opened: list[bool] = []

    def incoming(self, node: int, *, incarnation: int, opened: bool) -> None:
        assert (node, incarnation) == (2, 1)
        self.opened.append(opened)


def test_a_newer_connection_takes_the_place_of_an_earlier_one_which_counts_as_a_break() -> None:
    """A peer that dials again has given up the earlier one, which may be half-open."""

    async def main() -> None:
        async with alone() as one, by_hand(one) as earlier, by_hand(one) as later, by_hand(one) as bulk:
            told = one.transport._listener.incoming = Told()
            await earlier.accepted(replace(GOOD, channel=Channel.CONTROL))
            await bulk.accepted()
            await later.accepted(replace(GOOD, channel=Channel.CONTROL))
            await earlier.ended()
            assert told.opened == [True, False, True]
            for number, each in enumerate((later, bulk), start=1):
                await each.say(frame(beat(number)))
                await until(lambda number=number: one.inbox.rounds()[-1:] == [number])

    asyncio.run(main())


# --- frames ---------------------------------------------------------------------------------------------------------

HEADER, _ = encode([beat(1)])
BAD = {
    "random": random.Random(2).randbytes(5000),
    "another magic": prefix(wire.FRAME, HEADER, 0, magic=b"XX"),
    "reserved": prefix(wire.FRAME, HEADER, 0, reserved=1),
    "unknown kind": prefix(3, HEADER, 0),
    "no header": prefix(wire.FRAME, b"", 0),
    "a beat with a header": prefix(wire.BEAT, HEADER, 0),
    "a beat with payload": prefix(wire.BEAT, b"", 1),
    "a damaged beat": wire.beat()[:-1] + b"\x00",
    "too long": prefix(wire.FRAME, HEADER, FAST.message_bytes_max),
    "4 GiB": prefix(wire.FRAME, HEADER, 2**32 - 1),
    "a damaged header": frame(beat(1))[:-1] + b"\xff",
    "not a Header": prefix(wire.FRAME, b"\xff" * 20, 0),
    "more payload than its header says": prefix(wire.FRAME, HEADER, 5) + b"extra",
    "less": prefix(wire.FRAME, encode([append(1, b"four")])[0], 3) + b"for",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_bad_frame_ends_its_connection_and_nothing_else(data: bytes) -> None:
    async def main() -> None:
        async with alone() as one, by_hand(one) as beside:
            await beside.accepted(replace(GOOD, channel=Channel.CONTROL))
            async with by_hand(one) as peer:
                await peer.accepted()
                await peer.say(frame(beat(1)) + data)
                await peer.ended()
            assert one.transport.dropped["bad_frame"] == 1
            assert one.inbox.rounds() == [1]
            await beside.say(frame(beat(2)))
            await until(lambda: one.inbox.rounds() == [1, 2])

    asyncio.run(main())


def test_memory_for_a_frame_is_taken_after_its_length_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = Connection._make_room
    monkeypatch.setattr(Connection, "_make_room", lambda self, length: made.append(length) or real(self, length))

    async def main() -> None:
        async with alone() as one:
            for data in (BAD["too long"], BAD["4 GiB"]):
                async with by_hand(one) as peer:
                    await peer.accepted()
                    await peer.say(data)
                    await peer.ended()
            async with by_hand(one) as peer:
                await peer.accepted()
                await peer.say(frame(beat(1)))
                await until(lambda: one.inbox.rounds() == [1])
            assert made == [len(HEADER)]

    asyncio.run(main())


def test_a_small_frame_takes_one_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat waited twice for a busy loop: its beginning was read in one turn and its rest in the next."""
    turns: list[bool] = []
    readable = Connection._readable

    def counted(self: Connection) -> None:
        turns.append(self._hello is not None)
        readable(self)

    monkeypatch.setattr(Connection, "_readable", counted)

    async def main() -> None:
        async with alone() as one, by_hand(one) as peer:
            await peer.accepted()
            for round_ in (1, 2, 3):
                await peer.say(frame(beat(round_)))
                await until(lambda round_=round_: one.inbox.rounds() == list(range(1, round_ + 1)))
            assert sum(turns) == 3

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(4))
def test_frames_arrive_whole_whatever_the_pieces(seed: int) -> None:
    draw = random.Random(seed)
    sizes = (0, 1, 100, wire.JOIN_BYTES - 1, wire.JOIN_BYTES, 70_000, 3 << 20)
    sent = [beat(0), *(append(10 * at, *(draw.randbytes(draw.choice(sizes)) for _ in range(3))) for at in range(1, 6))]
    data = b"".join(frame(envelope) + (wire.beat() if draw.random() < 0.5 else b"") for envelope in sent)

    async def main() -> None:
        async with alone() as one, by_hand(one) as peer:
            await peer.accepted()
            at = 0
            while at < len(data):
                size = draw.choice((1, 15, 16, 17, 1000, 65536, 1 << 20))
                await peer.say(data[at : at + size])
                at += size
                if draw.random() < 0.2:
                    await asyncio.sleep(0)
            await until(lambda: len(one.inbox.envelopes) == len(sent))
            assert [envelope for _, envelope in one.inbox.envelopes] == sent
            assert one.transport.dropped.total() == 0

    asyncio.run(main())


def test_what_is_sent_is_what_comes_from_one_byte_to_many_megabytes() -> None:
    draw = random.Random(3)
    payloads = [draw.randbytes(size) for size in (1, 1000, 16_384, 300_000, 5 << 20, 20 << 20, 7)]
    many = [draw.randbytes(20_000) for _ in range(3 * 64 + 1)]
    sent = [*(append(at, payload) for at, payload in enumerate(payloads, start=1)), append(100, *many)]

    async def main() -> None:
        async with ends(2) as (one, two):
            two.transport.send(1, Channel.BULK, sent)
            await until(lambda: len(one.inbox.envelopes) == len(sent), seconds=10)
            assert [envelope for _, envelope in one.inbox.envelopes] == sent
            assert two.transport.dropped.total() == 0

    asyncio.run(main())


def test_each_frame_is_received_into_memory_of_its_own_that_nobody_can_write() -> None:
    """RULES R6: who holds a payload holds its buffer."""
    first, second = bytes(100_000), b"\x01" * 100_000

    async def main() -> None:
        async with ends(2) as (one, two):
            for number, payload in enumerate((first, second), start=1):
                two.transport.send(1, Channel.BULK, [append(number, payload)])
                await until(lambda number=number: len(one.inbox.envelopes) == number)
            held = [envelope.message.entries[0].payload for _, envelope in one.inbox.envelopes]
            assert all(isinstance(payload, memoryview) and payload.readonly for payload in held)
            assert held[0].obj is not held[1].obj
            assert held == [first, second]

    asyncio.run(main())


def test_large_payloads_are_sent_as_they_lie() -> None:
    large, small = bytearray(wire.JOIN_BYTES), b"small"
    parts = wire.frame_parts(b"header", [small, small, large, memoryview(large), small])
    assert [part.obj is large for part in parts] == [False, True, True, False]
    assert b"".join(parts)[wire.PREFIX_BYTES :] == b"header" + small + small + large + large + small


def test_a_damaged_payload_is_dropped_and_the_connection_goes_on() -> None:
    async def main() -> None:
        async with alone() as one, by_hand(one) as peer:
            await peer.accepted()
            await peer.say(frame(append(1, b"whole"), append(2, b"other"))[:-1] + b"!" + frame(beat(3)))
            await until(lambda: one.inbox.rounds() == [3])
            assert one.inbox.envelopes[0][1] == append(1, b"whole")
            assert len(one.inbox.envelopes) == 2
            assert +one.transport.dropped == {"payload_damaged": 1}

    asyncio.run(main())


def test_frames_stop_when_another_folder_has_the_sender_s_place() -> None:
    async def main() -> None:
        async with alone() as one, by_hand(one) as peer:
            await peer.accepted()
            one.folder.replace_peer(2, uuid(8))
            await peer.say(frame(beat(1)))
            await peer.ended()
            assert one.inbox.rounds() == []
            assert one.transport.dropped["frame_of_stranger"] == 1

    asyncio.run(main())


# --- silence (FAULTS 16) --------------------------------------------------------------------------------------------


def test_an_idle_connection_lives_on_beats() -> None:
    async def main() -> None:
        members = addresses(2)
        both = [End(Folder(node), members, options=QUICK) for node in members]
        for end in both:
            await end.start()
        try:
            await until(lambda: all(end.inbox.connections == [(3 - end.folder.node, False)] for end in both))
            await asyncio.sleep(12 * QUICK.keepalive_timeout_ms / 1000)  # nothing happens, which is what is looked for
            assert all(end.inbox.connections == [(3 - end.folder.node, False)] for end in both)
            assert all(end.transport.dropped["bulk_broken"] == 0 for end in both)
        finally:
            for end in both:
                await end.stop()

    asyncio.run(main())


@pytest.mark.parametrize("channel", Channel)
def test_a_peer_that_falls_silent_is_given_up(channel: Channel) -> None:
    async def main() -> None:
        async with alone(QUICK) as one, by_hand(one) as peer:
            await peer.accepted(replace(GOOD, channel=channel))
            await peer.say(frame(beat(1))[:-1])
            began = asyncio.get_running_loop().time()
            await peer.ended()
            assert QUICK.keepalive_ms / 1000 - 0.02 < asyncio.get_running_loop().time() - began < 2
            assert one.transport.dropped["connection_silent"] == 1

    asyncio.run(main())


def test_a_slow_link_is_not_taken_for_a_silent_one() -> None:
    data = frame(append(1, bytes(400_000)))

    async def main() -> None:
        async with alone(QUICK) as one, by_hand(one) as peer:
            await peer.accepted()
            for at in range(30):  # For much longer than silence is borne, less than the receiver is woken for.
                await peer.say(data[1000 * at : 1000 * (at + 1)])
                await asyncio.sleep(QUICK.keepalive_timeout_ms / 2000)
            await peer.say(data[30_000:])
            await until(lambda: one.inbox.envelopes == [(2, append(1, bytes(400_000)))])
            assert one.transport.dropped["connection_silent"] == 0

    asyncio.run(main())


def silenced(monkeypatch: pytest.MonkeyPatch, is_silent: Callable[[Connection], bool]) -> None:
    """Those ends neither read nor say anything more: a black hole in the middle of a connection."""
    real = Connection._watch

    def watch(self: Connection) -> None:
        if self._hello is None or not is_silent(self):
            real(self)
        else:
            self._read(False)

    monkeypatch.setattr(Connection, "_watch", watch)


def test_who_sends_notices_the_silence_of_who_receives(monkeypatch: pytest.MonkeyPatch) -> None:
    silenced(monkeypatch, lambda connection: connection._hello.to_node == 2)

    async def main() -> None:
        members = addresses(2)
        one, two = [End(Folder(node), members, options=QUICK) for node in members]
        await one.start()
        await two.start()
        try:
            await until(lambda: one.inbox.connections[:1] == [(2, False)])
            payload = bytes(1 << 20)
            one.transport.send(2, Channel.BULK, [append(at, payload) for at in range(1, 40)])  # It fills the way.
            await until(lambda: one.inbox.connections[1:2] == [(2, True)], seconds=2)
            assert one.transport.dropped["connection_silent"] >= 1
        finally:
            await one.stop()
            await two.stop()

    asyncio.run(main())


# --- the bytes ------------------------------------------------------------------------------------------------------


def test_hellos_and_verdicts_survive_the_way() -> None:
    for channel in Channel:
        hello = replace(GOOD, channel=channel)
        assert wire.decode_hello(wire.encode_hello(hello)) == hello
    for refusal in ("", "why", "é" * 2000):
        data = wire.encode_verdict(refusal)
        head, text = data[: wire.VERDICT_BYTES], data[wire.VERDICT_BYTES :]
        assert wire.verdict_text_bytes(head) == len(text) <= wire.REFUSAL_BYTES_MAX
        assert wire.decode_verdict(head, text) == refusal[: wire.REFUSAL_BYTES_MAX // 2 if len(refusal) > 3 else None]
        with pytest.raises(BadFrame):
            wire.decode_verdict(head, text + b"x")
    with pytest.raises(BadFrame, match="no port of nodes"):
        wire.verdict_text_bytes(b"HTTP/1.1 400 Bad".ljust(wire.VERDICT_BYTES))


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=wire.HELLO_BYTES, max_size=wire.HELLO_BYTES), st.integers(0, 8 * wire.HELLO_BYTES - 1))
def test_random_and_damaged_heads_are_refused(data: bytes, bit: int) -> None:
    damaged = bytearray(wire.encode_hello(GOOD))
    damaged[bit // 8] ^= 1 << bit % 8
    for hello in (data, bytes(damaged)):
        with pytest.raises(BadFrame):
            wire.decode_hello(hello)
    with pytest.raises(BadFrame, match="incarnation"):
        wire.decode_hello(wire.encode_hello(replace(GOOD, origin=replace(GOOD.origin, incarnation=2**64 - 1))))
    damaged = bytearray(frame(beat(1)))
    damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
    with pytest.raises(BadFrame):
        read(bytes(damaged))


def read(data: bytes) -> None:
    prefix = wire.decode_prefix(data[: wire.PREFIX_BYTES], bytes_max=1 << 20)
    prefix.check(data[wire.PREFIX_BYTES :])


@pytest.mark.parametrize("turns", range(4))
def test_a_link_ends_though_its_peer_is_heard_of_in_the_same_moment(turns: int) -> None:
    """`asyncio.wait_for` forgot the cancellation, and a server that stopped waited for ever."""

    async def main() -> None:
        async with alone(replace(FAST, reconnect_ms_min=5000, reconnect_ms_max=5000)) as one:
            link = one.transport._links[2]
            link.heard_of()
            await until(lambda: not link._sign_of_life.is_set())
            await until(lambda: bool(link._sign_of_life._waiters))  # Between two attempts.
            link.heard_of()
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(3):
                await link.close()

    asyncio.run(main())
