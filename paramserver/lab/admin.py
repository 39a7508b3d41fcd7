"""Questions and wishes put to group 0's leader, wherever it is: nodes, members of groups, moves.

Owns the search for the leader and the session under which a wish is sent, once, however often it has to be repeated
(RULES A4). Invariants: protobuf stops here; what was refused for good is a `Refused` with cause and hint; everything
else is tried again until the time is up. Must not know: command lines.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import grpc

from paramserver.lab.status import ROLES, cause_of, open_channel
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.v1 import paramserver_pb2_grpc as services
from paramserver.wire.errors import ERROR_METADATA_KEY, Reason, Refusal

ATTEMPT_TIMEOUT_S = 5.0
PAUSE_S = 0.1
NODE_STATES = {
    pb.NODE_STATE_UNSPECIFIED: "active",
    pb.NODE_ACTIVE: "active",
    pb.NODE_NO_LEADERS: "no leaders",
    pb.NODE_DRAINING: "draining",
    pb.NODE_REMOVED: "removed",
}


class AdminError(Exception):
    """Root: one line of cause, one of hint.

    AdminError
    ├── Refused      for good: nothing was changed; `code` is the gRPC status by name
    └── Unreachable  nobody who can decide answered in time; what was asked for may have been done
    """

    def __init__(self, cause: str, hint: str = "", *, code: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.hint = hint
        self.code = code


class Refused(AdminError):
    pass


class Unreachable(AdminError):
    pass


@dataclass(frozen=True, slots=True)
class NodeView:
    node: int
    address: str
    node_uuid: str
    state: str
    up: bool
    replicas: int
    leads: int
    knows_directory: bool


@dataclass(frozen=True, slots=True)
class MemberView:
    replica: int
    node: int
    role: str
    match_index: int


@dataclass(frozen=True, slots=True)
class GroupView:
    group: int
    leader_node: int
    term: int
    members: tuple[MemberView, ...]

    def nodes(self) -> tuple[int, ...]:
        return tuple(member.node for member in self.members)


@dataclass(frozen=True, slots=True)
class MoveView:
    move: int
    group: int
    replica: int
    from_node: int
    to_node: int
    stage: str
    cancelled: bool
    why: str
    trouble: str


@dataclass(frozen=True, slots=True)
class LeftoverView:
    """A replica that is no member any more and waits to be deleted."""

    group: int
    replica: int
    node: int
    trouble: str


@dataclass(frozen=True, slots=True)
class ClusterView:
    """As group 0's leader sees it now."""

    directory: int
    nodes: tuple[NodeView, ...]
    groups: tuple[GroupView, ...]
    moves: tuple[MoveView, ...]
    leftovers: tuple[LeftoverView, ...]

    def node(self, number: int) -> NodeView | None:
        return next((node for node in self.nodes if node.node == number), None)

    def group(self, number: int) -> GroupView | None:
        return next((group for group in self.groups if group.group == number), None)


@dataclass(frozen=True, slots=True)
class Shaped:
    """What a wish came to."""

    steps: tuple[str, ...]
    arithmetic: tuple[str, ...]
    moves: tuple[int, ...]


@dataclass(slots=True)
class Admin:
    """`servers`: some of the cluster; one that answers is enough. One wish at a time."""

    servers: Sequence[str]
    timeout_s: float = 30.0
    _leader: str = ""
    _session: int = 0
    _sequence: int = 0
    _client: bytes = field(default_factory=lambda: secrets.token_bytes(16))
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def members(self) -> ClusterView:
        return _view(self._ask("Members", pb.MembersRequest()))

    def wish(self, request: pb.ReshapeRequest, *, dry_run: bool = False) -> Shaped:
        """`request` names one kind of wish; the rest of it is filled in here."""
        request.dry_run = dry_run
        if not dry_run:
            self._open_session()
            self._sequence += 1
            request.session, request.sequence, request.secret = self._session, self._sequence, self._secret
        answer = self._ask("Reshape", request)
        return Shaped(tuple(answer.steps), tuple(answer.arithmetic), tuple(answer.moves))

    def _open_session(self) -> None:
        if not self._session:
            request = pb.OpenSessionRequest(
                client=self._client, secret_digest=sha256(self._secret).digest(), name="paramserver command line"
            )
            self._session = self._ask("OpenSession", request).session

    def _ask(self, method: str, request: Any) -> Any:
        """Of group 0's leader. The same request again is the same command."""
        deadline = time.monotonic() + self.timeout_s
        waiting = list(dict.fromkeys([self._leader, *self.servers])) if self._leader else list(self.servers)
        said: dict[str, str] = {}
        turn = 0
        while True:
            address = waiting[turn % len(waiting)]
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                reasons = "; ".join(f"{server}: {cause}" for server, cause in said.items())
                raise Unreachable(
                    f"group 0's leader did not answer within {self.timeout_s:g} s ({reasons})",
                    "paramserver status --servers ... shows who answers; group 0 needs a majority of its nodes",
                )
            try:
                answer = self._call(address, method, request, min(left_s, ATTEMPT_TIMEOUT_S))
            except Refusal as refusal:
                if not refusal.retryable and refusal.code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
                    raise Refused(refusal.message, refusal.hint, code=refusal.code) from None
                said[address] = refusal.message
                leader = refusal.leader_address
                if refusal.reason is Reason.NOT_LEADER and leader and leader != address:
                    waiting = [leader, *(one for one in waiting if one != leader)]
                    turn = 0
                    if said.get(leader):
                        time.sleep(min(PAUSE_S, left_s))
                    continue
                turn += 1
                if turn % len(waiting) == 0:
                    time.sleep(min(PAUSE_S, left_s))
                continue
            self._leader = address
            return answer

    def _call(self, address: str, method: str, request: Any, timeout_s: float) -> Any:
        with open_channel(address) as channel:
            stub: Any = services.CatalogueStub(channel) if method == "OpenSession" else services.AdminStub(channel)
            try:
                return getattr(stub, method)(request, timeout=timeout_s)
            except grpc.RpcError as error:
                raise _refusal(error) from None


def _refusal(error: grpc.RpcError) -> Refusal:
    if not isinstance(error, grpc.Call):
        return Refusal(Reason.NOT_READY, str(error))
    detail = next((value for key, value in error.trailing_metadata() or () if key == ERROR_METADATA_KEY), None)
    if isinstance(detail, bytes):
        return Refusal.from_detail(error.code().name, error.details() or "", detail)
    return Refusal.from_detail(error.code().name, cause_of(error), None)


def _view(message: pb.MembersDescription) -> ClusterView:
    groups = tuple(
        GroupView(
            group.group,
            group.leader_node,
            group.term,
            tuple(
                MemberView(one.replica, one.node, ROLES.get(one.role, "unknown"), one.match_index)
                for one in group.members
            ),
        )
        for group in message.groups
    )
    up, behind = set(message.up), set(message.behind)
    nodes = tuple(
        NodeView(
            node=node.node,
            address=node.address,
            node_uuid=node.node_uuid.hex(),
            state=NODE_STATES.get(node.state, "unknown"),
            up=node.node in up,
            replicas=sum(group.nodes().count(node.node) for group in groups),
            leads=sum(group.leader_node == node.node for group in groups),
            knows_directory=node.node not in behind,
        )
        for node in message.nodes
    )
    moves = tuple(
        MoveView(
            one.move, one.group, one.replica, one.from_node, one.to_node, one.stage, one.cancelled, one.why, one.trouble
        )
        for one in message.moves
    )
    leftovers = tuple(LeftoverView(one.group, one.replica, one.node, one.trouble) for one in message.leftovers)
    return ClusterView(message.directory, nodes, groups, moves, leftovers)
