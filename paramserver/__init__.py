"""A parameter server that cannot lose a step; `paramserver.connect()` is the front door."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker import connect

__all__ = ["connect"]


def __getattr__(name: str) -> Any:
    # Looked up on first use: servers import this package too, and have no need of the worker.
    if name == "connect":
        from worker import connect

        return connect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
