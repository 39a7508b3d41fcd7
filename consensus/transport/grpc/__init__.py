"""The transport on grpc.aio: two connections to each peer, control and bulk (RULES C3)."""

from consensus.transport.grpc.options import GrpcOptions, server_options
from consensus.transport.grpc.transport import GrpcTransport

__all__ = ["GrpcOptions", "GrpcTransport", "server_options"]
