"""Links: what a fault does to bytes between two real sockets, and when it is in force."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paramserver.lab.errors import LabError
from paramserver.lab.lines import SocketFolder
from paramserver.lab.links.conditions import Condition
from paramserver.lab.links.control import Links
from paramserver.lab.processes import Child

SOON_S = 5.0
SILENCE_S = 0.15
"""How long nothing may come where nothing should."""


class Ends:
    """Nodes 1 and 2 (and a third), each a listener; `dial` connects through the link."""

    def __init__(self, folder: Path) -> None:
        self.listeners = {node: socket.create_server(("127.0.0.1", 0)) for node in (1, 2, 3)}
        for listener in self.listeners.values():
            listener.settimeout(SOON_S)
        self.sockets = SocketFolder(folder)
        self.addresses = {node: address_of(one) for node, one in self.listeners.items()}
        self.open: list[socket.socket] = []

        def start(name: str, command: list[str]) -> Child:
            child = Child(name, command, folder / "links.log")
            child.start()
            return child

        self.links = Links(self.addresses, sockets=self.sockets, start=start)
        self.links.start()

    def dial_only(self, one: int, other: int) -> socket.socket:
        host, _, port = self.links.dial(one)[self.addresses[other]].rpartition(":")
        near = socket.create_connection((host, int(port)), SOON_S)
        self.open.append(near)
        return near

    def dial(self, one: int = 1, other: int = 2) -> tuple[socket.socket, socket.socket]:
        near = self.dial_only(one, other)
        far, _ = self.listeners[other].accept()
        far.settimeout(SOON_S)
        self.open.append(far)
        return near, far

    def clean(self) -> None:
        self.links.heal()
        for one in self.open:
            one.close()
        self.open.clear()

    def close(self) -> None:
        self.clean()
        self.links.close()
        self.sockets.close()
        for listener in self.listeners.values():
            listener.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    ends = Ends(tmp_path_factory.mktemp("links"))
    yield ends
    ends.close()


@pytest.fixture
def ends(shared: Ends) -> Iterator[Ends]:
    yield shared
    shared.clean()


def address_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def receive(source: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        data = source.recv(min(count, 1 << 20))
        assert data, "the connection ended early"
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


def is_silent(source: socket.socket, for_s: float = SILENCE_S) -> bool:
    return not select.select([source], [], [], for_s)[0]


def said(source: socket.socket) -> str:
    """What comes next: bytes, an end or a reset."""
    try:
        return source.recv(1 << 16).decode() or "end"
    except ConnectionResetError:
        return "reset"


def refused(dial: Callable[[], socket.socket]) -> bool:
    """At once, or right after it was accepted."""
    try:
        with dial() as near:
            return said(near) == "reset"
    except ConnectionResetError:
        return True


def fill(target: socket.socket, most: int) -> int:
    """Send until nothing more is taken for a while; how much was."""
    target.settimeout(SILENCE_S)
    sent, piece = 0, bytes(1 << 20)
    try:
        while sent < most:
            sent += target.send(piece)
    except TimeoutError:
        pass
    return sent


def test_a_clear_link_passes_bytes_on_both_ways_and_whole(ends: Ends) -> None:
    near, far = ends.dial()
    content = bytes(range(256)) * (32 << 10)
    for source, target in ((near, far), (far, near)):
        source.settimeout(SOON_S)
        sent = 0
        got = bytearray()
        source.setblocking(False)
        while len(got) < len(content):
            readable, writable, _ = select.select([target], [source] if sent < len(content) else [], [], SOON_S)
            if writable:
                sent += source.send(memoryview(content)[sent : sent + (1 << 18)])
            if readable:
                got += target.recv(1 << 20)
        source.setblocking(True)
        assert bytes(got) == content


def test_an_end_is_passed_on_as_an_end_and_a_reset_as_a_reset(ends: Ends) -> None:
    near, far = ends.dial()
    near.sendall(b"last")
    near.shutdown(socket.SHUT_WR)
    assert receive(far, 4) == b"last"
    assert said(far) == "end"
    far.sendall(b"still")  # a half of a connection is one
    assert receive(near, 5) == b"still"

    near, far = ends.dial()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    started_s = time.monotonic()
    near.close()
    assert said(far) == "reset"
    assert time.monotonic() - started_s < 1.0


def test_who_dials_a_node_that_is_away_is_reset(ends: Ends) -> None:
    gone = socket.create_server(("127.0.0.1", 0))
    port = gone.getsockname()[1]
    gone.close()
    holder = socket.create_server(("127.0.0.1", 0))
    listen = address_of(holder)
    holder.close()
    ends.links.ask({"op": "add", "from": 1, "to": 9, "listen": listen, "target": f"127.0.0.1:{port}"})
    assert refused(lambda: socket.create_connection(("127.0.0.1", int(listen.rpartition(":")[2])), SOON_S))


def test_what_was_dropped_is_delivered_when_the_link_heals_as_tcp_would(ends: Ends) -> None:
    near, far = ends.dial()
    ends.links.both(1, 2).cut("drop")
    near.sendall(b"late")
    near.shutdown(socket.SHUT_WR)
    assert is_silent(far)
    ends.links.heal()
    assert receive(far, 4) == b"late"
    assert said(far) == "end"


def test_nobody_is_dialled_over_a_link_that_drops_until_it_heals(ends: Ends) -> None:
    ends.links.between(2, 1).cut()  # the answer to a first packet would be lost
    near = ends.dial_only(1, 2)
    near.sendall(b"x")
    assert is_silent(ends.listeners[2])
    ends.links.heal()
    far, _ = ends.listeners[2].accept()
    ends.open.append(far)
    assert receive(far, 1) == b"x"


def test_one_way_is_one_way_whoever_dialled(ends: Ends) -> None:
    one, two = ends.dial(1, 2)
    three, four = ends.dial(2, 1)  # node 2 dialled; `four` is node 1's end
    ends.links.between(1, 2).cut("black_hole")
    two.sendall(b"back")
    three.sendall(b"back")
    assert receive(one, 4) == b"back"
    assert receive(four, 4) == b"back"
    one.sendall(b"forth")
    four.sendall(b"forth")
    assert is_silent(two)
    assert is_silent(three)


def test_a_black_hole_keeps_connections_and_resets_at_the_end_those_that_lost_bytes(ends: Ends) -> None:
    near, far = ends.dial()
    other_near, other_far = ends.dial()
    ends.links.both(1, 2).cut("black_hole")
    near.sendall(bytes(4 << 20))  # taken, however much it is
    near.close()
    assert is_silent(far)  # neither bytes nor the end
    ends.links.heal()
    assert said(far) == "reset"
    other_near.sendall(b"fine")
    assert receive(other_far, 4) == b"fine"


def test_a_reset_cut_resets_what_stands_and_what_comes(ends: Ends) -> None:
    near, far = ends.dial()
    ends.links.both(1, 2).cut("reset")
    assert said(near) == "reset"
    assert said(far) == "reset"
    assert refused(lambda: ends.dial_only(1, 2))
    ends.links.heal()
    ends.dial()


def test_a_clogged_link_is_felt_by_who_sends_and_goes_on(ends: Ends) -> None:
    near, far = ends.dial()
    ends.links.between(1, 2).clog()
    most = 256 << 20
    sent = fill(near, most)
    assert sent < most
    assert is_silent(far)
    far.sendall(b"other way")
    assert receive(near, 9) == b"other way"
    ends.links.heal()
    assert receive(far, sent) == bytes(sent)


def test_delay_delays_each_way_by_itself_and_keeps_the_order(ends: Ends) -> None:
    near, far = ends.dial()
    ends.links.between(1, 2).delay(60, jitter_ms=50)
    started_s = time.monotonic()
    for number in range(20):
        near.sendall(bytes([number]))
    assert receive(far, 20) == bytes(range(20))
    took_s = time.monotonic() - started_s
    assert 0.01 <= took_s < 1.0
    started_s = time.monotonic()
    far.sendall(b"back")
    receive(near, 4)
    assert time.monotonic() - started_s < 0.06
    ends.links.between(1, 2).delay(60_000)
    near.sendall(b"at once, when it heals")
    assert is_silent(far)
    ends.links.heal()
    receive(far, 22)


def test_delay_is_the_one_that_was_asked_for(ends: Ends) -> None:
    near, far = ends.dial()
    ends.links.between(1, 2).delay(80)
    took = []
    for _ in range(3):
        started_s = time.monotonic()
        near.sendall(b"x")
        receive(far, 1)
        took.append(time.monotonic() - started_s)
    assert min(took) >= 0.08
    assert min(took) < 0.16


def test_a_rate_limit_is_kept_and_felt(ends: Ends) -> None:
    near, far = ends.dial()
    ends.links.between(1, 2).rate_limit(1e6)
    started_s = time.monotonic()
    near.sendall(bytes(300_000))
    receive(far, 300_000)
    assert 0.25 <= time.monotonic() - started_s < 3.0


def test_loss_delays_by_retransmissions_and_breaks_the_connection_when_nothing_gets_through(ends: Ends) -> None:
    near, far = ends.dial()
    ends.links.between(1, 2).loss(0.5)
    for _ in range(8):  # one of them is lost, but for one time in 256
        started_s = time.monotonic()
        near.sendall(b"x")
        far.recv(1)
        if time.monotonic() - started_s >= 0.2:
            break
    else:
        pytest.fail("nothing was lost")
    ends.links.heal()
    near, far = ends.dial()
    ends.links.between(1, 2).loss(1.0)
    near.sendall(b"x")
    assert is_silent(far)
    ends.links.heal()  # which lets everything that waits happen now: here after 0.2 + 0.4 + 0.8 + 1.6 + 3.2 s
    assert said(far) == "reset"


def test_duplicate_delivers_and_breaks_so_that_it_is_sent_again(ends: Ends) -> None:
    near, far = ends.dial()
    ends.links.between(1, 2).duplicate(1.0)
    near.sendall(b"twice")
    assert receive(far, 5) == b"twice"
    assert said(near) == "reset"
    assert said(far) == "end"


def test_faults_of_a_link_add_up_and_heal_together(ends: Ends) -> None:
    link = ends.links.between(1, 2)
    link.delay(5)
    link.rate_limit(1e6)
    assert ends.links.condition((1, 2)) == Condition(delay_ms=5, bytes_per_s=1e6)
    assert set(ends.links.faulty) == {(1, 2)}
    ends.links.heal()
    assert not ends.links.faulty


def test_partitions_cut_who_they_say(ends: Ends) -> None:
    links = ends.links
    links.isolate(1)
    assert set(links.faulty) == {(1, 2), (2, 1), (1, 3), (3, 1)}
    links.heal()
    links.one_way(1)
    assert set(links.faulty) == {(1, 2), (1, 3)}
    links.heal()
    links.one_way(1, hears=False)
    assert set(links.faulty) == {(2, 1), (3, 1)}
    links.heal()
    links.bridge(1, 2)
    assert set(links.faulty) == {(1, 2), (2, 1)}
    links.heal()
    links.partition([1], [2, 3], mode="black_hole")
    assert set(links.faulty) == {(1, 2), (2, 1), (1, 3), (3, 1)}
    assert {one.mode for one in links.faulty.values()} == {"black_hole"}


def test_what_cannot_be_is_refused(ends: Ends) -> None:
    with pytest.raises(ValueError, match=r"mode is 'cut'; expected one of clear, drop"):
        ends.links.between(1, 2).cut("cut")
    with pytest.raises(ValueError, match="loss is 2; expected a number from 0 to 1"):
        ends.links.between(1, 2).loss(2)
    with pytest.raises(ValueError, match="no link 1 -> 7"):
        ends.links.between(1, 7)
    with pytest.raises(LabError, match="op is 'melt'"):
        ends.links.ask({"op": "melt"})
    with pytest.raises(LabError, match=r"refuses set: ValueError: unknown lossy"):
        ends.links.ask({"op": "set", "conditions": [[1, 2, {"lossy": 1}]]})
    assert ends.links.counts()[1, 2].open >= 0


def test_counts_tell_what_was_delivered(ends: Ends) -> None:
    before = ends.links.counts()[1, 3]
    near, far = ends.dial(1, 3)
    near.sendall(b"12345")
    receive(far, 5)
    after = ends.links.counts()[1, 3]
    assert after.bytes - before.bytes == 5
    assert after.opened - before.opened == 1
    assert after.open == 1
