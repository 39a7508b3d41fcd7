"""The peers by name."""

from __future__ import annotations

from typing import TypeAlias

from benchmarks.pushpull.peers.gloo import Gloo
from benchmarks.pushpull.peers.ray import Ray
from benchmarks.pushpull.peers.redis import Redis
from benchmarks.pushpull.peers.torch_rpc import TorchRpc, TorchRpcPlain

Peer: TypeAlias = type[TorchRpc] | type[TorchRpcPlain] | type[Gloo] | type[Redis] | type[Ray]
PLAIN = {TorchRpc.name: TorchRpcPlain.name}
"""What is measured beside a peer, unasked."""
PEERS: dict[str, Peer] = {peer.name: peer for peer in (TorchRpc, TorchRpcPlain, Gloo, Redis, Ray)}
