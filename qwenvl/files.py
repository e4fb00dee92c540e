"""Files and folders: written whole or not at all, owned by one process, and never outside where data may point.

Data, checkpoints and recipes from strangers name files. Every such name passes `inside` (a file below a folder),
`component` (one folder or file name) or `safe_key` (the key of a sample), and every such file is opened by
`open_regular`, which neither waits for a pipe nor drains a device.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import socket
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

LONGEST_NAME = 200
"""Bytes of one path component: file systems allow 255, and suffixes are still to come."""

LOCK = ".lock"
"""Name of the file by which a process owns a folder."""

_UNFINISHED = re.compile(r"\..*\.[0-9a-f]{12}\.tmp", re.DOTALL)
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}  # file systems that cannot lock
_UNSAFE = re.compile(
    r"[\x00-\x20\x7f-\xa0/\\.:*?\"<>|\ud800-\udfff\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)


# === Writing ===


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when it is complete; after an exception or a kill it does not.

    The unfinished file lies beside it under a name of its own, `.NAME.RANDOM.tmp`, locked while its writer lives, so
    that two writers never share one; `owned` removes those that a kill left, and `clear_dead` where nobody owns the
    folder. Raises OSError that names `path`, ValueError where a pipe, a device or a folder has the name already.
    """
    if (kind := _kind(path)) not in (None, "file"):
        raise ValueError(f"{path} is a {kind}, where a file is to be written; name another path.")
    with made(path.parent):
        yield from _written(path, durable=durable)


def _written(path: Path, *, durable: bool) -> Iterator[IO[bytes]]:
    start = path.name.encode("utf-8", "surrogateescape")[:LONGEST_NAME].decode("utf-8", "ignore")
    unfinished = path.with_name(f".{start}.{secrets.token_hex(6)}.tmp")
    file = io.BufferedWriter(_Named(unfinished, path))
    try:
        yield file
        file.flush()
        if durable:
            os.fsync(file.fileno())
        file.close()
        unfinished.replace(path)
    except BaseException as error:
        _give_up(file)
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(unfinished)):
            error.filename = str(path)
        raise


class _Named(io.FileIO):
    """A new file whose errors name the path that it is written for; the system's own name no file ("disk full")."""

    def __init__(self, unfinished: Path, path: Path) -> None:
        try:
            super().__init__(unfinished, "x")
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self.fileno(), fcntl.LOCK_EX)
        except OSError as error:
            error.filename = str(path)
            raise
        self._path = path

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = str(self._path)
            raise


def _give_up(file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what is in its buffer does not fit either, and nobody wants it
        file.close()


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """`folder` and those above it, made where they are missing; those that are still empty at the end go again."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in new:
            with contextlib.suppress(OSError):  # it holds something, or was never made
                each.rmdir()


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """This process is the one that writes into `folder`, which is `made`; files that a killed one left are removed.

    The lock ends with the process, however it ends. Raises ValueError that names the owner where there is one.
    On a file system without locks nobody is kept out.
    """
    with made(folder), _held(folder):
        yield


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    lock = folder / LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)  # its last owner removes an empty one
        try:
            file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue
        try:
            _lock(file, folder)
            if _same(file, lock):
                break
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its last owner removed it while it was waited for
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        clear_unfinished(folder)
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Holds a lock on a folder that has no other trace; yields whether it could be had."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    except OSError:
        held = False
    try:
        yield held
    finally:
        os.close(file)


def swapped(one: Path, other: Path) -> bool:
    """Two files or folders change places in one step, so that nobody ever finds neither; False where it cannot be."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux; Python has no name for it
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _lock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(file, 200, 0).decode("utf-8", "replace") or "another process"
        raise ValueError(
            f"{folder} is being written by {owner}; wait for it or stop it, or name another folder."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def clear_dead(path: Path) -> None:
    """Removes what killed calls of `atomic` left beside `path` of it, or of a file whose name begins with its name.

    What a living process still writes is locked, and stays.
    """
    with contextlib.suppress(OSError):
        found = [name for name in os.listdir(path.parent) if _UNFINISHED.fullmatch(name)]
        for left in (path.with_name(name) for name in found if name.startswith(f".{path.name}")):
            with contextlib.suppress(OSError), left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()


def clear_unfinished(folder: Path) -> int:
    """Removes what killed calls of `atomic` left in a folder and below it, and returns how many; for its owner."""
    found = [
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if _UNFINISHED.fullmatch(name)
    ]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


# === Names that come from outside ===


def inside(root: Path, name: Any, what: str = "path") -> Path:
    """The file that data call `name`, below `root`; `what` says in the message whose name it is.

    Links are followed first: what counts is where the file lies. Returns the path under `root` as written.
    Raises ValueError for an absolute name, one that leaves `root`, and one of something that is no regular file;
    that there is no such file is for the caller to find.
    """
    if not isinstance(name, str) or not name or "\0" in name or not _encodable(name):
        raise ValueError(f"The {what} {_short(name)} is no name of a file; give one relative to {root}.")
    if name.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]|\\\\", name):
        raise ValueError(
            f"The {what} {_short(name)} is absolute; paths in data are relative to {root}: write it so, or name "
            "the folder that holds the files."
        )
    path = root / name
    try:
        real, base = os.path.realpath(path), os.path.realpath(root)
        if os.path.commonpath([real, base]) != base:
            raise ValueError(
                f"The {what} {_short(name)} leads out of {root}; only files below it are opened: name the folder "
                "that holds them."
            )
        kind = _kind(Path(real))
    except OSError as error:
        raise ValueError(f"The {what} {_short(name)} cannot be followed ({error.strerror}).") from None
    if kind not in (None, "file"):
        raise ValueError(f"The {what} {_short(name)} is a {kind}; expected a file.")
    return path


def component(name: Any, what: str) -> str:
    """`name` itself when it is one safe component of a path; raises ValueError that calls it `what`.

    Safe: printable, no slash of either kind, no dot or space at its beginning, at most `LONGEST_NAME` bytes.
    """
    if not isinstance(name, str) or not name:
        problem = "is empty" if name == "" else f"is a {type(name).__name__}"
    elif not name.isprintable():
        problem = "holds a character that is not printable"
    elif "/" in name or "\\" in name:
        problem = "holds a slash"
    elif name[0] in ". ":
        problem = "begins with a dot or a space"
    elif len(name.encode()) > LONGEST_NAME:
        problem = f"is longer than {LONGEST_NAME} bytes"
    else:
        return name
    raise ValueError(
        f"The {what} {_short(name)} {problem}; it becomes the name of a file or folder: use letters, digits, "
        "'-' and '_'."
    )


def safe_key(text: str) -> str:
    """A sample's key as the beginning of a file name: no separator, dot, space or control character, never empty.

    A key that is safe stays as it is; one that had to be changed or shortened ends with 8 digits made from the
    whole of it, so that `a.b` and `a/b` stay two keys.
    """
    safe = _UNSAFE.sub("_", text)
    raw = safe.encode()
    if safe == text and text and len(raw) <= LONGEST_NAME - 50:
        return text
    digits = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{raw[: LONGEST_NAME - 60].decode('utf-8', 'ignore')}-{digits}"


def spelling(name: str) -> str:
    """What names have in common that differ only in letter case, in the form of accents (NFC, NFD) or in %20."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", unquote(name)).casefold())


def lookalike(path: Path) -> Path | None:
    """The one file beside a missing `path` whose name has its spelling; None where there is none, or several."""
    found = names_by_spelling(path.parent).get(spelling(path.name), ())
    return path.with_name(found[0]) if len(found) == 1 else None


def names_by_spelling(folder: Path) -> Mapping[str, tuple[str, ...]]:
    """The names in a folder by their `spelling`; nothing where there is no such folder."""
    try:
        return _names_by_spelling(folder, folder.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=16)
def _names_by_spelling(folder: Path, _changed: int) -> Mapping[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {}
    for name in sorted(os.listdir(folder)):
        names[spelling(name)] = (*names.get(spelling(name), ()), name)
    return names


# === Reading ===


def open_regular(path: Path) -> IO[bytes]:
    """Opens a file for reading; raises ValueError for a folder, a pipe or a device, without waiting for it."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    try:
        kind = _kind_of(os.fstat(file).st_mode)
        if kind != "file":
            raise ValueError(f"{path} is a {kind}; expected a file.")
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit`; raises ValueError for a larger one."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path} is larger than {limit:,} bytes, the most that is read of such a file.")
    return data


def _kind(path: Path) -> str | None:
    try:
        return _kind_of(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _kind_of(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"


def _encodable(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")  # what os.fsdecode makes of other encodings is a name too
    except UnicodeEncodeError:
        return False
    return True


def _short(name: object) -> str:
    shown = ascii(name) if isinstance(name, str) and not name.isprintable() else repr(name)
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
