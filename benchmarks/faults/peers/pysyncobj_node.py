"""One node of PySyncObj that holds a replicated dict of blocks, and the worker that lives in it.

The library's client is a node itself. Batches are off, as its documentation says for the speed of single requests;
calls are synchronous, with a timeout.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, SyncObjException, replicated

from benchmarks.faults.peers.ledger import BLOCKS, Ledger, Unanswered

TIMEOUT_S = 5.0
READY_POLL_S = 0.02
REASONS = {code: name for name, code in vars(FAIL_REASON).items() if name.isupper()}


class Blocks(SyncObj):
    """(rank, block) -> what was added."""

    def __init__(self, me: str, others: list[str]) -> None:
        super().__init__(me, others, SyncObjConf(appendEntriesUseBatch=False))
        self.blocks: dict[tuple[int, int], int] = {}

    @replicated
    def add(self, rank: int, amount: int) -> None:
        for block in range(BLOCKS):
            self.blocks[rank, block] = self.blocks.get((rank, block), 0) + amount


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--stop", type=Path, required=True)
    parser.add_argument("--me", required=True)
    parser.add_argument("--others", required=True)
    options = parser.parse_args()
    node = Blocks(options.me, options.others.split(","))
    while not node.isReady():
        time.sleep(READY_POLL_S)
    ledger = Ledger(options.record, options.stop)
    ledger.write("start", step=ledger.next_step)

    def push(step: int) -> None:
        if step % 10 == 0:
            ledger.write("leader", leads=node._isLeader())
        try:
            node.add(options.rank, 1, sync=True, timeout=TIMEOUT_S)
        except SyncObjException as error:
            raise Unanswered(f"SyncObjException: {REASONS.get(error.errorCode, error.errorCode)}") from None

    ledger.insist(push, Unanswered)
    ledger.final({options.rank: [node.blocks.get((options.rank, block), 0) for block in range(BLOCKS)]})
    while True:  # the others may still need it
        time.sleep(1)


if __name__ == "__main__":
    main()
