"""Process trees of benchmarks: known by their mark, stopped and let go together."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.pushpull.trees import MALLOC, Tree

PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; sys.stdin.read()'])"


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def awaited(tree: Tree, states: str, count: int) -> list[int]:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        pids = tree.pids()
        if len(pids) == count and all(state(pid) in states for pid in pids):
            return pids
        time.sleep(0.01)
    raise AssertionError(f"{[(pid, state(pid)) for pid in tree.pids()]}, expected {count} in {states}")


def test_a_tree_is_stopped_and_goes_on_whole_and_others_are_left_alone() -> None:
    tree, other = Tree(), Tree()
    environment = {"PATH": "/usr/bin"}
    running = [
        subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, env=environment | one.environment)
        for one in (tree, other)
    ]
    try:
        assert running[0].pid in awaited(tree, "S", 2)
        awaited(other, "S", 2)
        tree.freeze()
        awaited(tree, "T", 2)
        awaited(other, "S", 2)
        tree.thaw()
        awaited(tree, "S", 2)
        assert tree.cpu_s() > 0
    finally:
        for process in running:
            process.communicate(timeout=30)
    assert tree.pids() == []


@pytest.mark.parametrize("malloc", [True, False])
def test_all_systems_get_the_same_malloc_environment_unless_they_are_to_be_as_users_have_them(malloc: bool) -> None:
    environment = Tree(malloc=malloc).environment
    assert (MALLOC.items() <= environment.items()) is malloc
