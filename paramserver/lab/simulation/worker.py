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
from paramserver.lab.simulation.line import Line
from paramserver.lab.simulation.reader import Reader
from paramserver.lab.simulation.reference import Training
from paramserver.wire.frames import PushKind
from worker.catalogue import Catalogue
from worker.engine import Engine
from worker.initialize import Initializer
from worker.membership import Discovery, Watchers
from worker.retry import Budget
from worker.routing import Routes
from worker.session import Session
from worker.tensors import Tensors

THINK_MS = (0, 20)
STEP_TIMEOUT_S = 10_000.0
"""Longer than any run: that a step ends is for the run's own bound to judge."""


class World(Protocol):
    cluster: Cluster

    @property
    def training(self) -> Training: ...

    def service(self, node: NodeId) -> Service | None: ...

    def line(self, line: Line) -> None: ...

    def step_done(self, rank: int, step: int) -> None: ...

    def steps_seen(self, at_us: int) -> int: ...


class SimulatedWorker:
    def __init__(self, world: World, rank: int) -> None:
        self.rank = rank
        self.life = 0
        self.step = 0
        """Steps this rank has seen the end of, as far as its present life knows."""
        self.goal: int | None = None
        self.training = False
        """It holds its rank and trains."""
        self.name = f"rank {rank}"
        self._world = world
        self._random = stream(world.cluster.seed, self.name)
        self._session = Session(
            CLUSTER.hex(), self._random.randbytes(16), self._random.randbytes(32), starts=0, rank=rank
        )
        self._more = asyncio.Event()
        self._closed = False
        self._loops: list[VirtualLoop] = []
        """Kept, so that what was cut off in the middle is not tidied up at a moment of the collector's choosing."""

    @property
    def done(self) -> bool:
        return self.training and self.goal is not None and self.step >= self.goal

    def go_on_to(self, goal: int) -> None:
        """Rest when that step is reached."""
        self.goal = goal
        self._more.set()

    def start(self) -> None:
        life = self.life
        scheduler = self._world.cluster.scheduler
        self._session = replace(self._session, starts=self._session.starts + 1)

        def later(delay_us: int, action: object) -> None:
            scheduler.after(delay_us, lambda: action() if self.life == life else None)  # type: ignore[operator]

        self._more = asyncio.Event()
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
        world, training = self._world, self._world.training
        routes = Routes()
        addresses = [address_of(node) for node in world.cluster.nodes]
        cluster = await Discovery(network, addresses).run(routes)
        watchers = Watchers(network, cluster, routes, self.name)
        watchers.start()
        catalogue = Catalogue(network, cluster, routes, self._session, self.name)
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
        await engine.claim(self.rank)
        tensors = Tensors(training.layout)
        await engine.pull(tensors, version=engine.step)
        self.step, self.training = engine.step, True
        reader = Reader(
            world,
            self.name,
            stream(world.cluster.seed, f"reads of {self.name}, life {self.life}"),
            network=network,
            known=cluster,
            model=described,
        )
        self._reading = asyncio.create_task(reader.run(), name=f"reads of {self.name}")
        self._reading.add_done_callback(self._ended)
        await self._train(engine, tensors)

    async def _train(self, engine: Engine, tensors: Tensors) -> None:
        training = self._world.training
        clock = asyncio.get_running_loop().time
        while True:
            step = engine.step
            if tensors.flat.tobytes() != training.seen(self.rank, step).tobytes():
                raise Violated(f"{self.name} begins step {step} with weights that are not version {step}")
            await asyncio.sleep(between(self._random, THINK_MS) * MS / 1_000_000)
            while self.goal is not None and step >= self.goal:
                self._more.clear()
                await self._more.wait()
            gradient = training.gradient(self.rank, step, tensors.flat)
            kind = training.kind(self.rank, step, 0)
            tensors.flat = np.full_like(tensors.flat, np.nan)
            engine.begin(step, kind, None if kind is PushKind.SKIP else gradient, tensors)
            await engine.wait(Budget(STEP_TIMEOUT_S, f"step {step}", clock))
            self.step = engine.step
            self._world.step_done(self.rank, self.step)
