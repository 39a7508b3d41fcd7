"""The whole system as the load of a simulated cluster: group 0 with its real leader, data groups, services, and real
clients that create a model, initialize it, claim ranks, train, die and come back.

Owns the model's course and the verdict: on every replica the final state is the reference run's, bit by bit; group 0's
replicas are equal; there is one model, and at most one session a worker. Must not know: how faults are made.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from consensus.core.interface import Configuration, GroupId, NodeId
from consensus.runtime.interface import GroupListener, StateMachine
from consensus.simulation.case import Case, draw_options
from consensus.simulation.cluster import Cluster
from consensus.simulation.errors import Violated
from consensus.simulation.node import GroupSpec, SimulatedNode
from consensus.simulation.plans import draw_faults
from consensus.simulation.profile import draw_profile
from consensus.simulation.report import Report
from consensus.simulation.schedule import MS, stream
from consensus.simulation.wire import through_codec
from paramserver.catalogue.bootstrap import CATALOGUE_GROUP
from paramserver.catalogue.machine import CatalogueMachine
from paramserver.catalogue.placement import Move
from paramserver.catalogue.state import Model
from paramserver.lab.simulation.application import draw_codecs, draw_spec, shard_digest
from paramserver.lab.simulation.calls import Service
from paramserver.lab.simulation.changer import SimulatedChanger
from paramserver.lab.simulation.course import Course
from paramserver.lab.simulation.line import Line, Lines
from paramserver.lab.simulation.operator import SimulatedOperator
from paramserver.lab.simulation.rank import draw_deaths
from paramserver.lab.simulation.reference import Training
from paramserver.lab.simulation.server import SimulatedServer
from paramserver.lab.simulation.worker import SimulatedWorker
from paramserver.shard.machine import ShardMachine
from paramserver.shard.options import LeaderOptions
from paramserver.v1 import paramserver_pb2 as pb
from paramserver.wire.checksum import digest
from paramserver.wire.frames import PushKind

STEPS_AFTER = 4
COUNTED = (
    "pushes_repeated",
    "pushes_duplicate",
    "sums_dropped",
    "streams_parked",
    "updates_refused",
    "updates_held",
)


class WholeSteps(Training):
    """A worker's client pushes a step or skips it; it leaves no single block out."""

    def kind(self, rank: int, step: int, block: int) -> PushKind:
        return PushKind.SKIP if super().kind(rank, step, block) is PushKind.SKIP else PushKind.GRADIENT


class SystemLoad:
    """`consensus.simulation.cluster.Application`."""

    def __init__(
        self, *, seed: int, load_ms: int, reshaped: bool = False, changing: bool = False, keeping: bool = False
    ) -> None:
        """`reshaped`: an operator moves replicas meanwhile; `changing`: somebody changes the learning rate; `keeping`:
        and loads what was saved, and deletes the model."""
        source = stream(seed, "training")
        self.training = WholeSteps(seed, *draw_codecs(seed, draw_spec(source)))
        self.lease_ms = source.choice((2500, 5000))
        self.leader_options = LeaderOptions(window_blocks=source.choice((1, 2, 3, 16)))
        self._deaths = draw_deaths(source, self.training.spec.ranks, load_ms)
        self._seed = seed
        self.directories: dict[NodeId, pb.Directory] = {}
        self._servers: dict[NodeId, SimulatedServer] = {}
        self._all_servers: list[SimulatedServer] = []
        """Of all lives; kept, so that what was cut off is tidied up at the end of the run and not before."""
        self._workers: list[SimulatedWorker] = []
        self._reshaped = reshaped
        self._operator: SimulatedOperator | None = None
        self._changing = changing or keeping
        self.comes_and_goes = keeping
        self._changer: SimulatedChanger | None = None
        self._pinned: set[tuple[int, int, int]] = set()
        self._courses: dict[int, Course] = {}
        """Of every model there ever was, by id."""
        self._files: dict[tuple[int, tuple[tuple[int, float], ...]], Training] = {}
        """What was offered to be loaded: step and rates -> the run that it was saved of."""
        self._lines = Lines()
        self._healed = False

    # --- Application ------------------------------------------------------------------------------------------------

    def machine(self, node: NodeId, group: GroupId) -> tuple[StateMachine, GroupListener]:
        return self._server(node).machine(group)

    def _server(self, node: NodeId) -> SimulatedServer:
        """Of its present life."""
        server = self._servers.get(node)
        if server is None or server.life != self.cluster.nodes[node].life:
            layout = {spec.group: spec.configuration for spec in self.cluster.groups}
            server = self._servers[node] = SimulatedServer(self, node, layout)
            self._all_servers.append(server)
        return server

    def begin(self, cluster: Cluster) -> None:
        # Back-offs draw from the module's own source.
        random.seed(f"{self._seed}/jitter")
        self.cluster = cluster
        cluster.counts.update(self.training.codecs.met(self.training.spec))
        self._workers = [SimulatedWorker(self, rank) for rank in range(self.training.spec.ranks)]
        for worker in self._workers:
            cluster.scheduler.after((50 + worker.rank * 13) * MS, worker.start)
        if self._reshaped:
            self._operator = SimulatedOperator(self, list(cluster.nodes), [spec.group for spec in cluster.groups])
            self._operator.start()
        if self._changing:
            self._changer = SimulatedChanger(self, keeping=self.comes_and_goes)
            cluster.scheduler.after(100 * MS, self._changer.start)
        for at_ms, rank, away_ms in self._deaths:
            cluster.scheduler.at(at_ms * MS, partial(self._kill, self._workers[rank], away_ms))

    def running(self, node: SimulatedNode) -> None:
        self._server(node.node).begin()

    def stopped(self, node: NodeId) -> None:
        server = self._servers.get(node)
        if server is not None:
            for leader in server.shards.values():
                for name in COUNTED:
                    self.cluster.counts[name.replace("_", " ")] += leader.counters[name]
        self._lines.node_gone(node)

    def crash_clients(self, source: random.Random) -> None:
        """Workers have deaths of their own."""

    def heal(self) -> None:
        self._healed = True
        for course in self._courses.values():
            course.goal = course.steps + STEPS_AFTER
        if self._operator is not None:
            self._operator.settle()
        if self._changer is not None:
            self._changer.settle()

    def done(self) -> bool:
        if self.comes_and_goes and self._some_away:
            return all(worker.done for worker in self._workers)
        changed = self._changer is None or self._changer.done
        trained = all(worker.done for worker in self._workers)
        return trained and changed and not self._pins() and not self._comes_or_goes() and not self._underway()

    @property
    def _some_away(self) -> bool:
        """A part of the nodes is healed later: what needs group 0 may have to wait for them."""
        return len(self.cluster._whole) < len(self.cluster.nodes)

    def waits_for(self) -> str:
        waiting = [
            f"{worker.name} {'at step ' + str(worker.step) if worker.training else 'without its rank'}"
            for worker in self._workers
            if not worker.done
        ]
        if self._changer is not None and not self._changer.done:
            waiting.append("changes of the model")
        waiting += self._pins() + self._comes_or_goes()
        return ", ".join(waiting + self._underway())

    def _comes_or_goes(self) -> list[str]:
        """What a load or a deletion leaves to be done."""
        if not self.comes_and_goes:
            return []
        leader = self.cluster.leader_of(CATALOGUE_GROUP)
        if leader is None or leader not in self._servers:
            return ["a leader of group 0"]
        catalogue = self._servers[leader].catalogue
        now = catalogue.named(self.training.spec.name)
        waiting = [f"model {model.model} to be loaded" for model in catalogue.models.values() if model.loading]
        waiting += [f"groups {sorted(gone.groups)} to delete model {gone.model}" for gone in catalogue.leaving.values()]
        behind = [worker.name for worker in self._workers if now is None or worker.model != now.model]
        return waiting + [f"{name} to open the model again" for name in behind]

    def _pins(self) -> list[str]:
        """Who died while a version was kept for it leaves a pin, which ends by its bound."""
        leader = self.cluster.leader_of(CATALOGUE_GROUP) if self._changing else None
        if leader is None or leader not in self._servers:
            return []
        return [f"{model.pinned} to end" for model in self._servers[leader].catalogue.models.values() if model.pinned]

    def _underway(self) -> list[str]:
        """What of the operator's wishes is not done; while a part of the nodes is away nobody waits for it."""
        if self._operator is None or self._some_away:
            return []
        if not self._operator.idle:
            return ["the operator's wish"]
        leader = self.cluster.leader_of(CATALOGUE_GROUP)
        if leader is None or leader not in self._servers:
            return ["a leader of group 0"]
        placement = self._servers[leader].catalogue.placement
        stuck = [move for move in placement.moves.values() if self._is_kept_out(move)]
        moves = [
            f"move {move.move} of group {move.group} to node {move.to_node}"
            for move in placement.moves.values()
            if move not in stuck
        ]
        moves += [f"replica {one.replica} of group {one.group} to be deleted" for one in placement.leftovers]
        kept = {node for move in stuck for node in self.cluster.roster.nodes_of(move.group)}
        leaving = [node.node for node in placement.nodes.values() if node.then_remove and node.node not in kept]
        moves += [f"node {node} to be removed" for node in leaving if not self._was_told_to_stay(node)]
        return moves

    def _is_kept_out(self, move: Move) -> bool:
        """A damaged disk takes no new replica, nor runs the one made on it (RULES W7): the move waits until somebody
        cancels it or replaces the node, which nobody does here."""
        host = self.cluster.nodes[move.to_node]
        away = bool(host.damaged) and move.group not in host.handles
        return not move.cancelled and (away or host.beyond_repair(move.group))

    def _was_told_to_stay(self, node: NodeId) -> bool:
        """A move of its replicas was cancelled: it keeps them until somebody asks again."""
        roster = self.cluster.roster
        cancelled = self.cluster.counts["wish to cancel granted"] > 0
        return cancelled and any(node in roster.nodes_of(group) for group in roster.groups)

    def digest(self, machine: StateMachine) -> bytes:
        if isinstance(machine, CatalogueMachine):
            return digest(bytes(chunk) for chunk in machine.snapshot())
        return shard_digest(machine)

    def acknowledged(self) -> int:
        steps = sum(course.steps - course.first for course in self._courses.values())
        return steps * self.training.layout.blocks

    def operations_checked(self) -> int:
        counts = self.cluster.counts
        return self.acknowledged() + counts["linearizable reads"] + counts["bounded reads"]

    def check(self) -> None:
        self.cluster.counts["pins"] += len({(model, number) for model, number, _ in self._pinned})
        steps, course = self._workers[0].step, self._courses[self._workers[0].model]
        if steps < course.steps:
            raise Violated(f"a rank saw the end of step {course.steps}, now the model is at {steps}")
        for spec in self.cluster.groups:
            for host in self.cluster.comparable(spec.group):
                node, machine = host.node, host.machines[spec.group].inner
                if isinstance(machine, CatalogueMachine):
                    self._check_catalogue(node, machine)
                elif isinstance(machine, ShardMachine):
                    self._check_shard(node, machine, steps, course)

    def _check_catalogue(self, node: NodeId, machine: CatalogueMachine) -> None:
        models = [model.spec.name for model in machine.models.values()]
        if models != [self.training.spec.name]:
            raise Violated(f"node {node}: group 0 holds the models {models}")
        sessions = sum(machine.session(session) is not None for session in range(1, 10_000))
        if sessions > len(self._workers) + self._reshaped + self._changing:
            raise Violated(f"node {node}: group 0 holds {sessions} sessions of {len(self._workers)} workers")

    def _check_shard(self, node: NodeId, machine: ShardMachine, steps: int, course: Course) -> None:
        for model, shard in machine.shards.items():
            if model != course.model:
                raise Violated(f"node {node}: group {machine.group} keeps model {model}, which was deleted")
            first = shard.info.create.first_block
            for place, published in enumerate(shard.published):
                block = first + place
                if published.version != steps:
                    raise Violated(f"node {node}: block {block} is at version {published.version}, not {steps}")
                expected = course.training.at(steps)[self.training.layout.block_slice(block)]
                if shard.kept[place] is not None and shard.info.steps.pin is None:
                    raise Violated(f"node {node}: block {block} keeps a version that nobody has pinned")
                if getattr(published.weights, "tobytes", bytes)() != expected.tobytes():
                    raise Violated(
                        f"node {node}: block {block}, version {steps}, has other bits than the reference run"
                    )

    def close(self) -> None:
        """The run is over and judged."""
        for worker in self._workers:
            worker.close()
        if self._operator is not None:
            self._operator.close()
        if self._changer is not None:
            self._changer.close()
        for server in self._all_servers:
            server.loop.close()

    # --- World ------------------------------------------------------------------------------------------------------

    def service(self, node: NodeId) -> Service | None:
        server = self._servers.get(node)
        host = self.cluster.nodes[node]
        return server.service if server is not None and host.running and server.life == host.life else None

    def line(self, line: Line) -> None:
        self._lines.add(line)

    def course(self, model: int) -> Course:
        return self._courses[model]

    def offered(self, step: int, rates: tuple[tuple[int, float], ...], training: Training) -> bool:
        """A file of that version of that run is about to be loaded; False if it could be taken for another one."""
        return self._files.setdefault((step, rates), training) is training

    def decided(self, model: Model) -> None:
        if model.pinned is not None:
            self._pinned.add((model.model, model.pinned.number, model.pinned.stage))
        course = self._courses.get(model.model)
        if course is None:
            course = self._courses[model.model] = Course(self.cluster, model, self._run_of(model))
            if self._healed:
                course.goal = course.first + STEPS_AFTER
        course.decided(model)

    def _run_of(self, model: Model) -> Training:
        if model.loaded is None:
            return WholeSteps(self._seed, self.training.spec, self.training.codecs)
        return self._files[model.loaded.step, model.loaded.rates].resumed(model.loaded.step)

    def alarm(self, line: str) -> None:
        raise Violated(f"alarm: {line}")

    def _kill(self, worker: SimulatedWorker, away_ms: int) -> None:
        if self._healed:
            return
        self.cluster.counts["rank killed"] += 1
        worker.die()
        life = worker.life
        self.cluster.scheduler.after(away_ms * MS, lambda: worker.start() if worker.life == life else None)


def lay_out(nodes: Sequence[NodeId]) -> tuple[GroupSpec, ...]:
    """As the bootstrap does: group 0 on the first nodes, a data group a node on three neighbours."""
    homes = [tuple(nodes[:5])]
    homes += [tuple(nodes[(place + i) % len(nodes)] for i in range(min(3, len(nodes)))) for place in range(len(nodes))]
    return tuple(
        GroupSpec(CATALOGUE_GROUP + number, Configuration(voters), {voter: voter for voter in voters})
        for number, voters in enumerate(homes)
    )


def draw_system_case(seed: int, *, nodes: int | None = None) -> Case:
    """The swarm of settings of a seed, for the whole system. Groups follow from the nodes."""
    source = stream(seed, "system case")
    count = nodes or source.choice((1, 2, 3, 3, 3, 4))
    options = replace(draw_options(source, seed), load_ms=source.choice((3000, 5000)), heal_ms_max=30_000)
    profile = draw_profile(source)
    case = Case(seed=seed, nodes=count, groups=count, replicas=3, profile=profile, plan=(), options=options)
    groups = tuple(spec.group for spec in lay_out(case.node_ids))
    from_ms = source.choice((0, 800))
    plan = draw_faults(source, nodes=case.node_ids, groups=groups, duration_ms=options.load_ms, from_ms=from_ms)
    return replace(case, plan=plan)


def run_system_case(case: Case, *, reshaped: bool = False, changing: bool = False, keeping: bool = False) -> Report:
    """The same case gives the same report, trace hash included. `reshaped`: one of the nodes begins with nothing, and
    an operator moves replicas, drains and replaces nodes and hands leaderships over, through all faults. `changing`:
    somebody changes the learning rate, through all the faults; `keeping`: and loads and deletes the model."""
    load = SystemLoad(
        seed=case.seed, load_ms=case.options.load_ms, reshaped=reshaped, changing=changing, keeping=keeping
    )
    cluster = Cluster(
        seed=case.seed,
        nodes=case.node_ids,
        groups=lay_out(case.node_ids[:-1] if reshaped else case.node_ids),
        application=load,
        profile=case.profile,
        plan=case.plan,
        options=case.options,
        wire=through_codec if case.profile.codec else None,
    )
    report = cluster.run()
    load.close()
    return report


def draw_reshaped_case(seed: int, *, nodes: int | None = None) -> Case:
    """The same, on nodes of which one begins with nothing: there are at least two."""
    count = max(2, nodes or stream(seed, "reshaped").choice((3, 4, 4, 5)))
    return draw_system_case(seed, nodes=count)


def run_reshaped_seed(seed: int) -> Report:
    """Bootstrap and train under faults, while replicas move from node to node (FAULTS 22 and 30, in whole)."""
    return run_system_case(draw_reshaped_case(seed), reshaped=True)


def run_changing_seed(seed: int) -> Report:
    """Bootstrap and train under faults, while somebody changes the model."""
    return run_system_case(draw_system_case(seed), changing=True)


def run_keeping_seed(seed: int) -> Report:
    """Bootstrap and train under faults, while somebody saves the model, loads it and deletes it."""
    return run_system_case(draw_system_case(seed), keeping=True)


def run_system_seed(seed: int) -> Report:
    """Bootstrap and train under faults."""
    return run_system_case(draw_system_case(seed))
