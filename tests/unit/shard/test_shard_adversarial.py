"""Ranks that do wrong, at random, at a leader whose log is full, busy, lost: what was said stays within the errors that
there are, what they sent leaves no trace in the node's window, and the next ranks train on."""

from __future__ import annotations

import random

import numpy as np
import pytest

from paramserver.shard.options import LeaderOptions
from paramserver.shard.streams import StreamState
from paramserver.shard.window import SumWindow
from paramserver.wire.checksum import crc32c
from paramserver.wire.codecs import Codec, encode
from paramserver.wire.errors import Reason, Refusal
from paramserver.wire.frames import PushFrame, PushKind
from paramserver.wire.layout import Layout
from paramserver.wire.spec import ModelSpec, NonFinite
from tests.unit.shard.kit import Log, Node, Rank, model_spec, opening_commands

BLOCK = 4096
SAID = {
    Reason.SUPERSEDED,
    Reason.OUT_OF_ORDER,
    Reason.INVALID,
    Reason.NOT_LEADER,
    Reason.NOT_FOUND,
    Reason.FAR_AHEAD,
    Reason.DISK_FULL,
    Reason.NON_FINITE,
    Reason.CHECKSUM,
    Reason.BUSY,
}


class Story:
    def __init__(self, seed: int) -> None:
        self.source = source = random.Random(seed)
        self.ranks, self.blocks = source.choice((1, 2, 3)), source.choice((1, 3, 5))
        log_codec, non_finite = source.choice(tuple(Codec)), source.choice(tuple(NonFinite))
        self.spec: ModelSpec = model_spec(
            ranks=self.ranks, blocks=self.blocks, log_codec=log_codec, non_finite=non_finite
        )
        self.log = Log()
        self.log.add(*opening_commands(self.spec))
        self.node = Node(self.log, options=LeaderOptions(window_blocks=source.choice((1, 2, 16)), streams_max=8))
        self.room = self.node.leader.room = SumWindow(source.choice((1, BLOCK, 3 * BLOCK, 1 << 30)))
        self.node.lead()
        self.node.lane.at_once = source.random() < 0.5
        self.streams: list[Rank] = []
        self.refused: set[Reason] = set()
        self.term = 1

    def open(self) -> None:
        view = self.source.choice((1, 1, 1, 1, 2))
        codec = self.source.choice(tuple(Codec))
        try:
            rank = Rank(self.node, self.spec, self.source.randrange(self.ranks), view=view, weights_codec=codec)
        except Refusal as refusal:
            self.refused.add(refusal.reason)
        else:
            self.streams.append(rank)

    def push(self) -> None:
        rank = self.source.choice(self.streams)
        if rank.stream.state is not StreamState.ENDED:
            rank.send(self._frame())

    def _frame(self) -> PushFrame:
        source = self.source
        block = source.choice((self.blocks, 2**31)) if source.random() < 0.1 else source.randrange(self.blocks)
        known = block < self.blocks
        version = self.node.versions()[block] if known else 0
        step = max(0, version + source.choice((0, 0, 0, 0, 0, 0, 1, 1, -1, 2)))
        kind = source.choice((*(PushKind.GRADIENT,) * 6, PushKind.SKIP, PushKind.EMPTY, PushKind.INITIAL))
        codec = source.choice(tuple(Codec))
        payload = b""
        if kind is PushKind.GRADIENT:
            number = source.choice((1.0, 1.0, 1.0, 0.0, 1e-40, 6e4, 3e38, -3e38))
            values = np.full(Layout(self.spec).block_elements(block) if known else 1, number, np.float32)
            if source.random() < 0.05:
                values[0] = source.choice((np.nan, np.inf))
            payload = bytes(encode(codec, values))[: -2 if source.random() < 0.03 else None]
        crc = crc32c(payload) if source.random() > 0.03 else 7
        return PushFrame(block=block, step=step, kind=kind, codec=codec, crc=crc, payload=payload)

    def close(self, rank: Rank) -> None:
        rank.queue.clear()
        rank.stream.close()
        if rank.replies.refusal is not None:
            self.refused.add(rank.replies.refusal.reason)

    def happen(self) -> None:
        chance = self.source.random()
        if chance < 0.12 or not self.streams:
            self.open()
        elif chance < 0.70:
            self.push()
        elif chance < 0.76:
            self.close(self.streams.pop(self.source.randrange(len(self.streams))))
        elif chance < 0.84:
            self.node.lane.run_all()
        elif chance < 0.92:
            self.log.commit()
            self.node.apply()
        elif chance < 0.94:
            self.log.busy = not self.log.busy
        elif chance < 0.95:
            self.log.full = not self.log.full
        elif chance < 0.98:
            self.node.leader.handing_over(self.source.choice((0, 2)))
        else:
            self.node.leader.deposed(self.term + 1)
            if self.source.random() < 0.5:
                self.log.lose()
            self.term += 2
            self.node.lead(self.term)

    def end(self) -> None:
        self.log.busy = self.log.full = False
        self.node.leader.handing_over(0)
        for rank in self.streams:
            self.close(rank)
        for _ in range(2):
            self.node.lane.run_all()
            self.node.settle()

    def train_on(self) -> None:
        self.node.lane.at_once = True
        ranks = [Rank(self.node, self.spec, rank) for rank in range(self.ranks)]
        for _ in range(2):
            versions = self.node.versions()
            lowest = min(versions)
            for rank in ranks:
                for block in [block for block, version in enumerate(versions) if version == lowest]:
                    ones = np.ones(Layout(self.spec).block_elements(block), np.float32)
                    rank.push(lowest, block, values=ones)
            self.node.settle()
            assert min(self.node.versions()) == lowest + 1, [rank.replies.refusal for rank in ranks]


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_whatever_ranks_do_wrong_nothing_of_it_stays_and_others_train_on(first: int) -> None:
    refused: set[Reason] = set()
    for seed in range(first, first + 50):
        story = Story(seed)
        for _ in range(80):
            story.happen()
        story.end()
        assert story.room.bytes == 0, f"seed {seed}"
        assert story.node.alarms == [], f"seed {seed}"
        story.train_on()
        assert story.room.bytes == 0, f"seed {seed}"
        refused |= story.refused
    assert refused <= SAID
    assert len(refused) > 5, "they did wrong"
