"""One rank on Redis: a push adds to the rank's cell of each block in one MULTI, and counts when a replica has it.

The primary is found by Sentinel, as redis-py has it, with its own retries. `WAIT 1` says how many replicas have the
addition; fewer than one, and it is asked again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from redis.sentinel import Sentinel

from benchmarks.faults.peers.ledger import BLOCKS, Ledger, Unanswered

WAIT_MS = 1000
TIMEOUT_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--stop", type=Path, required=True)
    parser.add_argument("--sentinels", required=True)
    parser.add_argument("--primary", required=True)
    options = parser.parse_args()
    places = [("127.0.0.1", int(port)) for port in options.sentinels.split(",")]
    sentinel = Sentinel(places, socket_timeout=TIMEOUT_S)
    client = sentinel.master_for(options.primary, socket_timeout=TIMEOUT_S)
    ledger = Ledger(options.record, options.stop)
    ledger.write("start", step=ledger.next_step)
    keys = [f"block-{block}" for block in range(BLOCKS)]

    def push(_step: int) -> None:
        with client.pipeline(transaction=True) as pipe:
            for key in keys:
                pipe.hincrby(key, str(options.rank), 1)
            pipe.execute()
        if client.execute_command("WAIT", 1, WAIT_MS) < 1:
            raise Unanswered("WAIT: no replica has it")

    ledger.insist(push, Exception)
    ledger.final({options.rank: [int(client.hget(key, str(options.rank)) or 0) for key in keys]})


if __name__ == "__main__":
    main()
