"""The one encoding of a group's configuration: payload of configuration entries, part of snapshot metadata on disk and
on the wire, of creation records, of orders of group 0.

Owns the bytes (version 1, docs/formats.md) and which configurations can be. Invariants: what does not decode exactly
to its end, or can't be, raises `ValueError`; equal configurations have equal bytes. Must not know: where it is stored.
"""

from __future__ import annotations

import struct

from consensus.core.interface import Configuration, Home, NodeId, Payload, ReplicaId

VERSION = 1
MEMBERS_MAX = 1024
ADDRESS_BYTES_MAX = 255
UUID_BYTES = 16
_HEAD = struct.Struct("<BBHHHHQ")  # version, 0, voters, learners, outgoing, homes, next replica
_HOME = struct.Struct("<QHBB")  # replica, node, bytes of uuid, bytes of address


def problem_of(configuration: Configuration) -> str:
    """What is wrong with a configuration, or an empty string."""
    voters, learners, outgoing = configuration.voters, configuration.learners, configuration.outgoing
    if not voters:
        return "it has no voters"
    if len(voters) + len(learners) + len(outgoing) > MEMBERS_MAX or len(configuration.homes) > MEMBERS_MAX:
        return f"it has more than {MEMBERS_MAX} members"
    for part in ((*voters, *learners), (*outgoing, *learners)):
        if len(set(part)) != len(part):
            return f"a replica stands in it twice: {part}"
    members = members_of(configuration)
    if any(not 0 < member < 2**63 for member in members):
        return f"replica ids are positive: {sorted(members)}"
    if configuration.next_replica and configuration.next_replica <= max(members):
        return f"next_replica {configuration.next_replica} is not above its members {sorted(members)}"
    homes = [home.replica for home in configuration.homes]
    if len(set(homes)) != len(homes) or not set(homes) <= members:
        return f"homes {homes} are not those of members {sorted(members)}"
    for home in configuration.homes:
        if not 0 < home.node < 2**16 or len(home.uuid) not in (0, UUID_BYTES):
            return f"replica {home.replica} lives nowhere: {home}"
        if len(home.address.encode()) > ADDRESS_BYTES_MAX:
            return f"the address of replica {home.replica} is longer than {ADDRESS_BYTES_MAX} bytes"
    return ""


def members_of(configuration: Configuration) -> frozenset[ReplicaId]:
    """Everybody whom a leader sends entries to."""
    return frozenset((*configuration.voters, *configuration.outgoing, *configuration.learners))


def next_replica_of(configuration: Configuration) -> ReplicaId:
    """The lowest id that was never a member."""
    return configuration.next_replica or max(members_of(configuration)) + 1


def node_of(configuration: Configuration, replica: ReplicaId) -> NodeId:
    """Where it lives; 0 when the configuration does not say."""
    return next((home.node for home in configuration.homes if home.replica == replica), 0)


def encode_configuration(configuration: Configuration) -> bytes:
    """Raises `ValueError` for a configuration that can't be."""
    problem = problem_of(configuration)
    if problem:
        raise ValueError(problem)
    voters, learners, outgoing = configuration.voters, configuration.learners, configuration.outgoing
    counts = (len(voters), len(learners), len(outgoing), len(configuration.homes))
    parts = [
        _HEAD.pack(VERSION, 0, *counts, next_replica_of(configuration)),
        struct.pack(f"<{sum(counts[:3])}Q", *voters, *learners, *outgoing),
    ]
    for home in configuration.homes:
        address = home.address.encode()
        parts += [_HOME.pack(home.replica, home.node, len(home.uuid), len(address)), home.uuid, address]
    return b"".join(parts)


def decode_configuration(data: Payload) -> Configuration:
    """Raises `ValueError` for an unknown version, a length that does not fit, a configuration that can't be."""
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise ValueError(f"a configuration has at least {_HEAD.size} bytes, not {len(view)}")
    version, zero, voter_count, learner_count, outgoing_count, home_count, next_replica = _HEAD.unpack_from(view)
    if version != VERSION:
        raise ValueError(f"configuration of version {version}; this build knows {VERSION}")
    if zero:
        raise ValueError(f"the second byte of a configuration is 0, not {zero}")
    layout = struct.Struct(f"<{voter_count + learner_count + outgoing_count}Q")
    at = _HEAD.size
    if at + layout.size > len(view):
        raise ValueError(f"a configuration of {len(view)} bytes does not hold its members")
    members = layout.unpack_from(view, at)
    at += layout.size
    homes = []
    for _ in range(home_count):
        if at + _HOME.size > len(view):
            raise ValueError(f"a configuration of {len(view)} bytes does not hold its homes")
        replica, node, uuid_bytes, address_bytes = _HOME.unpack_from(view, at)
        at += _HOME.size
        end = at + uuid_bytes + address_bytes
        if end > len(view):
            raise ValueError(f"a configuration of {len(view)} bytes does not hold its homes")
        uuid = bytes(view[at : at + uuid_bytes])
        homes.append(Home(replica, node, uuid, bytes(view[at + uuid_bytes : end]).decode()))
        at = end
    if at != len(view):
        raise ValueError(f"{len(view) - at} bytes too many in a configuration")
    learners_end = voter_count + learner_count
    configuration = Configuration(
        voters=members[:voter_count],
        learners=members[voter_count:learners_end],
        outgoing=members[learners_end:],
        homes=tuple(homes),
        next_replica=next_replica,
    )
    problem = problem_of(configuration)
    if problem:
        raise ValueError(problem)
    return configuration
