"""A worker of the simulated cluster: the real client (discovery, session, group 0, streams, retries) in a training loop
that may die anywhere and come back with its session.

Owns the lives of one rank's process. What it checks: each version of the weights that it is given has the bits of the
reference run, whoever served it; and while it trains, what a `Reader` checks. Must not know: what servers do.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

import numpy as np

from consensus.core.interface import NodeId
from consensus.simulation.cluster import Cluster
from consensus.simulation.errors import Violated
from consensus.simulation.loop import VirtualLoop, virtual_loop
from consensus.simulation.node import CLUSTER
from consensus.simulation.profile import between
from consensus.simulation.schedule import MS, stream
from paramserver.lab.simulation.calls import Caller, Service, SimulatedNetwork, address_of
from paramserver.lab.simulation.course import Course
from paramserver.lab.simulation.line import Line
from paramserver.lab.simulation.reader import Reader
from paramserver.lab.simulation.reference import Training
from paramserver.wire.frames import PushKind
from worker.catalogue import Catalogue, Description
from worker.engine import Engine
from worker.errors import FailedPrecondition, NotFound
from worker.initialize import Initializer
from worker.membership import Cluster as KnownCluster
from worker.membership import Discovery, Watchers
from worker.retry import Budget
from worker.routing import Routes
from worker.session import Session
from worker.tensors import Tensors

THINK_MS = (0, 20)
REST_S = 0.2
"""How often one that rests looks whether there is more to do."""
STEP_TIMEOUT_S = 10_000.0
"""Longer than any run: that a step ends is for the run's own bound to judge."""


class World(Protocol):
    cluster: Cluster

    comes_and_goes: bool
    """The model is loaded and deleted meanwhile."""

    @property
    def training(self) -> Training: ...

    def service(self, node: NodeId) -> Service | None: ...

    def line(self, line: Line) -> None: ...

    def course(self, model: int) -> Course: ...


class SimulatedWorker:
    def __init__(self, world: World, rank: int) -> None:
        self.rank = rank
        self.life = 0
        self.step = 0
        """Steps this rank has seen the end of, as far as its present life knows."""
        self.training = False
        """It holds its rank and trains."""
        self.model = 0
        """Which one it trains: the id."""
        self.name = f"rank {rank}"
        self._world = world
        self._random = stream(world.cluster.seed, self.name)
        self._session = Session(
            CLUSTER.hex(), self._random.randbytes(16), self._random.randbytes(32), starts=0, rank=rank
        )
        self._closed = False
        self._loops: list[VirtualLoop] = []
        """Kept, so that what was cut off in the middle is not tidied up at a moment of the collector's choosing."""

    @property
    def done(self) -> bool:
        if not self.training:
            return False
        goal = self._world.course(self.model).goal
        return goal is not None and self.step >= goal

    def start(self) -> None:
        life = self.life
        scheduler = self._world.cluster.scheduler
        self._session = replace(self._session, starts=self._session.starts + 1)

        def later(delay_us: int, action: object) -> None:
            scheduler.after(delay_us, lambda: action() if self.life == life else None)  # type: ignore[operator]

        loop = virtual_loop(later, lambda: scheduler.now_us)
        self._loops.append(loop)
        caller = Caller(
            self._world.cluster,
            self.name,
            self._random,
            later=later,
            service=self._world.service,
            keep=self._world.line,
        )
        self._world.cluster.trace.add(self.name, f"starts life {life}")
        with loop.running():
            self._task = loop.create_task(self._run(SimulatedNetwork(caller)), name=self.name)
        self._task.add_done_callback(self._ended)

    def die(self) -> None:
        self.life += 1
        self.training = False
        self._world.cluster.trace.add(self.name, "is killed")

    def close(self) -> None:
        """The simulation is over."""
        self._closed = True
        for loop in self._loops:
            loop.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._closed:
            return
        error = None if task.cancelled() else task.exception()
        raise Violated(f"{self.name} ended by itself: {error!r}") from error

    # --- one life -----------------------------------------------------------------------------------------------------

    async def _run(self, network: SimulatedNetwork) -> None:
        world = self._world
        routes = Routes()
        addresses = [address_of(node) for node in world.cluster.nodes]
        cluster = await Discovery(network, addresses).run(routes)
        watchers = Watchers(network, cluster, routes, self.name)
        watchers.start()
        catalogue = Catalogue(network, cluster, routes, self._session, self.name)
        parts = (network, cluster, routes, watchers, catalogue)
        while True:
            try:
                await self._open_and_train(*parts)
            except (NotFound, FailedPrecondition) as gone:
                if not world.comes_and_goes:
                    raise
                self.training = False
                world.cluster.trace.add(self.name, f"opens the model again: {gone}")
                world.cluster.counts["rank: opened again"] += 1

    async def _open_and_train(
        self,
        network: SimulatedNetwork,
        cluster: KnownCluster,
        routes: Routes,
        watchers: Watchers,
        catalogue: Catalogue,
    ) -> None:
        world, training = self._world, self._world.training
        described = await catalogue.create(training.spec)
        initial = training.layout.unflatten(training.initial)
        initializer = Initializer(network=network, cluster=cluster, routes=routes, catalogue=catalogue)
        described = await initializer.run(described, initial)
        engine = Engine(
            network=network,
            cluster=cluster,
            routes=routes,
            watchers=watchers,
            catalogue=catalogue,
            model=described,
            codec=training.codecs.push[self.rank],
            weights_codec=training.codecs.weights[self.rank],
        )
        reading: asyncio.Task[None] | None = None
        try:
            await engine.claim(self.rank)
            tensors = Tensors(training.layout)
            await engine.pull(tensors, version=engine.step)
            course = world.course(described.model)
            self.model, self.step, self.training = described.model, engine.step, True
            reading = self._read(network, cluster, course, described)
            await self._train(engine, tensors, course)
        finally:
            if reading is not None:
                reading.remove_done_callback(self._ended)
                reading.cancel()
            await engine.close(release=False)

    def _read(
        self, network: SimulatedNetwork, cluster: KnownCluster, course: Course, described: Description
    ) -> asyncio.Task[None]:
        reader = Reader(
            course,
            self.name,
            stream(course.cluster.seed, f"reads of {self.name}, life {self.life}"),
            network=network,
            known=cluster,
            model=described,
        )
        reading = asyncio.create_task(reader.run(), name=f"reads of {self.name}")
        reading.add_done_callback(self._ended)
        return reading

    async def _train(self, engine: Engine, tensors: Tensors, course: Course) -> None:
        training = course.training
        clock = asyncio.get_running_loop().time
        while True:
            step = engine.step
            if tensors.flat.tobytes() != training.seen(self.rank, step).tobytes():
                raise Violated(f"{self.name} begins step {step} with weights that are not version {step}")
            await asyncio.sleep(between(self._random, THINK_MS) * MS / 1_000_000)
            while course.goal is not None and step >= course.goal:
                await asyncio.sleep(REST_S)
                engine.check()
            gradient = training.gradient(self.rank, step, tensors.flat)
            kind = training.kind(self.rank, step, 0)
            tensors.flat = np.full_like(tensors.flat, np.nan)
            engine.begin(step, kind, None if kind is PushKind.SKIP else gradient, tensors)
            await engine.wait(Budget(STEP_TIMEOUT_S, f"step {step}", clock))
            self.step = engine.step
            course.step_done(self.rank, self.step)
