"""Initial values through the leader (RULES M3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paramserver.shard.commands import OpenShard
from paramserver.shard.options import LeaderOptions
from paramserver.shard.window import SumWindow
from paramserver.wire.checksum import crc32c
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import PushFrame, PushKind
from paramserver.wire.spec import ModelSpec
from tests.unit.shard.kit import (
    ELEMENTS,
    EPOCH,
    MODEL,
    Log,
    Node,
    Rank,
    Replies,
    create_command,
    hello,
    initial_command,
    initial_values,
    model_spec,
    same_bits,
)


class Uploader:
    def __init__(self, node: Node, spec: ModelSpec, epoch: int = EPOCH) -> None:
        self.spec, self.replies, self.admitted = spec, Replies(), 0
        self.stream = node.leader.open_initialization(hello(initialization_epoch=epoch), self.replies)

    def send(self, block: int, /, **more: Any) -> None:
        payload = memoryview(initial_values(self.spec, block).tobytes())
        fields: dict[str, Any] = {"block": block, "kind": PushKind.INITIAL, "payload": payload, "crc": crc32c(payload)}
        self.stream.offer(PushFrame(**(fields | more)), self._admit)

    def _admit(self) -> None:
        self.admitted += 1


def created(**options: int) -> tuple[Node, ModelSpec]:
    spec = model_spec()
    log = Log()
    log.add(create_command(spec))
    node = Node(log, options=LeaderOptions(**options))
    node.lead()
    return node, spec


def test_values_are_stored_when_committed_and_applied() -> None:
    node, spec = created()
    upload = Uploader(node, spec)
    assert upload.replies.opened
    for block in range(3):
        upload.send(block)
    assert upload.replies.frames == []
    node.settle()
    assert upload.replies.seen == [(block, 0, "STORED") for block in range(3)]
    node.log.add(OpenShard(model=MODEL, generation=1, epoch=EPOCH))
    assert node.apply()[0].ok
    for block in range(3):
        assert same_bits(node.weights(block), initial_values(spec, block))


def test_values_on_their_way_take_room_of_the_node_and_one_block_goes_without() -> None:
    node, spec = created()
    block_bytes = 4 * ELEMENTS
    node.leader.room = room = SumWindow(block_bytes)
    assert room.take(block_bytes, always=False, later=lambda: None), "others have all of it"
    node.lane.at_once = False
    upload = Uploader(node, spec)
    upload.send(0)
    upload.send(1)
    assert upload.admitted == 1, "what a stream has nothing in flight without has room always"
    assert room.bytes == 2 * block_bytes
    node.lane.run_all()
    assert room.bytes == block_bytes, "encoded: it counts as uncommitted from here on"
    assert upload.admitted == 1
    for later in room.give(block_bytes):
        later()
    node.lane.run_all()
    assert upload.admitted == 2
    node.settle()
    assert upload.replies.seen == [(0, 0, "STORED"), (1, 0, "STORED")]
    assert room.bytes == 0


def test_a_log_without_room_refuses_values_with_a_time_to_retry() -> None:
    node, spec = created()
    node.log.busy = True
    upload = Uploader(node, spec)
    upload.send(0)
    refusal = upload.replies.refusal
    assert refusal is not None
    assert (refusal.reason, refusal.code) == (Reason.BUSY, "RESOURCE_EXHAUSTED")
    assert refusal.retry_after_ms == LeaderOptions().retry_after_ms


def test_streams_of_initial_values_are_bounded() -> None:
    node, spec = created(streams_max=2)
    uploads = [Uploader(node, spec) for _ in range(2)]
    with pytest.raises(Refusal) as caught:
        Uploader(node, spec)
    assert (caught.value.reason, caught.value.code) == (Reason.BUSY, "RESOURCE_EXHAUSTED")
    assert caught.value.retry_after_ms == LeaderOptions().retry_after_ms
    uploads[0].stream.close()
    assert Uploader(node, spec).replies.opened


def test_blocks_in_flight_are_bounded() -> None:
    node, spec = created(initial_blocks_in_flight=1)
    upload = Uploader(node, spec)
    upload.send(0)
    assert upload.admitted == 1
    upload.send(1)
    assert upload.admitted == 1
    node.settle()
    assert upload.admitted == 2


def test_an_open_model_takes_none() -> None:
    node, spec = created()
    node.log.add(*(initial_command(spec, block) for block in range(3)))
    upload = Uploader(node, spec, epoch=EPOCH + 1)
    node.log.add(OpenShard(model=MODEL, generation=1, epoch=EPOCH))
    node.apply()
    upload.send(0)
    node.settle()
    assert upload.replies.refusal is not None
    assert upload.replies.refusal.reason is Reason.ALREADY_OPEN
    with pytest.raises(Refusal) as caught:
        Uploader(node, spec)
    assert caught.value.reason is Reason.ALREADY_OPEN


def test_an_older_lease_is_refused() -> None:
    node, spec = created()
    node.log.add(initial_command(spec, 0, epoch=EPOCH + 1))
    node.apply()
    upload = Uploader(node, spec)
    upload.send(0)
    node.settle()
    assert upload.replies.refusal is not None
    assert upload.replies.refusal.reason is Reason.STALE_LEASE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"crc": 1}, Reason.CHECKSUM),
        ({"block": 3}, Reason.NOT_FOUND),
        ({"kind": PushKind.GRADIENT}, Reason.INVALID),
        ({"payload": b"1234"}, Reason.INVALID),
    ],
)
def test_bad_frames_end_the_stream(change: dict[str, Any], reason: Reason) -> None:
    node, spec = created()
    upload = Uploader(node, spec)
    upload.send(0, **change)
    assert upload.replies.refusal is not None
    assert upload.replies.refusal.reason is reason
    assert upload.admitted == 1
    assert node.log.pending == []


def test_values_must_be_finite() -> None:
    node, spec = created()
    upload = Uploader(node, spec)
    values = initial_values(spec, 2)
    values[-1] = np.inf
    payload = memoryview(values.tobytes())
    upload.send(2, payload=payload, crc=crc32c(payload))
    assert upload.replies.refusal is not None
    assert upload.replies.refusal.reason is Reason.NON_FINITE
    assert "'bias' element 3" in upload.replies.refusal.message


def test_a_lost_leadership_ends_the_stream_and_drops_what_waits() -> None:
    node, spec = created(initial_blocks_in_flight=1)
    upload = Uploader(node, spec)
    upload.send(0)
    upload.send(1)
    node.leader.deposed(2)
    assert upload.admitted == 2
    assert upload.replies.refusal is not None
    assert upload.replies.refusal.reason is Reason.NOT_LEADER


def test_pushes_before_open_are_told_to_wait() -> None:
    node, spec = created()
    with pytest.raises(Refusal) as caught:
        Rank(node, spec)
    assert (caught.value.reason, caught.value.code, caught.value.retryable) == (Reason.NOT_OPEN, "UNAVAILABLE", True)


def test_an_epoch_is_needed() -> None:
    node, spec = created()
    with pytest.raises(Refusal) as caught:
        Uploader(node, spec, epoch=0)
    assert caught.value.field == "hello.initialization_epoch"
