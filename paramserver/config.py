"""What a server is told at its start.

Owns `NodeConfig`. Invariant: a configuration in which `validate` finds no problem can be started, as far as that can be
known without touching ports and disks. Must not know: command lines, how anything is built.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from consensus.core.raft.config import RaftConfig
from consensus.runtime.options import RuntimeOptions, default_raft
from consensus.storage.options import WalOptions
from paramserver.catalogue.bootstrap import GROUPS_MAX, NODES_MAX
from paramserver.catalogue.leases import LEASE_MS
from paramserver.rpc.limits import Limits
from paramserver.shard.options import LeaderOptions
from paramserver.wire.zones import zone_problems

LEASE_MS_MIN, LEASE_MS_MAX = 1_000, 3_600_000
NODE_MAX = 65_535
TOKEN_CHARACTERS_MAX = 256
DURABILITY = "fsync"
REPLICATED = "replicated"
SOCKET_PATH_BYTES_MAX = 107
CALLS_MAX = 6144
"""Of clients; the rest up to what gRPC is told to take is kept for nodes among each other."""
STREAM_WINDOW_BYTES_MAX = 64 << 20
WINDOW_BYTES_MIN = 64 << 10
READER_TIMEOUT_MS_MIN = 10
NUMBER_MAX = 2**40
FOLLOWER_BEHIND_BYTES = 32 << 20
"""A follower hears of commits later than its leader knows of them: twice what is on its way to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """One server. Times in milliseconds, sizes in bytes."""

    node: int
    """This server's number in `members`."""
    members: Mapping[int, str] = field(default_factory=dict)
    """Node -> host:port, the same list on every node: the cluster's id derives from it (RULES I2). It stays what the
    cluster was begun with, whoever comes and goes later."""
    join: str = ""
    """host:port where this server is reached, which was not there at the beginning: it waits until it is admitted."""
    data_dir: str = ""
    """This node's folder. Made when it is missing; one of another node or cluster is refused."""
    token: str = ""
    """Sets clusters with the same member list apart."""
    groups: int = 0
    """Data groups, over which the blocks of models are spread; 0: as many as members. The same on every node, and for
    good: the cluster's id derives from it too."""
    listen: str = ""
    """host:port to bind; this node's address in `members` when empty."""
    peer_listen: str = ""
    """host:port to bind for what nodes say to each other; `listen`'s host and any free port when empty: peers are told
    the port when they first meet."""
    dial: Mapping[str, str] = field(default_factory=dict)
    """Address of another node as everybody knows it -> where this node dials instead (a proxy, a tunnel). Only how this
    node reaches others: what the cluster's id derives from, and what workers are told, stay as they are."""
    allow_remote: bool = False
    """Bind an address that is not loopback. Nothing is encrypted or authenticated yet: only in a network you trust."""
    fault_injection: str = ""
    """Path of a Unix socket on which whoever may open it makes this server's disk, clock and interpreter fail. For
    tests of the whole system only; refused unless the server binds loopback, and shown in its status."""
    heartbeat_ms: int = 50
    election_timeout_ms: int = 300
    """A follower that hears nothing for this long, and a random part of its spread more, campaigns."""
    prefer_after_ms: int = 5000
    """A leader hands its group to the first of the group's voters when that has been well for this long; 0: never."""
    lease_ms: int = LEASE_MS
    """How long a silent worker keeps its rank."""
    zone: str = ""
    """Where this server stands, for workers that pull from near replicas; empty: nowhere in particular."""
    durability: str = DURABILITY
    """When an update is acknowledged (RULES W8): `fsync`, once a majority has it on its disks; `replicated`, once a
    majority has written it, which a machine that stops may forget. The same on every node: each judges for itself what
    it may have forgotten, so that a mixture promises as little as its weakest majority."""
    segment_bytes: int = 64 << 20
    """A segment of the write-ahead log."""
    snapshot_log_bytes_min: int = 8 << 20
    """No snapshot before the log since the last one is this long."""
    snapshot_log_bytes_max: int = RuntimeOptions().snapshot_log_bytes_max
    """A snapshot when the log since the last one is this long, or as long as the state where that is larger, though it
    be less than four times the state: so much disk the log of a group takes, and a start reads all of it."""
    window_blocks: int = LeaderOptions().window_blocks
    """Blocks of a model and group whose sums may be open at once; a rank that is further ahead is held back."""
    window_bytes: int = LeaderOptions().window_bytes
    """Contributions in open sums, of all groups and models here."""
    uncommitted_bytes_max: int = 64 << 20
    """What a group has proposed and not committed; beyond it sums wait. A follower holds as much that is not known
    committed, and FOLLOWER_BEHIND_BYTES more."""
    stream_window_bytes: int = 4 << 20
    """What may arrive on a stream ahead of being read. A long link carries at most this much a round trip."""
    streams_max: int = Limits().streams_max
    """Push streams of this node."""
    pulls_max: int = Limits().pulls_max
    """Pulls served at a time, waiting ones too."""
    calls_max: int = Limits().calls_max
    """Calls and streams of clients served at a time."""
    connections_max: int = Limits().connections_max
    """Connections of clients that are served at a time."""
    pulls_bytes_max: int = Limits().pulls_bytes_max
    """Blocks being written to pulls."""
    replies_bytes_max: int = Limits().replies_bytes_max
    """Weights that wait to be written to push streams."""
    reader_timeout_ms: int = Limits().reader_timeout_ms
    """A reader that takes nothing of what waits for it for so long is ended."""

    @property
    def address(self) -> str:
        """Where other nodes and workers reach this one."""
        return self.join or self.members.get(self.node, "")

    @property
    def bind(self) -> str:
        return self.listen or self.address

    @property
    def peer_bind(self) -> str:
        """Port 0: any."""
        return self.peer_listen or f"{self.bind.rpartition(':')[0]}:0"

    def validate(self) -> list[str]:
        """All problems at once, a line each."""
        problems = [*self._identity_problems(), *self._address_problems()]
        if not self.data_dir:
            problems.append("data_dir is missing: name the folder where this node keeps its log")
        if not LEASE_MS_MIN <= self.lease_ms <= LEASE_MS_MAX:
            problems.append(f"lease_ms is {self.lease_ms}; expected {LEASE_MS_MIN} to {LEASE_MS_MAX}")
        problems += self._durability_problems()
        problems += self._flow_problems()
        if self.zone:
            problems += [str(problem) for problem in zone_problems("zone", self.zone)]
        return problems + self._time_problems() + self._size_problems()

    def runtime_options(self) -> RuntimeOptions:
        usual = RuntimeOptions()
        return RuntimeOptions(
            raft=self._raft(),
            asleep_heartbeat_ms=max(self.heartbeat_ms, min(2 * self.heartbeat_ms, self.election_timeout_ms // 2)),
            tick_ms=min(usual.tick_ms, max(1, self.heartbeat_ms // 2)),
            stall_ms=max(1, self.election_timeout_ms // 2),
            prefer_after_ms=self.prefer_after_ms,
            storage_stall_ms=self.election_timeout_ms,
            transfer_ms=max(usual.transfer_ms, 3 * self.election_timeout_ms),
            snapshot_log_bytes_min=self.snapshot_log_bytes_min,
            snapshot_log_bytes_max=self.snapshot_log_bytes_max,
            applying_bytes_max=4 * self.uncommitted_bytes_max,
        )

    def wal_options(self) -> WalOptions:
        usual = WalOptions()
        return WalOptions(
            segment_bytes=self.segment_bytes, reserve_bytes=min(usual.reserve_bytes, max(0, self.segment_bytes))
        )

    def leader_options(self) -> LeaderOptions:
        return LeaderOptions(
            window_blocks=self.window_blocks, window_bytes=self.window_bytes, streams_max=self.streams_max
        )

    def limits(self) -> Limits:
        usual = Limits()
        return Limits(
            connections_max=self.connections_max,
            calls_max=self.calls_max,
            streams_max=self.streams_max,
            pulls_max=self.pulls_max,
            pulls_bytes_max=self.pulls_bytes_max,
            replies_bytes_max=self.replies_bytes_max,
            stream_replies_bytes_max=min(usual.stream_replies_bytes_max, self.replies_bytes_max),
            reader_timeout_ms=self.reader_timeout_ms,
            reader_patience_ms=min(usual.reader_patience_ms, self.reader_timeout_ms),
        )

    def _raft(self) -> RaftConfig:
        usual = default_raft()
        # What spreads campaigns scales with the timeout, so that a slower cluster elects as calmly as a fast one.
        scale = self.election_timeout_ms / usual.election_timeout_ms
        return replace(
            usual,
            heartbeat_ms=self.heartbeat_ms,
            election_timeout_ms=self.election_timeout_ms,
            election_spread_ms=max(1, round(usual.election_spread_ms * scale)),
            place_delay_ms=max(1, round(usual.place_delay_ms * scale)),
            uncommitted_bytes_max=self.uncommitted_bytes_max,
            follower_bytes_max=self.uncommitted_bytes_max + FOLLOWER_BEHIND_BYTES,
        )

    def _identity_problems(self) -> list[str]:
        problems = []
        if not 1 <= self.node <= NODE_MAX:
            problems.append(f"node is {self.node}; expected 1 to {NODE_MAX}")
        elif self.members and self.node not in self.members and not self.join:
            known = ", ".join(str(node) for node in sorted(self.members))
            problems.append(
                f"node {self.node} is not in members; they are {known}; a server that comes later names its own "
                "address with join"
            )
        if not self.members:
            problems.append("members is missing: 1=host:port,2=host:port,..., the same list on every node")
        elif len(self.members) > NODES_MAX:
            problems.append(f"members has {len(self.members)} nodes; at most {NODES_MAX} are possible")
        odd = [node for node in self.members if not 1 <= node <= NODE_MAX]
        problems += [f"node {node} in members: expected 1 to {NODE_MAX}" for node in odd]
        if not 0 <= self.groups <= GROUPS_MAX:
            problems.append(f"groups is {self.groups}; expected 1 to {GROUPS_MAX}, or 0 for as many as members")
        if len(self.token) > TOKEN_CHARACTERS_MAX:
            problems.append(f"token has {len(self.token)} characters; at most {TOKEN_CHARACTERS_MAX} are possible")
        return problems

    def _address_problems(self) -> list[str]:
        problems = []
        named = [(f"address of node {node}", address) for node, address in sorted(self.members.items())]
        named += [("dial", address) for pair in sorted(self.dial.items()) for address in pair]
        if self.listen:
            named.append(("listen", self.listen))
        if self.peer_listen:
            named.append(("peer_listen", self.peer_listen))
        if self.join:
            named.append(("join", self.join))
        for what, address in named:
            if split_address(address) is None:
                problems.append(f"{what} is {address!r}; expected host:port with a port from 1 to 65535")
        if len(set(self.members.values())) != len(self.members):
            problems.append("members: two nodes have the same address")
        taken = [node for node, address in self.members.items() if address == self.join and node != self.node]
        if taken:
            problems.append(f"join is {self.join}, which is the address of node {taken[0]} in members")
        for bind in (self.bind, self.peer_listen):
            host = split_address(bind)
            if self.fault_injection and bind and (host is None or not is_loopback(host[0])):
                problems.append(
                    f"fault_injection is for tests on one machine, and {bind} is not loopback; leave it out"
                )
        if len(os.fsencode(self.fault_injection)) > SOCKET_PATH_BYTES_MAX:
            problems.append(
                f"fault_injection is {len(os.fsencode(self.fault_injection))} bytes long; "
                f"the path of a socket has at most {SOCKET_PATH_BYTES_MAX}"
            )
        for bind in (self.bind, self.peer_listen):
            host = split_address(bind)
            if host is None or is_loopback(host[0]) or self.allow_remote:
                continue
            problems.append(
                f"{bind} is not loopback, and nothing is encrypted or authenticated yet; "
                "--allow-remote binds it all the same"
            )
        return problems

    def _time_problems(self) -> list[str]:
        if self.heartbeat_ms < 1 or self.election_timeout_ms < 1:
            return ["heartbeat_ms and election_timeout_ms must be at least 1"]
        if self.heartbeat_ms >= self.election_timeout_ms:
            times = f"heartbeat_ms ({self.heartbeat_ms}) must be below election_timeout_ms ({self.election_timeout_ms})"
            return [f"{times}: several heartbeats should fit into one timeout"]
        return self.runtime_options().validate()

    def _durability_problems(self) -> list[str]:
        if self.durability in (DURABILITY, REPLICATED):
            return []
        return [f"durability is {self.durability!r}; expected {DURABILITY!r} or {REPLICATED!r}"]

    def _flow_problems(self) -> list[str]:
        least = dict.fromkeys(("window_bytes", "uncommitted_bytes_max", "stream_window_bytes"), WINDOW_BYTES_MIN)
        least |= dict.fromkeys(("pulls_bytes_max", "replies_bytes_max"), WINDOW_BYTES_MIN)
        least |= dict.fromkeys(("window_blocks", "streams_max", "pulls_max", "calls_max", "connections_max"), 1)
        least |= {"reader_timeout_ms": READER_TIMEOUT_MS_MIN, "snapshot_log_bytes_max": WINDOW_BYTES_MIN}
        most = {"stream_window_bytes": STREAM_WINDOW_BYTES_MAX, "calls_max": CALLS_MAX}
        problems = []
        for name, low in least.items():
            value, high = getattr(self, name), most.get(name, NUMBER_MAX)
            if not low <= value <= high:
                problems.append(f"{name} is {value}; expected {low} to {high}")
        return problems

    def _size_problems(self) -> list[str]:
        try:
            self.wal_options().validate()
        except ValueError as error:
            return [str(error).partition("; reserve_bytes")[0]]  # follows from segment_bytes
        return []


def split_address(address: str) -> tuple[str, int] | None:
    """(host, port), or None for what is none."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        return None
    if any(c.isspace() or not c.isprintable() or c in "/\\" for c in host):
        return None
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        return None
    return host, int(port)


def is_loopback(host: str) -> bool:
    return host == "localhost" or host == "[::1]" or host.startswith("127.")
