"""A cluster that answers the command line from a script, in the place of `paramserver.lab.admin.Admin`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paramserver.lab.admin import AdminError, ClusterView, GroupView, MemberView, MoveView, NodeView, Shaped

SHAPED = Shaped(("group 1: node 1 hands over",), ("group 1 has 3 voters on nodes 1, 2, 3 and needs 2; up: 1, 2",), (7,))


def node(number: int, **fields: Any) -> NodeView:
    shown = NodeView(
        node=number,
        address=f"h:{number}",
        node_uuid="ab" * 16,
        state="active",
        up=True,
        replicas=1,
        leads=0,
        knows_directory=True,
    )
    return replace(shown, **fields)


def group(number: int, leader: int, *nodes: int, learner: int = 0) -> GroupView:
    members = [MemberView(one, one, "voter", 9) for one in nodes]
    if learner:
        members.append(MemberView(65_536, learner, "learner", 3))
    return GroupView(number, leader, 4, tuple(members))


def move(number: int, group: int, from_node: int, to_node: int, **fields: Any) -> MoveView:
    shown = MoveView(
        move=number,
        group=group,
        replica=65_536,
        from_node=from_node,
        to_node=to_node,
        stage="learn",
        cancelled=False,
        why="a test",
        trouble="",
    )
    return replace(shown, **fields)


WHOLE = ClusterView(5, (node(1, leads=1), node(2), node(3)), (group(1, 1, 1, 2, 3),), (), ())


@dataclass
class ScriptedAdmin:
    """`views` are shown one after the other, the last one for ever; one that is an error is raised."""

    views: Sequence[ClusterView | AdminError] = (WHOLE,)
    answer: Shaped | AdminError = SHAPED
    wishes: list[tuple[Any, bool]] = field(default_factory=list)
    asked: int = 0

    def members(self) -> ClusterView:
        view = self.views[min(self.asked, len(self.views) - 1)]
        self.asked += 1
        if isinstance(view, AdminError):
            raise view
        return view

    def wish(self, request: Any, *, dry_run: bool = False) -> Shaped:
        self.wishes.append((request, dry_run))
        if isinstance(self.answer, AdminError):
            raise self.answer
        return self.answer
