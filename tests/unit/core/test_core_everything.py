"""Everything that was built apart, at once: members come and go, disks of a minority forget, stall and lag, processes
stand still, leadership is handed over, idle groups sleep, reads are asked for everywhere, and all of it on a network
that loses, doubles and reorders.

Beside what test_core_churn.py checks after every event: no read is told an index below what was committed anywhere
before it was asked for, each read gets exactly one answer, and after healing the group goes on and can change its
members. A failing seed replays exactly: `go(seed)`.
"""

from collections import Counter
from dataclasses import replace

import pytest

from consensus.core.configuration import members_of
from consensus.core.interface import AnyMessage, MembershipChange, Role
from tests.unit.core.harness import Host
from tests.unit.core.test_core_churn import Churn
from tests.unit.core.test_core_random import SMALL

CONFIG = replace(
    SMALL,
    election_timeout_ms=150,
    election_spread_ms=80,
    place_delay_ms=20,
    nudge_ms=80,
    reads_max=8,
    quiesce_after_ms=60,
)
EVENTS = 900


class Everything(Churn):
    """The host's part of sleep is played too: who sleeps is woken some time after a replica crashed, fell silent or
    closed its connections, never before."""

    config = CONFIG

    def __init__(self, seed: int) -> None:
        super().__init__(seed, 1 + seed % 5)
        source = self.random
        self.loss = source.choice([0, 0, 0.05, 0.3])
        self.double = source.choice([0, 0.1, 0.5])
        self.reach = source.choice([1, 4, 30])
        """How far back in the queue the next message may lie."""
        self.hurry = source.choice([1, 3])
        self.asleep_for = source.choice([0, 0, 15, 40])
        """Events at a stretch in which time passes and nothing is asked for."""
        self.idle = 0
        self.stalled: set[int] = set()
        self.paused: set[int] = set()
        self.unsure: set[int] = set()
        """Replicas of which something happened that those who sleep with them hear of later."""
        self.token = 0
        self.open: dict[int, tuple[int, int, int]] = {}
        """Reads not answered yet: token -> (replica, its life, the highest index committed anywhere when asked)."""
        self.seen: Counter[str] = Counter()

    # --- what happens -----------------------------------------------------------------------------------------------

    def event(self) -> None:
        source = self.random
        if self.asleep_for and source.random() < 0.01:
            self.idle = self.asleep_for
        if self.idle:
            self.idle -= 1
            self.calm()
            return
        kind = source.random()
        if kind < 0.04:
            self.read(self.pick())
        elif kind < 0.07:
            self.stall()
        elif kind < 0.10:
            self.pause()
        elif kind < 0.13:
            self.notice()
        elif kind < 0.135:
            self.unsure.add(self.pick().replica)
        elif kind < 0.145:
            self.transfer(self.pick_leader())
        elif kind < 0.18:
            self.propose(self.pick_leader())
        else:
            before = {replica: one.disk.incarnation for replica, one in self.hosts.items()}
            cut = set(self.cut)
            super().event()
            self.unsure |= {one for one, life in before.items() if self.hosts[one].disk.incarnation != life}
            self.unsure |= self.cut ^ cut
        self.seen["asleep"] += any(one.core.status().quiesced for one in self.hosts.values())

    def pick(self) -> Host:
        awake = [replica for replica in self.active if replica not in self.paused]
        return self.hosts[self.random.choice(awake)] if awake else self.go_on(self.active[0])

    def pick_leader(self) -> Host:
        """A leader, if there is one, or several of different terms."""
        leading = [host for host in self.living() if host.role is Role.LEADER]
        return self.random.choice(leading) if leading else self.pick()

    def go_on(self, replica: int) -> Host:
        """Its process stood still; now all the time passes at once."""
        self.paused.discard(replica)
        host = self.hosts[replica]
        host.core.tick(1000 if self.random.random() < 0.5 else 10)
        self.collect(host)
        return host

    def persist(self, host: Host) -> None:
        if host.replica not in self.stalled:
            super().persist(host)

    def calm(self) -> None:
        """Nobody asks for anything; what is on its way arrives."""
        for _ in range(2):
            for host in self.living():
                if host.replica not in self.stalled:
                    host.persist()
                host.core.tick(10)
                self.collect(host)
            moving, self.network = self.network, []
            for message in moving:
                if self.arrives(message):
                    self.hosts[message.to].step(message)
                    self.collect(self.hosts[message.to])
        self.seen["asleep"] += any(one.core.status().quiesced for one in self.hosts.values())
        self.check()

    def living(self) -> list[Host]:
        return [host for replica, host in self.hosts.items() if replica not in self.paused]

    def arrives(self, message: AnyMessage) -> bool:
        apart = {message.sender, message.to} & self.cut
        return not apart and message.to not in self.paused and self.random.random() >= self.loss

    def deliver_one(self, touched: dict[int, Host]) -> None:
        if not self.network:
            return
        position = self.random.randrange(0, min(len(self.network), self.reach))
        message = self.network[position]
        if self.random.random() >= self.double:
            del self.network[position]
        if self.arrives(message):
            self.hosts[message.to].step(message)
            touched[message.to] = self.hosts[message.to]

    def stall(self) -> None:
        """A disk finishes nothing any more, and its host notices; or it does again."""
        if self.stalled:
            replica = self.random.choice(sorted(self.stalled))
            self.stalled.discard(replica)
            host = self.hosts[replica]
            host.core.storage(stalled=False)
        elif self.random.random() < 0.3:
            host = self.pick()
            self.stalled.add(host.replica)
            host.core.storage(stalled=self.random.random() < 0.8)
            self.seen["stalled"] += 1
        else:
            return
        self.collect(host)
        self.look([host])

    def pause(self) -> None:
        """A process stands still, or goes on."""
        if self.paused:
            replica = self.random.choice(sorted(self.paused))
            self.go_on(replica)
        elif self.random.random() < 0.3:
            replica = self.pick().replica
            self.paused.add(replica)
            self.seen["paused"] += 1
        else:
            return
        self.unsure.add(replica)
        self.look([self.hosts[replica]])

    def notice(self) -> None:
        """Nodes hear of what happened to another: they wake what sleeps with it, and some see a closed connection."""
        if not self.unsure:
            return
        gone = self.random.choice(sorted(self.unsure))
        self.unsure.discard(gone)
        for host in self.living():
            if host.replica == gone:
                continue
            if self.random.random() < 0.5:
                host.core.connection(gone, closed=True)
                if gone not in self.cut | self.paused or self.random.random() < 0.3:
                    host.core.connection(gone, closed=False)
            host.core.wake()
            self.collect(host)

    def read(self, host: Host) -> None:
        for _ in range(self.random.choice((1, 1, 4))):
            self.token += 1
            self.open[self.token] = (host.replica, host.disk.incarnation, self.furthest())
            host.core.read(self.token)
        self.collect(host)

    def furthest(self) -> int:
        return max(one.core.status().commit_index for one in self.hosts.values())

    def transfer(self, host: Host) -> None:
        super().transfer(host)
        self.seen["transfers"] += host.core.status().transferee != 0
        self.collect(host)

    def collect(self, host: Host) -> None:
        if host.replica in self.paused:
            return
        super().collect(host)
        answers, host.reads = host.reads, []
        for answer in answers:
            replica, life, floor = self.open.pop(answer.token, (0, 0, 0))
            if (replica, life) != (host.replica, host.disk.incarnation):
                raise AssertionError(
                    f"replica {host.replica} answers read {answer.token}, of {replica}, again or never asked"
                )
            if answer.refused:
                self.seen["refused"] += 1
                continue
            self.seen["elsewhere" if host.role is not Role.LEADER else "at the leader"] += 1
            if answer.index < floor:
                raise AssertionError(
                    f"replica {replica} was told {answer.index} for read {answer.token}; {floor} was committed before"
                )

    # --- the end ----------------------------------------------------------------------------------------------------

    def heal(self) -> Host:
        self.loss = self.double = 0
        for replica in sorted(self.paused):
            self.go_on(replica)
        for replica in sorted(self.stalled):
            self.hosts[replica].core.storage(stalled=False)
        self.stalled.clear()
        self.unsure.clear()
        for host in self.hosts.values():
            host.core.wake()
        return super().heal()

    def rest(self) -> list[int]:
        """Reads that should have been answered: those of lives that go on."""
        return [
            token for token, (replica, life, _) in self.open.items() if self.hosts[replica].disk.incarnation == life
        ]


def go(seed: int, events: int = EVENTS) -> Everything:
    world = Everything(seed)
    try:
        for _ in range(events):
            world.event()
        leader = world.heal()
        finish(world, leader)
    except Exception as error:
        error.add_note(f"seed {seed}")
        raise
    return world


def finish(world: Everything, leader: Host) -> None:
    """What must hold when everything works again."""
    for what in ("", "after a command and a change of members"):
        if what:
            # Sleep, if any, ends; the group takes commands and changes.
            before = leader.core.status().commit_index
            leader.core.propose(b"last", 4711)
            add_one(world, leader)
            leader = Churn.heal(world)
            assert leader.core.status().commit_index >= before + 2
        end = leader.core.status()
        assert end.configuration is not None
        assert end.commit_index == end.last_index, what
        assert not end.configuration.outgoing, what
        assert not world.rest(), f"reads without an answer: {world.rest()}"
        for replica, host in world.hosts.items():
            status = host.core.status()
            if replica in members_of(end.configuration):
                assert not status.forgetful, f"replica {replica} {what}"
                assert (status.last_index, status.commit_index, status.applied_index, status.configuration) == (
                    end.last_index,
                    end.commit_index,
                    end.applied_index,
                    end.configuration,
                ), f"replica {replica} {what}"
            else:
                assert status.role is not Role.LEADER, f"replica {replica} {what}"


def add_one(world: Everything, leader: Host) -> None:
    now = leader.core.configuration
    newcomer = world.newcomer(now)
    leader.core.propose_membership(MembershipChange(now.voters, (*now.learners, newcomer)))


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_everything_at_once_breaks_no_promise(first: int) -> None:
    for seed in range(first, first + 10):
        go(seed)


def test_everything_at_once_reaches_what_it_should() -> None:
    seen: Counter[str] = Counter()
    for seed in range(1000, 1015):
        world = go(seed)
        seen += world.seen + Counter(world.changes)
        seen["removed"] += len(world.hosts) - len(world.active)
        seen["terms"] += max(host.term for host in world.hosts.values())
        seen["installed"] += world.installed
        seen["committed"] += world.committed
    assert all(seen[name] > least for name, least in REACHED.items()), seen


REACHED = {
    "elsewhere": 15,
    "at the leader": 30,
    "refused": 100,
    "asleep": 50,
    "transfers": 8,
    "stalled": 20,
    "paused": 20,
    "damage": 4,
    "removed": 2,
    "installed": 10,
    "committed": 100,
    "terms": 30,
}
