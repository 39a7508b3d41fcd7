"""Some replicas of a data group that compare what they have; which of them talk is up to the test."""

from __future__ import annotations

from paramserver.shard.options import LeaderOptions
from paramserver.shard.reads import BlockRead, Value, Waiter
from tests.unit.shard.kit import MODEL, PLACEMENT, Node, Rank, started


class Replicas:
    """Replica 1 leads, and a rank pushes to it."""

    def __init__(self, count: int = 3, *, ranks: int = 1, **spec: object) -> None:
        self.options = LeaderOptions(scrub_period_ms=1000)
        voters = tuple(range(1, count + 1))
        leader, self.spec = started(ranks=ranks, options=self.options, voters=voters, **spec)
        self.nodes = {1: leader}
        for replica in voters[1:]:
            node = Node(leader.log, replica, options=self.options, voters=voters)
            node.leader.leader_changed(1, 1)
            node.apply()
            self.nodes[replica] = node
        self.leads = 1
        self.rank = Rank(leader, self.spec)
        self.now_ms = 0

    def __getitem__(self, replica: int) -> Node:
        return self.nodes[replica]

    @property
    def leader(self) -> Node:
        return self.nodes[self.leads]

    def apply(self) -> None:
        """Everywhere, but where a state that is not to be trusted stands still; nobody talks."""
        self.leader.settle()
        for node in self.nodes.values():
            if not node.distrusted:
                node.apply()

    def talk(self, *replicas: int) -> None:
        """Notes of these (all) reach the leader, and what is reported reaches whom it is for."""
        for replica in replicas or tuple(self.nodes):
            while replica != self.leads and (note := self.nodes[replica].leader.note()):
                self.leader.leader.noted(replica, note)
        while any(node.reports for node in self.nodes.values()):
            for sender, node in self.nodes.items():
                sent, node.reports[:] = list(node.reports), []
                for to, content in sent:
                    if sender in (replicas or self.nodes) and to in (replicas or self.nodes):
                        self.nodes[to].leader.noted(sender, content)

    def step(self, step: int, *blocks: int) -> None:
        self.rank.push(step, *(blocks or (0, 1, 2)))
        self.apply()

    def pass_time(self, ms: int = 1000) -> None:
        for _ in range(0, ms, 100):
            self.now_ms += 100
            for node in self.nodes.values():
                node.leader.tick(self.now_ms)
            self.talk()

    def rebuild(self, replica: int, *, after: int) -> None:
        """What `GroupHandle.distrust` leads to."""
        node = self.nodes[replica]
        chunks = (memoryview(chunk).cast("B") for chunk in self.nodes[after].machine.snapshot())
        node.machine.restore(iter([memoryview(bytes(chunk)) for chunk in chunks]))
        node.applied = self.nodes[after].applied
        node.distrusted.clear()
        node.leader.restored(node.applied)

    def read(self, replica: int, block: int = 0, version: int = 1) -> Value | Waiter:
        want = BlockRead(model=MODEL, generation=1, placement_epoch=PLACEMENT, block=block, version=version)
        return self.nodes[replica].leader.read(want, lambda: None)

    def new_leader(self, replica: int, term: int) -> None:
        self.leader.leader.deposed(term)
        self.leads = replica
        for each, node in self.nodes.items():
            node.leader.leader_changed(replica, term)
            if each == replica:
                node.leader.leading(term)
