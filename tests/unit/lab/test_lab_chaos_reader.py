"""The probe of reads ends when one of its threads breaks: reads that are left out must not go unseen."""

from __future__ import annotations

import subprocess
import sys

BROKEN = """
import threading, time
from paramserver.lab.chaos import reader

def run(self):
    threading.Thread(target=self.each_node, args=(1, "127.0.0.1:1"), daemon=True).start()
    time.sleep(30)

def broken(self):
    raise KeyError("nobody caught this")

reader.Probe.run, reader.Probe.addresses = run, broken
reader.main()
"""


def test_a_thread_that_breaks_ends_the_probe(tmp_path: object) -> None:
    words = ["--servers", "127.0.0.1:1", "--nodes", f"{tmp_path}/nodes", "--record", f"{tmp_path}/record"]
    words += ["--counted", f"{tmp_path}/counted", "--pace-ms", "1", "--raw-pace-ms", "1", "--digests-ms", "1"]
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, *words], capture_output=True, text=True, timeout=25, check=False
    )  # fmt: skip
    assert done.returncode == 1
    assert "nobody caught this" in done.stderr
