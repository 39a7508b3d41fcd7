"""No read is told an index below what was committed anywhere before it was asked for; under pauses, partitions,
transfers, lost, late and doubled messages, slow and stalled disks. And every read gets exactly one answer.

A failing seed replays exactly: the seed is the test's parameter, or stands in the message.
"""

import heapq
import random
from collections import Counter

import pytest

from consensus.core.errors import Busy, ConsensusError, NotLeader
from consensus.core.interface import AnyMessage, Configuration, Role
from consensus.core.invariants import SafetyChecker
from consensus.core.raft import RaftConfig
from tests.unit.core.harness import Host

STEP_MS = 10
CONFIG = RaftConfig(
    election_timeout_ms=150, election_spread_ms=80, place_delay_ms=20, nudge_ms=80, reads_max=8, quiesce_after_ms=150
)


class World:
    """Virtual milliseconds; each message and each batch of a disk has a delay of its own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        size = self.random.choice((1, 2, 3, 3, 3, 5))
        learners = (9,) if self.random.random() < 0.3 else ()
        configuration = Configuration(tuple(range(1, size + 1)), learners)
        members = (*configuration.voters, *learners)
        self.hosts = {
            member: Host(member, configuration, config=CONFIG, random=random.Random(seed * 100 + member))
            for member in members
        }
        self.loss = self.random.choice((0, 0, 0.1))
        self.late = self.random.choice((0, 0.05, 0.2))
        self.double = self.random.choice((0, 0.1))
        self.now_ms = 0
        self.network: list[tuple[int, int, AnyMessage]] = []
        self.disks: dict[int, list[int]] = {member: [] for member in members}
        """When each batch being written will be durable."""
        self.paused: dict[int, int] = {}
        self.stalled: dict[int, int] = {}
        self.blocked: set[tuple[int, int]] = set()
        self.sequence = 0
        self.token = 0
        self.floors: dict[int, int] = {}
        """Token -> the highest index committed anywhere when it was asked for."""
        self.answers: Counter[int] = Counter()
        self.seen = Counter[str]()
        self.checker = SafetyChecker(1)

    # --- what happens -----------------------------------------------------------------------------------------------

    def run(self, elapsed_ms: int, *, faults: bool) -> None:
        for _ in range(elapsed_ms // STEP_MS):
            self.now_ms += STEP_MS
            if faults:
                self.fault()
            for member, host in self.hosts.items():
                until = self.paused.get(member, 0)
                if until > self.now_ms:
                    continue
                if until:
                    # Time passed for it all at once; what came meanwhile is looked at before or after that.
                    del self.paused[member]
                    host.core.tick(1000 if self.random.random() < 0.5 else STEP_MS)
                    self.read(host)
                host.core.tick(STEP_MS)
                self.persist(member, host)
                if faults:
                    self.client(host)
                self.collect(member, host)
            self.deliver()
            self.check()

    def fault(self) -> None:
        source = self.random
        leaders = [member for member, host in self.hosts.items() if host.role is Role.LEADER]
        member = source.choice(leaders if leaders and source.random() < 0.6 else list(self.hosts))
        kind = source.random()
        if kind < 0.015:
            self.paused[member] = self.now_ms + source.randrange(50, 700)
        elif kind < 0.03:
            for other in self.hosts:
                links = {(member, other), (other, member)} if source.random() < 0.7 else {(member, other)}
                self.blocked |= links if source.random() < 0.8 else set()
        elif kind < 0.045:
            self.blocked.clear()
        elif kind < 0.05:
            self.hosts[member].core.connection(source.choice(list(self.hosts)), closed=source.random() < 0.5)
        elif kind < 0.055:
            self.stalled[member] = self.now_ms + source.randrange(50, 900)
            self.hosts[member].core.storage(stalled=True)
        elif kind < 0.06:
            self.hosts[member].core.wake()

    def client(self, host: Host) -> None:
        source = self.random
        if source.random() < 0.2:
            try:
                host.core.propose(b"", 0)
            except (NotLeader, Busy):
                pass
        if source.random() < 0.08:
            for _ in range(source.choice((1, 1, 12))):
                self.read(host)
        if host.role is Role.LEADER and source.random() < 0.03:
            try:
                host.core.transfer(source.choice(list(self.hosts)))
                self.seen["transfers"] += 1
            except ConsensusError:
                pass

    def read(self, host: Host) -> None:
        self.token += 1
        self.floors[self.token] = max(one.core.status().commit_index for one in self.hosts.values())
        host.core.read(self.token)

    def persist(self, member: int, host: Host) -> None:
        if self.stalled.get(member, 0) > self.now_ms:
            return
        if self.stalled.pop(member, 0):
            host.core.storage(stalled=False)
        due = self.disks[member]
        while host.writing and due and due[0] <= self.now_ms:
            due.pop(0)
            host.persist_one()

    def collect(self, member: int, host: Host) -> None:
        host.drain()
        due = self.disks[member]
        while len(due) < len(host.writing):
            due.append(self.now_ms + self.random.choice((0, STEP_MS, 3 * STEP_MS)))
        for message in host.sent:
            for _ in range(1 + (self.random.random() < self.double)):
                if self.random.random() >= self.loss and (message.sender, message.to) not in self.blocked:
                    delay = self.random.randrange(0, 800) if self.random.random() < self.late else 0
                    self.sequence += 1
                    heapq.heappush(self.network, (self.now_ms + delay, self.sequence, message))
        host.sent = []
        for answer in host.reads:
            self.answers[answer.token] += 1
            if not answer.refused:
                self.seen["elsewhere" if host.role is not Role.LEADER else "at the leader"] += 1
                floor = self.floors[answer.token]
                if answer.index < floor:
                    raise AssertionError(
                        f"at {self.now_ms} ms replica {member} was told {answer.index} for read {answer.token}; "
                        f"{floor} was committed before it was asked"
                    )
        host.reads = []

    def deliver(self) -> None:
        waiting = []
        for _ in range(10):
            while self.network and self.network[0][0] <= self.now_ms:
                item = heapq.heappop(self.network)
                message = item[2]
                if message.to in self.paused:
                    waiting.append(item)
                else:
                    host = self.hosts[message.to]
                    host.step(message)
                    self.collect(message.to, host)
        for item in waiting:
            heapq.heappush(self.network, item)

    def check(self) -> None:
        self.checker.check([host.core for host in self.hosts.values()])
        self.seen["asleep"] += any(host.core.status().quiesced for host in self.hosts.values())

    def heal(self) -> None:
        self.blocked.clear()
        self.loss = self.late = 0
        self.paused = dict.fromkeys(self.paused, self.now_ms)
        self.stalled = dict.fromkeys(self.stalled, self.now_ms)
        for host in self.hosts.values():
            for other in self.hosts:
                host.core.connection(other, closed=False)


def go(seed: int, elapsed_ms: int = 2000) -> World:
    world = World(seed)
    try:
        world.run(elapsed_ms, faults=True)
        world.heal()
        world.run(1500, faults=False)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    wrong = {token: world.answers[token] for token in world.floors if world.answers[token] != 1}
    if wrong:
        raise AssertionError(f"seed {seed}: reads with another number of answers than one: {wrong}")
    if not any(host.role is Role.LEADER for host in world.hosts.values()):
        raise AssertionError(f"seed {seed}: nobody leads after healing")
    return world


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_reads_never_go_back(first: int) -> None:
    for seed in range(first, first + 20):
        go(seed)


def test_the_random_reads_reach_what_they_should() -> None:
    seen: Counter[str] = Counter()
    for seed in range(1000, 1020):
        world = go(seed)
        seen += world.seen
        seen["terms"] += max(host.term for host in world.hosts.values())
        seen["refused"] += len(world.floors) - world.seen["elsewhere"] - world.seen["at the leader"]
    assert all(seen[name] > least for name, least in REACHED.items()), seen


REACHED = {"elsewhere": 100, "at the leader": 100, "transfers": 5, "asleep": 20, "terms": 40, "refused": 100}
