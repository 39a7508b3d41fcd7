"""The peers of the drill by name."""

from __future__ import annotations

from benchmarks.faults.peers.etcd import Etcd
from benchmarks.faults.peers.pysyncobj import PySyncObj
from benchmarks.faults.peers.ray import Ray, RayCheckpoint, RayRestarts
from benchmarks.faults.peers.redis import Redis
from benchmarks.faults.peers.system import Peer
from benchmarks.faults.peers.torch_rpc import TorchRpc, TorchRpcCheckpoint

PEERS: tuple[type[Peer], ...] = (TorchRpc, TorchRpcCheckpoint, Ray, RayRestarts, RayCheckpoint, PySyncObj, Etcd, Redis)
