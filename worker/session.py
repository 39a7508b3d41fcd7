"""The session file: who this worker is, kept over its own crashes.

Owns a small JSON file (mode 0600) with the client id, the session's secret and a counter of starts, and a lock beside
it. Invariants: only one process uses a session file at a time (two would fight for the rank under each other's feet);
the file is replaced whole and synced before its content is used, so the counter of starts, the high half of sequence
numbers (RULES A4), never repeats; a file of another cluster is refused. Must not know: servers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from worker.errors import SessionFileError

FORMAT = 1
FILE_BYTES_MAX = 4096
CLIENT_BYTES = 16
SECRET_BYTES = 32
STARTS_MAX = 1 << 31
"""Sequence numbers are starts << 32 | count: they fit in 63 bits."""


@dataclass(frozen=True, slots=True)
class Session:
    """Credentials of a client. `client` and `secret` are random; `starts` counts how often they were taken up.
    `model` and `rank` are notes for the reader of the file: what the session was used for last."""

    cluster: str
    client: bytes
    secret: bytes
    starts: int
    model: str = ""
    rank: int | None = None

    @property
    def secret_digest(self) -> bytes:
        """What servers keep: sha-256 of the secret."""
        return hashlib.sha256(self.secret).digest()

    @property
    def first_sequence(self) -> int:
        return self.starts << 32

    def __repr__(self) -> str:  # a secret does not belong in logs and tracebacks
        return f"Session(client={self.client.hex()}, starts={self.starts}, model={self.model!r}, rank={self.rank})"


def new(cluster: str) -> Session:
    """A session that ends with its process."""
    return Session(cluster, secrets.token_bytes(CLIENT_BYTES), secrets.token_bytes(SECRET_BYTES), starts=1)


def default_path(cluster: str, model: str, rank: int) -> Path:
    """Where `paramserver worker` keeps its session: one file a cluster, model and rank, in the user's state folder."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    # A model's name may hold what a file name may not; the digest keeps names apart that look alike afterwards.
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", model)[:40]
    digest = hashlib.sha256(model.encode()).hexdigest()[:8]
    return Path(state).expanduser() / "paramserver" / f"{cluster[:12]}-{safe}-{digest}-rank{rank}.session"


class SessionFile:
    """An open, locked session file. `close()` lets go of it."""

    def __init__(self, path: Path, session: Session, lock: int) -> None:
        self.path = path
        self.session = session
        self._lock: int | None = lock

    @classmethod
    def open(cls, path: str | os.PathLike[str], cluster: str) -> SessionFile:
        """Take up the session in `path`, or begin one there. Raises SessionFileError."""
        place = Path(path)
        lock = _take_lock(place)
        try:
            found = _read(place)
            if found is None:
                session = new(cluster)
            else:
                session = _of_cluster(found, cluster, place)
                session = replace(session, starts=session.starts + 1)
            _write(place, session)
        except BaseException:
            os.close(lock)
            raise
        return cls(place, session, lock)

    def note(self, model: str, rank: int) -> None:
        """Write down what the session is used for."""
        if (self.session.model, self.session.rank) != (model, rank):
            self.session = replace(self.session, model=model, rank=rank)
            _write(self.path, self.session)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # and with it goes the lock
            self._lock = None


def _take_lock(path: Path) -> int:
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Not the file itself: it is replaced on each start, and a lock on a file that was replaced holds nobody off.
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SessionFileError(
            f"session file {path}: {error.strerror}", "choose another place: --session FILE"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise SessionFileError(
                f"session file {path}: {error.strerror}", "it needs a place with file locks"
            ) from None
        raise SessionFileError(
            f"session file {path} is in use by another process",
            "stop that worker first, or give this one a session file of its own",
        ) from None
    return lock


def _read(path: Path) -> dict[str, Any] | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SessionFileError(
            f"session file {path}: {error.strerror}", "choose another place: --session FILE"
        ) from None
    try:
        mode = stat.S_IMODE(os.fstat(file).st_mode)
        if mode & 0o077:
            raise SessionFileError(
                f"session file {path} has mode {mode:04o}: others may read its secret", f"chmod 600 {path}"
            )
        data = os.read(file, FILE_BYTES_MAX + 1)
    finally:
        os.close(file)
    try:
        found = json.loads(data) if len(data) <= FILE_BYTES_MAX else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _damaged(path)
    return found


def _of_cluster(found: dict[str, Any], cluster: str, path: Path) -> Session:
    if found.get("format") != FORMAT:
        raise SessionFileError(
            f"session file {path} has format {found.get('format')!r}, expected {FORMAT}", "written by another version?"
        )
    try:
        session = Session(
            cluster=str(found["cluster"]),
            client=bytes.fromhex(found["client"]),
            secret=bytes.fromhex(found["secret"]),
            starts=int(found["starts"]),
            model=str(found.get("model", "")),
            rank=None if found.get("rank") is None else int(found["rank"]),
        )
    except (KeyError, TypeError, ValueError):
        raise _damaged(path) from None
    lengths = (len(session.client), len(session.secret))
    if lengths != (CLIENT_BYTES, SECRET_BYTES) or not 0 < session.starts < STARTS_MAX:
        raise _damaged(path)
    if session.cluster != cluster:
        raise SessionFileError(
            f"session file {path} belongs to cluster {session.cluster[:12]}, these servers are {cluster[:12]}",
            "a new cluster needs a new session file; remove this one if the old cluster is gone",
        )
    return session


def _damaged(path: Path) -> SessionFileError:
    return SessionFileError(
        f"session file {path} cannot be read", "remove it; the rank is free again when its lease has ended"
    )


def _write(path: Path, session: Session) -> None:
    fields = asdict(session) | {"format": FORMAT, "client": session.client.hex(), "secret": session.secret.hex()}
    data = json.dumps(fields, indent=1).encode() + b"\n"
    temporary = path.with_name(path.name + ".new")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(file, 0o600)
            os.write(file, data)
            os.fsync(file)
        finally:
            os.close(file)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise SessionFileError(
            f"session file {path}: {error.strerror}", "choose another place: --session FILE"
        ) from None
