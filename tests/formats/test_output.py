"""Files that are written: whole or not at all, never in place of what is read or is no regular file."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.small_disk import small_disk
from helpers.systems import on_posix

from hotset.core.errors import HotsetError
from hotset.formats import output
from hotset.formats.output import check_output, scratch, written

WRITER = """
import sys, time
from pathlib import Path
from hotset.formats.output import scratch, written
with {call}(Path(sys.argv[1])) as temporary:
    if temporary.is_dir():
        temporary = temporary / "inside"
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


NOT_ON_WINDOWS = () if sys.platform == "win32" else (os.fsdecode(b"caf\xe9"), "two\nlines", "a*")


def write(path: Path, text: str) -> None:
    with written(path) as temporary:
        temporary.write_text(text)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except OSError:
        path.symlink_to("/dev/null")


def unix_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's whole name has 100 bytes
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


@on_posix
@pytest.mark.parametrize(
    ("make", "found"),
    [(pipe, "a pipe"), (device, "a device"), (unix_socket, "a socket"), (os.mkdir, "a directory")],
)
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_never_replaced(tmp_path, make, found, linked):
    path = node = tmp_path / "node"
    make(node)
    if linked:
        path = tmp_path / "link"
        path.symlink_to(node)
    kind = stat.S_IFMT(node.lstat().st_mode)
    for call in (check_output, lambda path: write(path, "new"), lambda path: scratch(path).__enter__()):
        with pytest.raises(HotsetError, match=f"^{path}: cannot be written: expected a file, found {found}$"):
            call(path)
    assert stat.S_IFMT(node.lstat().st_mode) == kind
    assert len(list(tmp_path.iterdir())) == 1 + linked


@pytest.mark.parametrize("name", ["", ".", "..", "/", "some/.."])
def test_names_of_directories(name):
    with pytest.raises(HotsetError, match="cannot be written: expected the name of a file"):
        check_output(Path(name))


@on_posix
def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        "none/x": "there is no directory .*none",
        "file/x": "Not a directory",
        "loop": "Too many levels of symbolic links",
        "x" * 256: "File name too long",
        "x\0y": "embedded null",
    }
    for name, reason in cases.items():
        with pytest.raises(HotsetError, match=f"(?s)cannot be written: {reason}"):
            check_output(tmp_path / name)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    old, new = tmp_path / "real" / "old", tmp_path / "real" / "new"
    old.write_text("old")
    for target in (old, new):
        link = tmp_path / f"to-{target.name}"
        link.symlink_to(target)
        write(link, "new")
        assert link.is_symlink()
        assert target.read_text() == "new"
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["new", "old"]


@on_posix
def test_an_open_file_without_a_name_is_refused(tmp_path):
    with (tmp_path / "gone").open("w+") as file:
        (tmp_path / "gone").unlink()
        with pytest.raises(HotsetError, match="a link to a file without a name"):
            check_output(Path(f"/proc/self/fd/{file.fileno()}"))


def test_what_is_read_is_never_replaced(tmp_path):
    text, same, link = tmp_path / "text", tmp_path / "same", tmp_path / "link"
    text.write_text("text")
    same.hardlink_to(text)
    link.symlink_to("text")
    for path in (text, same, link, tmp_path / "x" / ".." / "text"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(HotsetError, match="is one of the files to be read: name another"):
            check_output(path, [tmp_path / "missing", text])
    check_output(tmp_path / "other", [text])


def test_only_files_of_its_kind_are_replaced(tmp_path):
    path = tmp_path / "there"

    def is_picture(path: Path) -> bool:
        return path.read_text() == "picture"

    path.write_text("")
    check_output(path, kind="picture", replaces=is_picture)
    path.write_text("picture")
    check_output(path, kind="picture", replaces=is_picture)
    path.write_text("diary")
    with pytest.raises(HotsetError, match="there is there already and is no picture: name another"):
        check_output(path, kind="picture", replaces=is_picture)


def test_two_writers_and_names_of_any_kind(tmp_path):
    for name in ("plain", *NOT_ON_WINDOWS, "x" * 255, "ä" * 127, "a[b]"):
        path = tmp_path / name
        with written(path) as first, written(path) as second:
            first.write_text("first")
            second.write_text("second")
            assert first != second
        assert path.read_text() == "first"  # the last one to be renamed
        assert list(tmp_path.iterdir()) == [path]
        path.unlink()


def test_an_older_file_stays_and_nothing_is_left_when_it_fails(tmp_path):
    path = tmp_path / "out"
    path.write_text("older")
    for failure in (KeyboardInterrupt, SystemExit, ValueError):
        with pytest.raises(failure), written(path) as temporary:
            temporary.write_text("new")
            raise failure
    with small_disk(100), pytest.raises(HotsetError, match=r"out: cannot be written: File too large"):
        write(path, "x" * 1000)
    with pytest.raises(HotsetError, match="expected a file, found a directory"), written(path) as temporary:
        path.unlink()
        path.mkdir()
    path.rmdir()
    assert list(tmp_path.iterdir()) == []


@on_posix
def test_permissions_are_those_of_the_older_file_or_of_any_new_one(tmp_path):
    path, plain = tmp_path / "out", tmp_path / "plain"
    plain.write_text("")
    write(path, "new")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    write(path, "newer")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@on_posix
@pytest.mark.parametrize("call", ["written", "scratch"])
def test_leftovers_of_a_killed_run_are_removed_those_of_a_running_one_not(tmp_path, call):
    path = tmp_path / "out"
    foreign = [tmp_path / "out.hotset-12345.partial", tmp_path / "xout.hotset-12345678.partial"]
    for file in foreign:
        file.write_text("")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER.format(call=call), path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    write(path, "whole")
    assert len(set(tmp_path.iterdir()) - {*foreign, path}) == 1
    process.kill()
    process.communicate()
    write(path, "whole")
    assert set(tmp_path.iterdir()) == {*foreign, path}


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `os` has there, and no fcntl."""
    monkeypatch.setattr(output, "fcntl", None)
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "fchmod"):
        monkeypatch.delattr(os, name, raising=False)


def test_files_are_written_on_windows(windows, tmp_path):
    path = tmp_path / "out"
    for text in ("first", "second"):
        write(path, text)
        assert path.read_text() == text
    with scratch(path) as folder:
        (folder / "inside").write_text("half")
    with pytest.raises(KeyboardInterrupt), written(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("out", "second")]


def test_a_file_that_windows_holds_open_is_not_replaced(windows, monkeypatch, tmp_path):
    def refused(self: Path, target: Path) -> None:
        raise PermissionError(13, "Access is denied")

    path = tmp_path / "out"
    path.write_text("mapped")
    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(HotsetError, match="out is open in a program, perhaps this one: end that first"):
        write(path, "new")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mapped"]
