"""The public names of the client, from the code: docs/api.md with their docstrings, and the list that a test locks.

    python -m tools.api write        rewrite both
    python -m tools.api check        exit with 1 if one of them is not what the code says

Owns what counts as public: what `paramserver.__all__`, `paramserver.aio`, `paramserver.jax`, `paramserver.torch` and
`paramserver.errors` list, and of classes what has no underscore. PyTorch need not be installed: what the adapter takes
from it when it is imported has a stand-in here. Must not know: what any of it does.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/api.md"
LOCK = ROOT / "tests/docs/public_api.txt"
HEAD = """# API reference

Made from the docstrings by `python -m tools.api write`; a test says when it is not up to date. How to use it, and what
each call promises: [embedding](embedding.md).
"""


class Entry(NamedTuple):
    """`shown`: name and signature, in one line. `level`: 2 a module, 3 a name of it, 4 a member of that."""

    level: int
    name: str
    shown: str
    doc: str


def entries() -> Iterator[Entry]:
    for name in ("paramserver", "paramserver.aio", "paramserver.jax", "paramserver.torch", "paramserver.errors"):
        module = _torch() if name == "paramserver.torch" else importlib.import_module(name)
        yield Entry(2, name, name, inspect.getdoc(module) or "")
        for one in sorted(module.__all__, key=str.lower):
            value = getattr(module, one)
            if not isinstance(value, ModuleType):
                yield from _of(f"{name}.{one}", value, members=name != "paramserver.errors")


def _torch() -> ModuleType:
    """`paramserver.torch`, read with a stand-in for PyTorch and forgotten again."""
    ours = ("torch", "worker.torch", "paramserver.torch")
    before = {name: sys.modules.pop(name, None) for name in ours}
    stand_in = MagicMock()
    stand_in.optim.Optimizer = object
    stand_in.no_grad = lambda: lambda function: function
    try:
        sys.modules["torch"] = stand_in
        return importlib.import_module("paramserver.torch")
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


def _of(name: str, value: Any, *, members: bool) -> Iterator[Entry]:
    doc = inspect.getdoc(value) or ""
    if inspect.isfunction(value):
        yield Entry(3, name, f"{name}{signature(value)}", doc)
    elif not inspect.isclass(value):
        yield Entry(3, name, f"{name}: {type(value).__name__}", doc)
    elif issubclass(value, enum.Enum):
        yield Entry(3, name, f"class {name}: {', '.join(value.__members__)}", doc)
    elif issubclass(value, Exception):
        retryable = "retryable" if value.retryable else "not retryable"  # type: ignore[attr-defined]
        parent = value.__mro__[1].__name__
        yield Entry(3, name, f"class {name}({parent}): {value.code}, {retryable}", doc)  # type: ignore[attr-defined]
    else:
        made = signature(value.__init__) if _own(value, "__init__") else ""
        init = inspect.getdoc(value.__init__) if "__init__" in vars(value) else None
        yield Entry(3, name, f"class {name}{made}", f"{doc}\n\n{init}" if init else doc)
        for one, member in sorted(_members(value).items()):
            if members and not one.startswith("_"):
                yield from _member(name, one, member)


def _members(kind: type) -> dict[str, Any]:
    """Its own, and those of classes of ours that it is made of."""
    ours = [one for one in reversed(kind.__mro__) if one.__module__.split(".")[0] in ("paramserver", "worker")]
    return {name: member for one in ours for name, member in vars(one).items()}


def _own(kind: type, name: str) -> bool:
    """Whether people call it: not where another call makes the object."""
    return name in vars(kind) and kind.__name__ in ("Spec", "TensorSpec", "Pushed", "DistributedOptimizer")


def _member(owner: str, name: str, member: Any) -> Iterator[Entry]:
    where = f"{owner}.{name}"
    if isinstance(member, property) and member.fget is not None:
        kind = member.fget.__annotations__.get("return", "")
        yield Entry(4, where, f"{where}: {kind}", inspect.getdoc(member) or "")
    elif isinstance(member, classmethod):
        yield Entry(4, where, f"{where}{signature(member.__func__)}", inspect.getdoc(member.__func__) or "")
    elif inspect.isfunction(member):
        awaited = "await " if inspect.iscoroutinefunction(member) else ""
        yield Entry(4, where, f"{awaited}{where}{signature(member)}", inspect.getdoc(member) or "")


def signature(function: Any) -> str:
    parts, star = [], False
    found = inspect.signature(function)
    for one in found.parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is one.KEYWORD_ONLY and not star:
            parts.append("*")
            star = True
        kind = "" if one.annotation is one.empty else f": {_text(one.annotation)}"
        given = "" if one.default is one.empty else f" = {_default(one.default)}"
        stars = "**" if one.kind is one.VAR_KEYWORD else ""
        parts.append(f"{stars}{one.name}{kind}{given}")
    back = "" if found.return_annotation in (found.empty, None) else f" -> {_text(found.return_annotation)}"
    return f"({', '.join(parts)}){back}"


def _text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _default(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    return value.__name__ if inspect.isclass(value) else repr(value)


def lock() -> str:
    """One line a public name, with its signature."""
    return "".join(f"{entry.shown}\n" for entry in entries())


def page() -> str:
    parts = [HEAD]
    for level, name, shown, doc in entries():
        heading = f"{'#' * level} {name}" if level < 4 else f"#### {name.rpartition('.')[2]}"
        text = f"\n```text\n{_folded(shown)}\n```\n" if level > 2 else ""
        parts.append(f"{heading}\n{text}\n{_prose(doc)}")
    return "\n".join(parts)


def _folded(shown: str) -> str:
    """A long signature, a parameter a line."""
    opening, closing = shown.find("("), shown.rfind(")")
    if len(shown) <= 100 or opening < 0:
        return shown
    inner = re.split(r", (?=\*|[a-z_]+:)", shown[opening + 1 : closing])
    lines = ",\n    ".join(inner)
    return f"{shown[:opening]}(\n    {lines},\n{shown[closing:]}"


def _prose(doc: str) -> str:
    """As it stands: docstrings are laid out by hand."""
    return f"```text\n{doc}\n```\n" if doc else ""


def main(arguments: list[str]) -> int:
    wanted = {PAGE: page(), LOCK: lock()}
    if arguments == ["write"]:
        for path, text in wanted.items():
            path.write_text(text)
        return 0
    if arguments != ["check"]:
        print(__doc__)
        return 2
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what the code says: python -m tools.api write")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
