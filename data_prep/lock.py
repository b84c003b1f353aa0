"""One program at a time writes into a directory: a lock that the kernel takes back when the process ends, however.

flock(2) on a file that names its holder. It holds between processes of one machine; between machines it does where
the file system hands flock on to its server (NFS from Linux 2.6.12 on, Lustre mounted with `flock`). Where there are
no locks at all, nothing is locked and a warning says so.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from data_prep.errors import InputError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[Path] = set()  # by this process, which may ask again: a command is made of commands


@contextlib.contextmanager
def held(path: Path, directory, remedy: str) -> Iterator[bool]:
    """Holds the lock file `path`, which exists while the lock is held (or its holder was killed).

    Yields whether there is a lock: false on a file system that has none.

    Args:
        directory: what it guards, for the message.
        remedy: what else the user can do than to wait.

    Raises:
        InputError: another process holds it; names process and machine.
        OSError: the file cannot be made.
    """
    path = Path(path).absolute()
    if path in _held:
        yield True
        return
    file, locked = _take(path, directory, remedy)
    _held.add(path)
    try:
        yield locked
    finally:
        _held.remove(path)
        path.unlink(missing_ok=True)  # while it is locked: see `_take`
        os.close(file)


def _take(path: Path, directory, remedy: str) -> tuple[int, bool]:
    while True:
        try:  # a link would lead to a file of another's choice, which would be overwritten
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise InputError(f"{path} is a link; remove it") from None
            raise
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is(file, path):  # its holder has just removed it
                os.close(file)
                continue
            os.truncate(file, 0)
            os.write(file, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode())
            return file, True
        except BlockingIOError:
            holder = _holder(file)
            os.close(file)
            raise InputError(f"{directory} is in use by {holder}; wait until it has ended, or {remedy}") from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logging.warning("%s cannot be locked (%s); see that no other run uses it", directory, error.strerror)
                return file, False
            os.close(file)
            raise


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(file: int) -> str:
    try:
        facts = json.loads(os.pread(file, 4096, 0))
        return f"process {facts['process']} on {facts['host']}"
    except (ValueError, KeyError, TypeError):  # it has not written yet
        return "another process"
