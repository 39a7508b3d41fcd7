"""`paramserver model list|show|save|load|delete`.

Owns each command's words, and how models are shown. Must not know: how a model is saved and
loaded.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from paramserver.cli import codes, flags
from paramserver.cli.codes import CommandError
from paramserver.cli.flags import Flag
from paramserver.cli.shape import JSON, LOOKING, SERVERS, Verb
from paramserver.cli.text import SENTENCE_MAX, escape, table

if TYPE_CHECKING:
    from worker.client import Client

SOME = "--servers 127.0.0.1:7001"
MODEL = Flag("MODEL", "its name", str, metavar="MODEL", required=True)
PATH = Flag(
    "PATH", "the file, .safetensors or .npz; it appears whole or not at all", str, metavar="PATH", required=True
)
STEP = Flag("--step", "the version to save, not a past one (default: the one that training is at)",
            flags.integer(0, 2**62 - 1), metavar="STEP")  # fmt: skip
TIMEOUT = Flag("--timeout", "seconds to wait for it", flags.number(0.1, 86_400), 600.0, "SECONDS")
FILE = Flag("PATH", "the file, .safetensors or .npz", str, metavar="PATH", required=True)
NAME = Flag("--name", "the model to load it into (default: the one it was saved of)", str, metavar="NAME")
YES = Flag("--yes", "don't ask")
FORCE = Flag("--force", "although workers hold ranks of it")
TENSORS_SHOWN = 40
"""Of a model; --json has them all."""


@contextlib.contextmanager
def _client(values: flags.Values) -> Iterator[Client]:
    """Connected; what its calls raise ends the command with a cause, a hint and a code."""
    import paramserver
    from worker import errors

    try:
        with paramserver.connect(values["servers"], timeout=values["timeout"]) as client:
            yield client
    except errors.ParameterServerError as error:
        code = codes.REFUSED
        if isinstance(error, errors.InvalidArgument | errors.NotFound):
            code = codes.USAGE
        elif isinstance(error, errors.Unavailable | errors.DeadlineExceeded):
            code = codes.UNREACHABLE
        elif isinstance(error, errors.CheckpointError):
            code = codes.CHECK_FAILED
        raise CommandError(escape(error.cause, SENTENCE_MAX), escape(error.hint, SENTENCE_MAX), code=code) from None


def _list(values: flags.Values) -> int:
    with _client(values) as client:
        models = client.models()
    if values["json"]:
        print(json.dumps({"models": [asdict(model) for model in models]}))
        return codes.OK
    rows = [
        (escape(one.name), str(one.model), str(one.generation), str(one.parameters), f"{one.ranks_held}/{one.ranks}",
         "open" if one.open else "without values", one.optimizer)
        for one in models
    ]  # fmt: skip
    print("\n".join(table(("model", "id", "generation", "parameters", "ranks held", "state", "optimizer"), rows)))
    return codes.OK


def _show(values: flags.Values) -> int:
    with _client(values) as client:
        model = client.describe(values["MODEL"])
    spec = model.spec
    if values["json"]:
        print(json.dumps({
            "name": spec.name, "model": model.model, "generation": model.generation, "open": model.open,
            "parameters": spec.parameters, "optimizer": str(spec.optimizer), "ranks": spec.ranks,
            "reduction": spec.reduction.name, "non_finite": spec.non_finite.name, "block_bytes": spec.block_bytes,
            "log_codec": spec.log_codec.name, "learning_rates": [list(one) for one in model.rates],
            "shards": [asdict(shard) for shard in model.shards],
            "ranks_held": [one.rank for one in model.ranks if one.held],
            "tensors": [{"name": one.name, "shape": list(one.shape)} for one in spec.tensors],
        }))  # fmt: skip
        return codes.OK
    held = ", ".join(str(one.rank) for one in model.ranks if one.held) or "none"
    state = "open" if model.open else "without values"
    lines = [
        f"model {escape(spec.name)}: id {model.model}, generation {model.generation}, {state}",
        f"{spec.parameters} parameters in {len(spec.tensors)} tensors, blocks of {spec.block_bytes} bytes",
        f"optimizer {spec.optimizer}, {spec.reduction.name} over {spec.ranks} ranks, held: {held}",
        f"non-finite gradients: {spec.non_finite.name}; sums logged in {spec.log_codec.name}",
        *(f"learning rate {rate:g} from step {step}" for step, rate in sorted(dict(model.rates).items())),
        "",
        *table(
            ("group", "blocks"), [(str(one.group), f"{one.first}..{one.first + one.count - 1}") for one in model.shards]
        ),
        "",
        *table(("tensor", "shape"), [(escape(one.name), str(one.shape)) for one in spec.tensors[:TENSORS_SHOWN]]),
    ]
    if len(spec.tensors) > TENSORS_SHOWN:
        lines.append(f"and {len(spec.tensors) - TENSORS_SHOWN} more; --json has them all")
    print("\n".join(lines))
    return codes.OK


def _save(values: flags.Values) -> int:
    with _client(values) as client, _progress("saving") as progress:
        saved = client.save(
            values["MODEL"], values["PATH"], step=values["step"], timeout=values["timeout"], progress=progress
        )
    if values["json"]:
        print(json.dumps({"model": values["MODEL"], **asdict(saved)}))
    else:
        print(f"version {saved.step} of {escape(values['MODEL'])} is in {escape(saved.path)}, {saved.size} bytes")
    return codes.OK


def _load(values: flags.Values) -> int:
    with _client(values) as client, _progress("loading") as progress:
        loaded = client.load(values["PATH"], name=values["name"], timeout=values["timeout"], progress=progress)
    if values["json"]:
        print(json.dumps(asdict(loaded)))
    else:
        place = f"generation {loaded.generation} of {escape(loaded.name)}"
        print(f"{place} is open at version {loaded.step}, id {loaded.model}")
    return codes.OK


def _delete(values: flags.Values) -> int:
    name = values["MODEL"]
    with _client(values) as client:
        if not values["yes"]:
            _confirm(client, name)
        client.delete(name, force=values["force"], timeout=values["timeout"])
    print(json.dumps({"deleted": name}) if values["json"] else f"{escape(name)} is deleted")
    return codes.OK


def _confirm(client: Client, name: str) -> None:
    """At a terminal. Raises CommandError unless the answer is yes."""
    model = client.describe(name)
    if not sys.stdin.isatty():
        raise CommandError("nobody is there to confirm it", "--yes deletes without asking", code=codes.USAGE)
    print(f"delete {escape(name)}, {model.spec.parameters} parameters, on all servers? [y/N] ", end="", file=sys.stderr)
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CommandError("nothing was deleted", code=codes.REFUSED)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where that is a terminal and rich is there."""
    import importlib.util

    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


LIST = Verb(
    "List the models of a cluster.",
    f"example:\n  paramserver model list {SOME}\n",
    LOOKING,
    "model list",
    _list,
)
SHOW = Verb(
    "Show one model: tensors, optimizer, learning rates, ranks, where its blocks are.",
    f"example:\n  paramserver model show digits {SOME}\n",
    (MODEL, *LOOKING),
    "model show",
    _show,
)
SAVE = Verb(
    "Save a model at one step while it trains: weights, optimizer, step, learning rates.",
    f"example:\n  paramserver model save digits digits.safetensors {SOME}\n",
    (MODEL, PATH, SERVERS, STEP, TIMEOUT, JSON),
    "model save",
    _save,
)
LOAD = Verb(
    "Load a model that was saved: a new one, or over the one of that name, which must have the same spec.",
    f"example:\n  paramserver model load digits.safetensors --name digits {SOME}\n",
    (FILE, SERVERS, NAME, TIMEOUT, JSON),
    "model load",
    _load,
)
DELETE = Verb(
    "Delete a model on all servers.",
    f"example:\n  paramserver model delete digits {SOME}\n",
    (MODEL, SERVERS, YES, FORCE, TIMEOUT, JSON),
    "model delete",
    _delete,
)
