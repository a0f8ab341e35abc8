"""Files that Hotset writes: whole or not at all, and never in place of something that is read.

A file is written under a temporary name beside its own, ``NAME.hotset-XXXXXXXX.partial``, and renamed when it
is whole. Two writers of one file have a temporary file each; the last one to be renamed stays. Each is locked
while it is written, so that the next writer can tell what a killed one has left behind, and removes it.

Windows renames and removes no file that is open, so that nothing is locked there, and what killed ones leave
behind stays.

A symbolic link is followed: the file that it leads to is replaced, the link stays.
"""

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from hotset.core.errors import HotsetError
from hotset.formats.mapped import check_whole

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_MARK = re.compile(r"\.hotset-[0-9a-f]{8}\.partial")
_LONGEST_NAME = 200
"""Bytes of a name that still has room for the mark behind it; most file systems allow 255 together."""
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_output(
    path: Path,
    reading: Iterable[Path] = (),
    *,
    kind: str = "",
    replaces: Callable[[Path], bool] | None = None,
) -> None:
    """Raise `HotsetError` if `path` cannot be written, before any work is done for it.

    It must be a regular file or nothing yet, in a directory that can be written to, and none of the files
    that are being read. What is there already is replaced only if it is empty or `replaces` says that it is
    such a file as is to be written: `kind`, for people.
    """
    target = _target(path)
    if not target.exists():
        return
    for file in reading:
        with contextlib.suppress(OSError):
            if file.samefile(target):
                raise HotsetError(f"{path} is one of the files to be read: name another file to write")
    if replaces and target.stat().st_size and not replaces(target):
        raise HotsetError(
            f"{path} is there already and is no {kind}: name another file to write, or remove that one"
        )


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Give an empty temporary file to write, which gets the name `path` at the end.

    Whatever goes wrong, Ctrl-C included, the temporary file is removed and an older `path` stays. Raises
    `HotsetError` for what the system refuses, such as a full disk, and for a `path` that is no regular file.
    """
    try:
        with _temporary(_target(path)) as temporary:
            yield temporary
            _replace(_target(path), temporary)
    except OSError as error:
        check_whole()  # a write of what a mapped file no longer has fails as a bad address
        raise HotsetError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
    """Give an empty directory beside `path`, for what is needed while that is made; removed at the end."""
    try:
        with _temporary(_target(path), directory=True) as temporary:
            yield temporary
    except OSError as error:
        raise HotsetError(f"{path}: cannot be written: {error.strerror or error}") from None


def _replace(target: Path, temporary: Path) -> None:
    try:
        temporary.replace(target)
    except PermissionError:
        if fcntl is None and target.exists():
            raise HotsetError(f"{target} is open in a program, perhaps this one: end that first") from None
        raise


def _target(path: Path) -> Path:
    """The file that is written, links followed; `HotsetError` if there cannot be one."""

    def refused(reason: str) -> HotsetError:
        return HotsetError(f"{path}: cannot be written: {reason}")

    if path.name in ("", ".."):
        raise refused("expected the name of a file, found a directory")
    try:
        status = path.stat()
    except FileNotFoundError:
        status = None
    except (OSError, ValueError) as error:
        raise refused(getattr(error, "strerror", None) or str(error)) from None
    target = Path(os.path.realpath(path))
    if status:
        for is_kind, name in _KINDS:
            if is_kind(status.st_mode):
                raise refused(f"expected a file, found {name}")
        if not target.exists() or not path.samefile(target):
            raise refused("it is a link to a file without a name")
        if not os.access(target, os.W_OK):
            raise refused("the file is write-protected")
    if not target.parent.is_dir():
        raise refused(f"there is no directory {target.parent}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise refused(f"the directory {target.parent} cannot be written to")
    return target


@contextlib.contextmanager
def _temporary(target: Path, *, directory: bool = False) -> Iterator[Path]:
    """A locked temporary file or directory beside `target`; removed unless it has got another name."""
    stem = target.name
    if len(os.fsencode(stem)) > _LONGEST_NAME:
        stem = sha256(os.fsencode(stem)).hexdigest()[:16]
    _remove_leftovers(target.parent, stem)
    descriptor = -1
    temporary = target
    try:
        while temporary == target or not os.path.lexists(temporary):  # another writer took it for a leftover
            _close(descriptor)
            temporary = target.with_name(f"{stem}.hotset-{secrets.token_hex(4)}.partial")
            if directory:
                temporary.mkdir(mode=0o700)
            else:
                temporary.touch(exist_ok=False)
            descriptor = _locked(temporary, wait=True)
        if not directory and target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        yield temporary
    finally:
        if temporary != target:  # also where a signal came between making it and knowing its descriptor
            _remove(temporary)
        _close(descriptor)


def _remove_leftovers(folder: Path, stem: str) -> None:
    """Remove the temporary files of runs that were killed: those that nobody has locked."""
    entries: list[Path] = []
    with contextlib.suppress(OSError):  # a directory that may be written to, but not read
        entries += folder.iterdir()
    for entry in entries:
        if not (entry.name.startswith(stem) and _MARK.fullmatch(entry.name, len(stem))):
            continue
        descriptor = _locked(entry, wait=False)
        if descriptor >= 0:
            _remove(entry)
            _close(descriptor)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _locked(path: Path, *, wait: bool) -> int:
    """A descriptor of a file or directory, locked while it is open; -1 where that is not to be had."""
    if fcntl is None:
        return -1
    descriptor = -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        _close(descriptor)
        return -1
    return descriptor


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)
