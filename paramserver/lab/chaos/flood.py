"""Ten times the load: `python -m paramserver.lab.chaos.flood`, many clients in one process, by the public API alone.

Half push models of their own, half pull the one of the first, all as fast as they may. Runs at the lowest priority: its
clients stand for other machines. Says `ready` once all are at work.
"""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

import numpy as np

import paramserver
from paramserver.lab.priority import yield_to_servers
from worker.errors import ParameterServerError

CONNECT_S = 60.0
CALL_S = 2.0
ELEMENTS = 1 << 16
BLOCK_BYTES = 1 << 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--sessions", type=Path, required=True, help="folder: who comes again takes up its models")
    options = parser.parse_args()
    yield_to_servers()
    up = threading.Semaphore(0)
    halves = max(1, options.clients // 2)
    for number in range(halves):
        place = options.sessions / f"flood-{number}.session"
        threading.Thread(target=push, args=(options.servers, f"flood-{number}", place, up), daemon=True).start()
    for _ in range(halves):
        up.acquire()
    for _ in range(halves):
        threading.Thread(target=pull, args=(options.servers, "flood-0", up), daemon=True).start()
    for _ in range(halves):
        up.acquire()
    print("ready", flush=True)
    threading.Event().wait()


def push(servers: str, name: str, session: Path, up: threading.Semaphore) -> None:
    client = paramserver.connect(servers, timeout=CONNECT_S, session_file=session)
    model = client.model(
        name, {"weights": (ELEMENTS,)}, optimizer=paramserver.sgd(1e-3), rank=0, block_bytes=BLOCK_BYTES,
        initial=lambda: {"weights": np.zeros(ELEMENTS, np.float32)},
    )  # fmt: skip
    gradient, out, begun = model.buffer(), model.pull(), False
    gradient["weights"][:] = 1e-3
    up.release()
    while True:
        try:
            future = model.resume(timeout=CALL_S) if begun else model.push_pull(gradient, out=out, timeout=CALL_S)
            begun = True
            future.result()
            begun = False
        except ParameterServerError:
            pass  # it is refused, and comes again


def pull(servers: str, name: str, up: threading.Semaphore) -> None:
    client = paramserver.connect(servers, timeout=CONNECT_S)
    model = client.model(name)
    out = model.pull()
    up.release()
    while True:
        try:
            model.pull(min_version=0, out=out, timeout=CALL_S)
        except ParameterServerError:
            pass


if __name__ == "__main__":
    main()
