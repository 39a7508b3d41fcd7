"""What keeps a server from starting.

Owns that refusal, and the ports that a server takes. Invariant: a port that cannot be had is refused with the cause,
which gRPC does not tell. Must not know: what is served.
"""

from __future__ import annotations

import socket

import grpc.aio


class CannotStart(Exception):
    """One line of cause and repair; the process ends with code 2."""


def check_address(address: str) -> None:
    """Bind it once before gRPC does, which would say at length that it failed and not tell us why."""
    host, _, port = address.rpartition(":")
    try:
        for family, kind, protocol, _, where in socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
    except OSError as error:
        raise cannot_bind(address, error.strerror or str(error)) from None


def bind(server: grpc.aio.Server, address: str) -> None:
    try:
        if server.add_insecure_port(address) != 0:
            return
    except RuntimeError:
        pass
    raise cannot_bind(address, "the port is taken or the address is not of this machine")


def cannot_bind(address: str, cause: str) -> CannotStart:
    return CannotStart(
        f"cannot bind {address}: {cause}; stop what listens there "
        f"(ss -ltnp shows it), or change this node's address in the member list of every node"
    )
