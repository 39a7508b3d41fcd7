"""A process that forked from the one that connected is told so by every call, for gRPC does not survive a fork."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from typing import Any

import paramserver
from tests.unit.worker.fake import FakeCluster
from tests.unit.worker.helpers import client_of, gradients, model_of
from worker import errors
from worker.client import Client
from worker.futures import Future
from worker.handover import Handover
from worker.model import Model

ENDS = {"close"}
"""They do nothing in a child: what is there is the parent's."""


def in_child(calls: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """Name -> the error's class, or what came, in a process that was forked from this one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = {}
            for name, call in calls.items():
                try:
                    found[name] = f"returned {call()!r}"
                except BaseException as error:
                    found[name] = f"{type(error).__name__}: {error}"
            os.write(writing, json.dumps(found).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return dict(json.loads(data))


def public(kind: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_every_call_says_that_the_process_forked() -> None:
    with client_of(FakeCluster()) as client:
        model = model_of(client)
        future = model.push_pull(gradients(0))
        future.result()
        opened = model.begin()
        calls: dict[str, Callable[[], Any]] = {
            "Client.model": lambda: model_of(client),
            "Client.leaders": client.leaders,
            "Client.unreachable": client.unreachable,
            "Client.models": client.models,
            "Client.describe": lambda: client.describe("m"),
            "Client.save": lambda: client.save("m", "m.npz"),
            "Client.load": lambda: client.load("m.npz"),
            "Client.delete": lambda: client.delete("m"),
            "Model.save": lambda: model.save("m.npz"),
            "Model.pull": model.pull,
            "Model.pull_later": model.pull_later,
            "Model.push": lambda: model.push(gradients(1)),
            "Model.push_pull": lambda: model.push_pull(gradients(1)),
            "Model.accumulate": lambda: model.accumulate(gradients(1)),
            "Model.discard": model.discard,
            "Model.buffer": model.buffer,
            "Model.set_learning_rate": lambda: model.set_learning_rate(0.1),
            "Model.begin": model.begin,
            "Handover.put": lambda: opened.put("a", gradients(1)["a"]),
            "Handover.finish": lambda: opened.finish(partial=True),
            "Model.wait": model.wait,
            "Model.resume": model.resume,
            "Model.why": model.why,
            "Model.absent_ranks": model.absent_ranks,
            "Model.step": lambda: model.step,
            "Future.result": future.result,
            "Future.done": future.done,
            "Future.exception": future.exception,
            "Future.add_done_callback": lambda: future.add_done_callback(print),
        }
        for kind in (Client, Model, Future, Handover):
            missing = {f"{kind.__name__}.{name}" for name in public(kind) - ENDS} - set(calls)
            assert not missing, "new calls are to be tried here"
        found = in_child({**calls, "close": client.close, "model close": model.close})
        assert {name: text for name, text in found.items() if not text.startswith("Forked: ")} == {
            "close": "returned None",
            "model close": "returned None",
        }
        assert all("connect() in the child" in found[name] for name in calls)
        for name, gradient in gradients(1).items():
            opened.put(name, gradient)
        assert opened.finish().result().version == 2, "the parent goes on"


def test_the_tree_of_errors_says_what_to_do() -> None:
    """Each has a code, and whether trying again is safe; all can be reached from paramserver.errors."""
    found = [one for _, one in inspect.getmembers(errors, inspect.isclass) if one.__module__ == "worker.errors"]
    assert {one.__name__ for one in found} == set(paramserver.errors.__all__)
    for one in found:
        assert getattr(paramserver.errors, one.__name__) is one
        assert issubclass(one, paramserver.errors.ParameterServerError)
        assert one.code.isupper()
        assert isinstance(one.retryable, bool)
        assert one.__doc__
        assert f" {one.__name__} " in f" {(errors.__doc__ or '').replace(chr(10), ' ')} "
        error = one("it broke", "mend it")
        assert (error.cause, error.hint, str(error)) == ("it broke", "mend it", "it broke; mend it")
