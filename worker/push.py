"""One PushPull (or Initialize) stream to the leader of one group, for as long as its owner lives.

    seek a leader -> open, hello -> send and receive -> broken, refused, or led elsewhere -> seek a leader ...

Invariants: at most one stream stands; it carries one step at a time and begins with the lowest unacknowledged block; a
later term is followed at once, without waiting for the old stream to break (RULES C7); attempts at one address are
apart by a jittered back-off, which news of the group cuts short. Must not know: other groups, what a step is made of.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Protocol

from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import Hello, PushFrame
from worker.errors import ParameterServerError, ProtocolError
from worker.network import Network, PushMethod, PushStream, StreamEnded
from worker.refusals import to_error, transient
from worker.retry import Backoff, BackoffOptions
from worker.routing import Route, Routes
from worker.steps import ChecksumMismatch, GroupStep

BACKOFF = BackoffOptions(first_ms=5, most_ms=200)
BROKEN_S_MAX = 1.0
"""How long a stream that takes no more frames may leave open why, before it is given up without a reason."""


class Owner(Protocol):
    """Who has a step to push. Called on the event loop."""

    def hello(self, group: int) -> Hello:
        """The first frame of a stream opened now."""

    def group_complete(self, group: int) -> None:
        """Every block of the group's step is acknowledged."""

    async def resolve(self, hello: Hello, refusal: Refusal) -> bool:
        """A stream that began with `hello` was refused for its view, lease or placement. True: reopen at once; False:
        after a while. Raises ParameterServerError when trying again is no use."""

    def failed(self, group: int, error: ParameterServerError) -> None:
        """The group's step cannot go on; the pusher has stopped."""


_TO_RESOLVE = frozenset(
    {
        Reason.VIEW_CHANGED,
        Reason.RANK_TAKEN,
        Reason.STALE_LEASE,
        Reason.STALE_EPOCH,
        Reason.UNKNOWN_SESSION,
        Reason.ALREADY_OPEN,
        Reason.SUPERSEDED,
        Reason.NOT_FOUND,
    }
)


class GroupPusher:
    """`start()`, then `submit()` a step at a time, then `close()`."""

    def __init__(
        self,
        group: int,
        *,
        network: Network,
        routes: Routes,
        owner: Owner,
        method: PushMethod = PushMethod.PUSH_PULL,
    ) -> None:
        self.group = group
        self._network = network
        self._routes = routes
        self._owner = owner
        self._method = method
        self._backoff = Backoff(BACKOFF, budget=routes.retries)
        self._task: asyncio.Task[None] | None = None
        self._step: GroupStep | None = None
        self._wake = asyncio.Event()
        self._reopen = asyncio.Event()
        self._paused = False
        self._answering: Route | None = None
        self._problem = ""
        self._full = False

    # --- for the owner

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def submit(self, step: GroupStep) -> None:
        """Push this step's blocks; the one before must be complete."""
        self._step = step
        self._wake.set()

    def pause(self) -> None:
        """Send nothing more until `resume()`: nobody waits for the step any longer."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._wake.set()

    def nudge(self) -> None:
        """More of the step is ready."""
        self._wake.set()

    def reopen(self) -> None:
        """Take up a new hello: end the stream that stands and open another."""
        self._reopen.set()

    @property
    def step(self) -> GroupStep | None:
        """The step that is not complete yet."""
        return self._step

    @property
    def answering(self) -> Route | None:
        """The leader that has answered on the stream that stands."""
        return self._answering

    @property
    def problem(self) -> str:
        """Why the last stream ended; empty while one stands."""
        return self._problem

    @property
    def full(self) -> bool:
        """The leader takes nothing now, for want of disk or because it is at a bound: there is one, but it is asked
        again only after a while."""
        return self._full

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # --- the loop

    async def _run(self) -> None:
        try:
            while True:
                route = await self._seek()
                self._reopen.clear()
                hello = self._owner.hello(self.group)
                try:
                    await self._stream(route, hello)
                except Refusal as refusal:
                    await self._refused(route, hello, refusal)
                except ChecksumMismatch as mismatch:
                    self._problem = mismatch.cause
                    await asyncio.sleep(self._backoff.next_s())
        except ParameterServerError as error:
            self._owner.failed(self.group, error)
        except Exception as error:  # a defect of ours must end the step with a message, not leave it hanging
            self._owner.failed(self.group, ProtocolError(f"pushing to group {self.group}: {error!r}"))

    async def _seek(self) -> Route:
        """The leader to try next. A suspect is tried again after a wait, which any news of the group ends."""
        while True:
            route = self._routes.get(self.group)
            if route is not None and not route.suspect:
                return route
            await self._routes.changed(self.group, self._backoff.next_s())
            again = self._routes.get(self.group)
            if again is not None and again == route:
                return again

    async def _refused(self, route: Route, hello: Hello, refusal: Refusal) -> None:
        self._problem = refusal.message
        self._full = refusal.reason in (Reason.DISK_FULL, Reason.BUSY)
        if refusal.reason in _TO_RESOLVE:
            if not await self._owner.resolve(hello, refusal):
                await asyncio.sleep(self._backoff.next_s(refusal.retry_after_ms))
            return
        if not transient(refusal):
            raise to_error(refusal)
        if refusal.reason is Reason.NOT_LEADER and self._routes.hint(
            group=self.group, term=refusal.term, address=refusal.leader_address
        ):
            return
        self._routes.suspect(route)
        if refusal.retry_after_ms:
            await self._routes.changed(self.group, self._backoff.next_s(refusal.retry_after_ms))

    async def _stream(self, route: Route, hello: Hello) -> None:
        """One stream, from hello to its end. Returns when the group is led elsewhere or a new hello is due."""
        stream = self._network.push(route.address, self._method)
        reading = asyncio.create_task(self._read(stream, route))
        writing = asyncio.create_task(self._write(stream, hello))
        leaving = [
            asyncio.create_task(_done(self._routes.moved(route))),
            asyncio.create_task(_done(self._reopen.wait())),
        ]
        try:
            waiting: set[asyncio.Task[None]] = {reading, writing, *leaving}
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if done == {writing} and writing.exception() is None:
                # It met a broken stream; the reader knows why, and is about to say so.
                done, _ = await asyncio.wait(waiting - done, return_when=asyncio.FIRST_COMPLETED, timeout=BROKEN_S_MAX)
            for task in done:
                task.result()
            if reading in done or not done:
                self._problem, self._full = "the server ended the stream", False
                self._routes.suspect(route)
        finally:
            self._answering = None
            stream.cancel()
            tasks = (reading, writing, *leaving)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, stream: PushStream, hello: Hello) -> None:
        begun: GroupStep | None = None
        with contextlib.suppress(StreamEnded):
            await stream.send(PushFrame(hello=hello))
            while True:
                self._wake.clear()
                step = self._step
                if step is not None and not self._paused:
                    if step is not begun:
                        step.rewind()
                        begun = step
                    frame = step.next_frame()
                    if frame is not None:
                        await stream.send(frame)
                        continue
                await self._wake.wait()

    async def _read(self, stream: PushStream, route: Route) -> None:
        while (frame := await stream.receive()) is not None:
            if self._answering is None:
                self._answering = route
                self._problem, self._full = "", False
                self._routes.trust(route)
                self._backoff.reset()
            step = self._step
            if step is not None and step.take(frame) and step.complete:
                self._step = None
                self._owner.group_complete(self.group)


async def _done(awaitable: Awaitable[object]) -> None:
    await awaitable
