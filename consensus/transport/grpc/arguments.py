"""`TransportOptions` as channel arguments of gRPC. Must not know: what travels."""

from __future__ import annotations

from typing import TypeAlias

from consensus.transport.options import MIB, TransportOptions

ChannelArguments: TypeAlias = list[tuple[str, int | str]]


def _shared(options: TransportOptions) -> ChannelArguments:
    return [
        ("grpc.max_send_message_length", options.message_bytes_max),
        ("grpc.max_receive_message_length", options.message_bytes_max),
        ("grpc.keepalive_time_ms", options.keepalive_ms),
        ("grpc.keepalive_timeout_ms", options.keepalive_timeout_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_frame_size", 16 * MIB - 1),
        # Measuring the link instead would let the window of a stream grow out of our sight.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", options.stream_window_bytes),
    ]


def client_arguments(options: TransportOptions) -> ChannelArguments:
    """Of a channel to a peer. The local pool gives each channel a connection of its own; two channels to one target
    share one otherwise (RULES C3)."""
    return [
        *_shared(options),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", options.reconnect_ms_min),
        ("grpc.min_reconnect_backoff_ms", options.reconnect_ms_min),
        ("grpc.max_reconnect_backoff_ms", options.reconnect_ms_max),
    ]


def server_options(options: TransportOptions | None = None) -> ChannelArguments:
    """For the `grpc.aio.server` that a `NodeTransport` is registered on. Without `so_reuseport=0` a second process
    binds the same port without an error."""
    options = options or TransportOptions()
    return [
        *_shared(options),
        ("grpc.so_reuseport", 0),
        # Peers ask for signs of life on streams that carry nothing the other way; that is no attack.
        ("grpc.http2.min_ping_interval_without_data_ms", max(1, options.keepalive_ms // 2)),
        ("grpc.http2.max_ping_strikes", 0),
    ]
