"""What `connect` and the calls of clients and models are given, judged before anything is sent.

Invariant: what is wrong is InvalidArgument, which names the argument, what came and what was expected. Must not know:
clients, servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paramserver.wire.spec import RANKS_MAX
from worker.errors import InvalidArgument
from worker.initialize import Initial
from worker.spec import Shapes, Spec, check_mode, check_name

SERVERS_MAX = 1024
VERSION_MAX = 2**62 - 1


def parse_servers(servers: str | Sequence[str]) -> tuple[str, ...]:
    """The addresses in "host:port,host:port". Raises InvalidArgument naming the first that is none."""
    parts = servers.split(",") if isinstance(servers, str) else list(servers)
    addresses = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not 1 <= len(addresses) <= SERVERS_MAX:
        raise InvalidArgument(f"servers: {len(addresses)} addresses", f"expected 1 to {SERVERS_MAX}, as host:port")
    for address in addresses:
        host, _, port = address.rpartition(":")
        bare_v6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
        wrong_port = not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535)
        if not host or wrong_port or bare_v6 or not address.isprintable() or " " in address:
            raise InvalidArgument(f"server {address!r}", "expected host:port, such as 127.0.0.1:7001")
    return addresses


def given_fields(**fields: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {field: value for field, value in fields.items() if value is not None}


def spec_asked_for(
    name: str, tensors: Shapes | Spec | None, given: dict[str, Any], initial: Initial | None
) -> Spec | None:
    """Of `Client.model`; None: the model must exist. What is wrong with the name and with the rest, all at once."""
    try:
        spec = _spec_of(name, tensors, given, initial)
    except InvalidArgument as error:
        try:
            check_name("name", name)
        except InvalidArgument as misnamed:
            raise InvalidArgument(f"{misnamed.cause}; {error.cause}", error.hint) from None
        raise
    check_name("name", name)
    return spec


def _spec_of(name: str, tensors: Shapes | Spec | None, given: dict[str, Any], initial: Initial | None) -> Spec | None:
    check_mode(given.get("mode"))
    fields = ", ".join(given)
    if isinstance(tensors, Spec):
        if given:
            raise InvalidArgument(f"model {name!r}: {fields} beside a Spec", "they are part of the Spec")
        return tensors
    if tensors is None:
        if given or initial is not None:
            raise InvalidArgument(f"model {name!r}: {fields or 'initial values'} without tensors", "pass `tensors`")
        return None
    if "optimizer" not in given:
        raise InvalidArgument(f"model {name!r}: no optimizer", "pass one, such as paramserver.sgd(0.1)")
    return Spec(tensors, **given)


def check_rank(rank: object, ranks: int | None) -> None:
    whole = isinstance(rank, int) and not isinstance(rank, bool)
    if not whole or not 0 <= rank < (RANKS_MAX if ranks is None else ranks):  # type: ignore[operator]
        raise InvalidArgument(f"rank {rank!r}", f"expected 0 to {(RANKS_MAX if ranks is None else ranks) - 1}")


def check_version(field: str, value: object) -> None:
    """Of a version or a step. Raises InvalidArgument."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(f"{field} {value!r}", f"expected a whole number from 0 to {VERSION_MAX}")
    if not 0 <= value <= VERSION_MAX:
        raise InvalidArgument(f"{field} {value}", "expected 0 to 2^62 - 1")
