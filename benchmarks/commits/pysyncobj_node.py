"""One PySyncObj node, and the load when it leads.

    .venv-peers/bin/python pysyncobj_node.py SELF OTHER,... BYTES:INFLIGHT,... SECONDS

Runs in an environment of its own (`make install-peers`) and so imports nothing of ours. Nothing is synced to a disk,
and the client lives in the leader's process: that is how the library is made to be used. A line of JSON for each load.
Owns its settings: batches as its documentation says (off for a single request's speed, on otherwise), and buffers above
its defaults, with which large values hardly move. Must not know: who starts it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

from pysyncobj import SyncObj, SyncObjConf, replicated  # type: ignore[import-not-found]

WARM_UP_S = 1.0
TICK_S = 0.02
BUFFER_BYTES = 4 << 20


class Counter(SyncObj):
    def __init__(self, me: str, others: list[str], conf: object) -> None:
        super().__init__(me, others, conf)
        self.count = 0

    @replicated
    def append(self, value: bytes) -> int:
        self.count += 1
        return self.count


class Load:
    """Keeps so many commands in flight. Callbacks come on the library's own thread, and send the next."""

    def __init__(self, counter: Counter, size: int, inflight: int, seconds: float) -> None:
        self._counter = counter
        self._payload = os.urandom(size)
        self._size = size
        self._inflight = inflight
        self._begin_s = time.perf_counter() + WARM_UP_S
        self._end_s = self._begin_s + seconds
        self._latencies_s: list[float] = []
        self._open = inflight
        self._refused = 0
        self._done = threading.Event()

    def run(self) -> dict[str, object]:
        for _ in range(self._inflight):
            self._send()
        self._done.wait(self._end_s - time.perf_counter() + 60)
        ordered = sorted(self._latencies_s)
        count, seconds = len(ordered), self._end_s - self._begin_s
        return {
            "operations": count,
            "ops_per_s": round(count / seconds, 1),
            "mb_per_s": round(count * self._size / seconds / 1e6, 2),
            "p50_ms": round(ordered[count // 2] * 1000, 2) if ordered else None,
            "p90_ms": round(ordered[int(count * 0.9)] * 1000, 2) if ordered else None,
            "p99_ms": round(ordered[int(count * 0.99)] * 1000, 2) if ordered else None,
            "worst_ms": round(ordered[-1] * 1000, 2) if ordered else None,
            "refused": self._refused,
        }

    def _send(self) -> None:
        began_s = time.perf_counter()
        self._counter.append(self._payload, callback=lambda _, error: self._answered(began_s, error))

    def _answered(self, began_s: float, error: int) -> None:
        now_s = time.perf_counter()
        if error:
            self._refused += 1
        elif self._begin_s <= now_s < self._end_s:
            self._latencies_s.append(now_s - began_s)
        if now_s < self._end_s:
            self._send()
            return
        self._open -= 1
        if not self._open:
            self._done.set()


def settings(loads: list[str]) -> object:
    """`loads` are either all of one command in flight, or none of them."""
    alone = all(load.endswith(":1") for load in loads)
    return SyncObjConf(
        appendEntriesUseBatch=not alone,
        appendEntriesBatchSizeBytes=BUFFER_BYTES,
        sendBufferSize=BUFFER_BYTES,
        recvBufferSize=BUFFER_BYTES,
    )


def main() -> None:
    me, others, loads, seconds = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(","), float(sys.argv[4])
    counter = Counter(me, others, settings(loads))
    while not counter.isReady():
        time.sleep(TICK_S)
    print("ready", flush=True)
    # The one that leads gets the load; the others serve until they are ended.
    while True:
        if counter._isLeader():
            for load in loads:
                size, inflight = map(int, load.split(":"))
                result = Load(counter, size, inflight, seconds).run()
                print("result " + json.dumps({"size": size, "inflight": inflight, **result}), flush=True)
            print("done", flush=True)
            loads = []
            while True:
                time.sleep(1)
        time.sleep(TICK_S)


if __name__ == "__main__":
    main()
