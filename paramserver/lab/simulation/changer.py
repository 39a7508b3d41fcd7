"""Somebody who changes a model while it trains, through all the faults: a client like any other, that may die anywhere.

Owns the lives of one process, and what it asks for and when. What it checks: each answer names a step at which group 0
settled just that change; a model that it saved is, bit by bit, weights and optimizer of one version. Must not know:
what servers do, what a change does to the weights (`reference.py`).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

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
from paramserver.lab.simulation.reference import Training
from paramserver.wire.spec import float32
from worker.catalogue import Catalogue, Description
from worker.checkpoint import Checkpoint
from worker.errors import FailedPrecondition, NotFound
from worker.loading import Loader
from worker.membership import Discovery
from worker.routing import Routes
from worker.saving import Saver
from worker.session import Session

PAUSE_MS = (20, 600)
LIFE_MS = (300, 2500)
AWAY_MS = (1, 300)
LATE_PERCENT, AT_ONCE_PERCENT = 10, 40
"""Wishes for a step that is past; wishes for the next that can be. The others name one that lies ahead."""
SAVE_PERCENT = 40
LOAD, DELETE = 100, 101
KEEPS = (0, LOAD, LOAD, LOAD, LOAD, DELETE)
"""Wishes of one who loads and deletes, too: as many of these as there are, to one of the others."""
SAVE_S = 8.0
"""A client's budget: the version that it waits for may lie behind the end of the run."""
RATES = (0.2, 0.05, 0.01, 0.003, 0.0)
CHANGES_AFTER = 3
"""After healing, to show that there is progress."""


class World(Protocol):
    cluster: Cluster

    @property
    def training(self) -> Training: ...

    def service(self, node: NodeId) -> Service | None: ...

    def line(self, line: Line) -> None: ...

    def course(self, model: int) -> Course: ...

    def offered(self, step: int, rates: tuple[tuple[int, float], ...], training: Training) -> bool: ...


class SimulatedChanger:
    name = "changer"

    def __init__(self, world: World, *, keeping: bool = False) -> None:
        """`keeping`: it loads what it saved, too, and deletes the model now and then."""
        self._keeping = keeping
        self._file: tuple[Checkpoint, Training] | None = None
        """On its disk: what it saved last, and of which run."""
        self.life = 0
        self.left: int | None = None
        """Changes to make before it rests; None: on and on."""
        self._world = world
        self._random = stream(world.cluster.seed, self.name)
        self._session = Session(
            CLUSTER.hex(), self._random.randbytes(16), self._random.randbytes(32), starts=0, rank=None
        )
        self._closed = False
        self._loops: list[VirtualLoop] = []

    @property
    def done(self) -> bool:
        return self.left == 0

    def start(self) -> None:
        life, world = self.life, self._world
        scheduler = world.cluster.scheduler
        self._session = replace(self._session, starts=self._session.starts + 1)

        def later(delay_us: int, action: object) -> None:
            scheduler.after(delay_us, lambda: action() if self.life == life else None)  # type: ignore[operator]

        loop = virtual_loop(later, lambda: scheduler.now_us)
        self._loops.append(loop)
        caller = Caller(world.cluster, self.name, self._random, later=later, service=world.service, keep=world.line)
        with loop.running():
            self._task = loop.create_task(self._run(SimulatedNetwork(caller)), name=self.name)
        self._task.add_done_callback(self._ended)
        if self.left is None:
            later(between(self._random, LIFE_MS) * MS, self._die)

    def settle(self) -> None:
        """No more deaths, and an end in sight."""
        if self.left is None:
            self.left = CHANGES_AFTER

    def close(self) -> None:
        self._closed = True
        for loop in self._loops:
            loop.close()

    def _die(self) -> None:
        if self.left is not None:
            return
        self.life += 1
        self._world.cluster.counts["changer killed"] += 1
        self._world.cluster.trace.add(self.name, "is killed")
        self._world.cluster.scheduler.after(between(self._random, AWAY_MS) * MS, self.start)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if not self._closed and error is not None:
            raise Violated(f"{self.name} ended by itself: {error!r}") from error

    # --- one life -----------------------------------------------------------------------------------------------------

    async def _run(self, network: SimulatedNetwork) -> None:
        world = self._world
        routes = Routes()
        cluster = await Discovery(network, [address_of(node) for node in world.cluster.nodes]).run(routes)
        catalogue = Catalogue(network, cluster, routes, self._session, self.name)
        model = await self._model(catalogue)
        while self.left != 0:
            await self._pause()
            kind = self._random.randrange(100)
            if self._keeping:
                model = await self._model(catalogue)
                kind = self._random.choice((kind, *KEEPS))
            if kind == LOAD and self._file is not None:
                loader = Loader(network=network, cluster=cluster, routes=routes, catalogue=catalogue)
                await self._load(loader, *self._file)
            elif kind == DELETE:
                await self._delete(catalogue, model)
            elif kind < SAVE_PERCENT or kind == LOAD:
                saver = Saver(network=network, cluster=cluster, routes=routes, catalogue=catalogue, replicas=None)
                await self._save(saver, model)
            else:
                await self._change(catalogue, model)
            if self.left:
                self.left -= 1

    async def _model(self, catalogue: Catalogue) -> Description:
        while True:
            try:
                return await catalogue.describe(self._world.training.spec.name)
            except NotFound:
                await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(between(self._random, PAUSE_MS) * MS / 1_000_000)

    async def _change(self, catalogue: Catalogue, model: Description) -> None:
        world, course = self._world, self._world.course(model.model)
        now = course.steps_seen(world.cluster.scheduler.now_us)
        rate, kind = self._random.choice(RATES), self._random.randrange(100)
        wanted: int | None = now + self._random.randrange(1, 8)
        if kind < LATE_PERCENT:
            wanted = max(now - 1, 0)
        elif kind < LATE_PERCENT + AT_ONCE_PERCENT:
            wanted = None
        world.cluster.trace.add(self.name, f"wants rate {rate} from step {wanted}")
        try:
            step = await catalogue.set_learning_rate(model, rate, wanted)
        except (FailedPrecondition, NotFound) as refused:
            if wanted is None or wanted > now:
                # Training may have gone past it while the question was under way.
                world.cluster.counts["rate refused, meanwhile past"] += 1
            world.cluster.trace.add(self.name, f"was refused: {refused.cause}")
            world.cluster.counts["rate refused"] += 1
            return
        world.cluster.trace.add(self.name, f"has rate {rate} from step {step}")
        world.cluster.counts["rate changed"] += 1
        if step != wanted and wanted is not None:
            world.cluster.counts["rate raised"] += 1
        if not any((one.step, one.learning_rate) == (step, float32(rate)) for one in course.settled.values()):
            raise Violated(f"{self.name} was told that rate {rate} holds from step {step}, which nobody settled")
        if wanted is not None and step < wanted:
            raise Violated(f"{self.name} wanted a change from step {wanted}, it came at {step}")

    async def _save(self, saver: Saver, model: Description) -> None:
        world, name = self._world, self._world.training.spec.name
        now = world.course(model.model).steps_seen(world.cluster.scheduler.now_us)
        ahead = self.left is None and self._random.randrange(3) == 0
        wanted = now + self._random.randrange(1, 5) if ahead else None
        world.cluster.trace.add(self.name, f"saves version {wanted}")
        try:
            async with asyncio.timeout(SAVE_S):
                saved = await saver.run(name, wanted, lambda _done, _total: None)
        except TimeoutError:
            world.cluster.counts["save given up"] += 1
            return
        except (FailedPrecondition, NotFound) as refused:
            world.cluster.trace.add(self.name, f"could not save: {refused.cause}")
            world.cluster.counts["save refused"] += 1
            return
        world.cluster.trace.add(self.name, f"saved version {saved.step}")
        world.cluster.counts["model saved"] += 1
        if saver.model is None:
            raise Violated(f"{self.name} saved no model")
        course = world.course(saver.model.model)
        training = course.training
        if wanted is not None and saved.step < wanted:
            raise Violated(f"{self.name} wanted version {wanted}, it got {saved.step}")
        if saved.weights.tobytes() != training.at(saved.step).tobytes():
            raise Violated(f"{self.name} saved other weights than version {saved.step}")
        for block in range(training.layout.blocks):
            place = training.layout.block_slice(block)
            arrays, numbers = training.state_at(saved.step, block)
            right = [array.tobytes() for array in arrays] == [slot[place].tobytes() for slot in saved.slots]
            if not right or tuple(saved.scalars[block]) != numbers:
                raise Violated(f"{self.name} saved another state of block {block} than version {saved.step} has")
        begun = [rate for at, rate in saved.rates if at <= saved.step]
        if (begun[-1] if begun else None) != course.rate_at(saved.step):
            raise Violated(
                f"{self.name} saved {saved.rates} at step {saved.step}, where {course.rate_at(saved.step)} holds"
            )
        self._file = saved, training

    async def _load(self, loader: Loader, saved: Checkpoint, training: Training) -> None:
        """Over the model that there is, or under its free name."""
        world = self._world
        if not world.offered(saved.step, saved.rates, training):
            return
        world.cluster.trace.add(self.name, f"loads version {saved.step}")
        try:
            async with asyncio.timeout(SAVE_S):
                model = await loader.run(saved, training.spec.name, lambda _done, _total: None)
        except TimeoutError:
            world.cluster.counts["load given up"] += 1
            return
        except (FailedPrecondition, NotFound) as refused:
            world.cluster.trace.add(self.name, f"could not load: {refused}")
            world.cluster.counts["load refused"] += 1
            return
        world.cluster.trace.add(self.name, f"loaded version {saved.step}, generation {model.generation}")
        world.cluster.counts["model loaded"] += 1
        if not model.open or world.course(model.model).first != saved.step:
            raise Violated(f"{self.name} loaded version {saved.step}, and was told of {model}")

    async def _delete(self, catalogue: Catalogue, model: Description) -> None:
        world = self._world
        world.cluster.trace.add(self.name, f"deletes model {model.model}")
        try:
            async with asyncio.timeout(SAVE_S):
                await catalogue.delete(model, force=True)
        except TimeoutError:
            world.cluster.counts["deletion given up"] += 1
        except (FailedPrecondition, NotFound):
            world.cluster.counts["deletion refused"] += 1
        else:
            world.cluster.counts["model deleted"] += 1
