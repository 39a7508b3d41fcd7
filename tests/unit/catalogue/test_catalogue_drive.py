"""Group 0's intent, carried into data groups."""

import asyncio
from typing import Any

from paramserver.catalogue.drive import Drives, ShardReply
from paramserver.catalogue.state import Model, Shard
from paramserver.wire.protos import View
from paramserver.wire.spec import ModelSpec, TensorSpec, sgd

SPEC = ModelSpec(name="m", tensors=(TensorSpec("t", (2048,)),), optimizer=sgd(0.1), ranks=1, block_bytes=4096)


def test_a_group_that_has_confirmed_everything_is_left_alone_while_another_is_awaited() -> None:
    """It was driven again and again without a pause: a leader of group 0 that waited for one group spun (found by the
    simulator, whole-system seed 0)."""

    async def scenario() -> tuple[int, list[Any]]:
        slow = asyncio.Event()
        model = Model(
            model=1,
            generation=1,
            spec=SPEC,
            shards=(Shard(1, 0, 1), Shard(2, 1, 1)),
            placement_epoch=1,
            view=View(1, 0, (0,)),
            leases=(),
        )

        async def execute(group: int, command: Any) -> ShardReply:
            if group == 2:
                await slow.wait()
            return ShardReply(ok=True, view=1)

        async def created(model: Model, group: int) -> None:
            return None

        turns = 0

        class Counted(Drives):
            def poke(self, model: int) -> None:
                nonlocal turns
                turns += 1
                super().poke(model)

        drives = Counted(lambda: {1: model}, execute, created)
        waiting = asyncio.create_task(drives.everywhere(1, lambda group: group.view >= 1))
        for _ in range(200):
            await asyncio.sleep(0)
        seen = turns
        slow.set()
        return seen, await waiting

    turns, confirmed = asyncio.run(scenario())
    assert turns < 10
    assert [one.view for one in confirmed] == [1, 1]
