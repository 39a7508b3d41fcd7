"""The awaited client: the same calls as the other one's, and what a cancellation leaves behind."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

import paramserver
from paramserver import aio
from tests.unit.worker.fake import LEARNING_RATE, FakeCluster, FakeNetwork
from tests.unit.worker.helpers import BLOCK_BYTES, BLOCKS, SHAPES, applied_once, gradients, initial, until
from worker import errors

TIMEOUT_S = 20


def run(test: Callable[[FakeCluster], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await test(FakeCluster())

    asyncio.run(bounded())


def connecting(cluster: FakeCluster, **options: Any) -> aio.Connecting:
    network: Any = functools.partial(FakeNetwork, cluster)
    return aio.connect(list(cluster.addresses.values()), network=network, **{"timeout": 5.0, **options})


async def model_of(client: aio.Client, **options: Any) -> aio.Model:
    given = {"optimizer": paramserver.sgd(0.5), "initial": initial, "block_bytes": BLOCK_BYTES, "rank": 0, **options}
    return await client.model("demo", SHAPES, **given)


def test_a_run_awaited_is_that_of_the_blocking_client() -> None:
    async def trained(cluster: FakeCluster) -> None:
        async with connecting(cluster, name="a") as client, await model_of(client) as model:
            assert (client.name, client.nodes, model.step) == ("a", cluster.addresses, 0)
            weights = await model.pull()
            assert np.array_equal(weights["a"], initial()["a"])
            after = await model.push_pull(gradients(0), step=0, out=weights)
            assert after is weights
            assert np.array_equal(after["b"], initial()["b"] - LEARNING_RATE * gradients(0)["b"])
            assert (await model.push(gradients(1))).version == 2
            assert (await model.wait()).version == model.step == 2
            assert await model.pull(["c"], if_newer_than=2) is None
            assert model.accumulate(gradients(2)) == 1
            assert (await model.push_pull()).version == 3
            assert await model.absent_ranks() == []
            assert await client.unreachable() == {}
        with pytest.raises(errors.Closed):
            await model.pull()
        assert applied_once(cluster, 3)

    run(trained)


def test_what_is_refused_is_refused_here_too() -> None:
    async def refused(cluster: FakeCluster) -> None:
        with pytest.raises(errors.InvalidArgument, match="host:port"):
            aio.connect("nowhere")
        client = await connecting(cluster)
        with pytest.raises(errors.NotFound):
            await client.model("nothing")
        model = await model_of(client)
        with pytest.raises(errors.DeadlineExceeded):
            await model.pull(version=7, timeout=0.1)
        with pytest.raises(errors.NonFinite):
            await model.push_pull({**gradients(0), "c": np.full(1, np.inf)})
        await client.close()
        for node in (1, 2, 3):
            cluster.kill(node)
        with pytest.raises(errors.Unavailable):
            await connecting(cluster, timeout=0.2)

    run(refused)


def test_a_step_that_was_cancelled_goes_on() -> None:
    """Nothing is lost and nothing applied twice, and until it is over nobody pushes another one."""

    async def cancelled(cluster: FakeCluster) -> None:
        async with connecting(cluster) as client:
            model = await model_of(client)
            cluster.hold = True
            pushing = asyncio.create_task(model.push_pull(gradients(0)))
            await asyncio.to_thread(until, lambda: len(cluster.frames) == 2 * BLOCKS)
            pushing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pushing
            with pytest.raises(errors.FailedPrecondition, match="in flight"):
                await model.push_pull(gradients(0))
            with cluster.lock:
                cluster.hold = False
                cluster.set_view(cluster.models[1])
            assert (await model.wait()).version == 1
            assert (await model.push_pull(gradients(1))).version == 2
        assert applied_once(cluster, 2)

    run(cancelled)


def test_a_step_cancelled_before_it_began_may_be_pushed() -> None:
    async def cancelled(cluster: FakeCluster) -> None:
        async with connecting(cluster) as client:
            model = await model_of(client)
            for _ in range(20):
                step = model.step
                pushing = asyncio.create_task(model.push_pull(gradients(step)))
                await asyncio.sleep(0)
                pushing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await pushing
                # Begun or not, the handle knows: one of the two is right, and either brings the model one step on.
                try:
                    await model.push_pull(gradients(model.step))
                except errors.FailedPrecondition:
                    await model.wait()
            steps = model.step
        assert applied_once(cluster, steps)

    run(cancelled)


def test_a_pull_that_was_cancelled_writes_no_more() -> None:
    async def cancelled(cluster: FakeCluster) -> None:
        async with connecting(cluster) as client:
            model = await model_of(client)
            out = model.buffer()
            pulling = asyncio.create_task(model.pull(version=5, out=out))
            await asyncio.sleep(0.05)
            pulling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pulling
            asked = len(cluster.pulls)
            await asyncio.sleep(0.05)
            assert len(cluster.pulls) == asked, "nobody asks for it any more"

    run(cancelled)


def test_a_connection_that_was_cancelled_leaves_no_thread() -> None:
    async def cancelled(cluster: FakeCluster) -> None:
        for node in (1, 2, 3):
            cluster.kill(node)
        before = set(threading.enumerate())

        async def connect() -> None:
            await connecting(cluster, timeout=10)

        opening = asyncio.create_task(connect())
        await asyncio.sleep(0.05)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        left = [thread.name for thread in set(threading.enumerate()) - before]
        assert "paramserver-client" not in left

    run(cancelled)


@pytest.mark.parametrize(("blocking", "awaited"), [(paramserver.Client, aio.Client), (paramserver.Model, aio.Model)])
def test_both_have_the_same_calls(blocking: type, awaited: type) -> None:
    # An awaited call is a future of its own kind.
    spared = {"pull_later", "resume"}
    for name, member in inspect.getmembers(blocking, inspect.isfunction):
        if name.startswith("_") or name in spared:
            continue
        twin = getattr(awaited, name)
        assert inspect.signature(member).parameters == inspect.signature(twin).parameters, name
    properties = {name for name, _ in inspect.getmembers(blocking, lambda member: isinstance(member, property))}
    assert {name for name in properties if not name.startswith("_")} <= set(dir(awaited))
    assert inspect.signature(paramserver.connect).parameters == inspect.signature(aio.connect).parameters
