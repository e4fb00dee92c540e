"""The door for files: written whole or not at all, owned by one, and no name from outside leaves its folder."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from qwenvl.files import (
    atomic,
    clear_unfinished,
    component,
    inside,
    open_regular,
    owned,
    read_limited,
    safe_key,
)


def test_a_file_appears_when_it_is_complete_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    with atomic(path) as file:
        file.write(b"{}")
        assert not path.exists()
    assert path.read_bytes() == b"{}"
    with pytest.raises(RuntimeError), atomic(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"{}" and os.listdir(path.parent) == ["a.json"]


def test_f93_two_writers_of_one_file_do_not_share_a_temporary_name(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with atomic(path) as first, atomic(path) as second:
        first.write(b"1" * 100_000)
        second.write(b"2")
    assert path.read_bytes() == b"1" * 100_000  # the one that ended last, whole
    assert os.listdir(tmp_path) == ["a.tar"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, which Linux has")
def test_f97_a_full_disk_is_told_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with (
        open("/dev/full", "wb", buffering=0) as device,
        pytest.raises(OSError) as error,
        atomic(path) as file,
    ):
        os.dup2(device.fileno(), file.fileno())
        file.write(bytes(1 << 20))
    assert error.value.filename == str(path) and error.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_a_long_name_has_an_unfinished_file_too(tmp_path: Path) -> None:
    path = tmp_path / ("漢" * 85)
    with atomic(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_nothing_replaces_a_pipe_or_a_folder(tmp_path: Path, make) -> None:
    make(tmp_path / "a")
    with (
        pytest.raises(ValueError, match=r"is a (pipe|folder), where a file is to be written"),
        atomic(tmp_path / "a"),
    ):
        pass


def test_what_a_killed_writer_left_is_removed_by_the_next_owner(tmp_path: Path) -> None:
    def killed() -> None:
        with owned(tmp_path), atomic(tmp_path / "parts" / "a.tar") as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    (tmp_path / "parts" / ".mine.tmp").write_bytes(b"")
    assert len(os.listdir(tmp_path / "parts")) == 2
    with owned(tmp_path):
        assert os.listdir(tmp_path / "parts") == [".mine.tmp"]
    assert os.listdir(tmp_path) == ["parts"] and clear_unfinished(tmp_path) == 0


def test_f93_a_folder_has_one_owner(tmp_path: Path) -> None:
    with (
        owned(tmp_path / "out"),
        pytest.raises(ValueError, match=f"is being written by process {os.getpid()} on"),
        owned(tmp_path / "out"),
    ):
        pytest.fail("two owners")
    with owned(tmp_path / "out"):
        (tmp_path / "out/a").touch()
    assert os.listdir(tmp_path / "out") == ["a"]
    with owned(tmp_path / "new/out"):
        pass
    assert not (tmp_path / "new").exists()  # nothing was written


@pytest.mark.parametrize(
    "name", ["a.jpg", "images/a.jpg", "images/../a.jpg", "./a.jpg", "missing/b.jpg", "..a", "ü.jpg"]
)
def test_a_name_below_the_folder_is_its_file(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../a", "a/../../b", "../../etc/passwd", "link/hosts", "pair", "", "a\0b", "~/.ssh/id", "C:\\a",
     "\\\\host\\share", "\ud800", "loop", "folder", "pipe", "x" * 5000, "a/" * 3000, 7, None],
)  # fmt: skip
def test_f81_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    (root / "loop").symlink_to("loop")
    (root / "pair").symlink_to("../secret")
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")
    with pytest.raises(ValueError, match="path"):
        inside(root, name)


def test_a_folder_beside_it_with_a_longer_name_is_outside(tmp_path: Path) -> None:
    (tmp_path / "rooted").mkdir()
    with pytest.raises(ValueError, match="leads out of"):
        inside(tmp_path / "root", "../rooted/a")


@pytest.mark.parametrize("name", ["1_pretrain", "mein Lauf", "a.b", "漢字"])
def test_a_plain_name_is_one_component(name: str) -> None:
    assert component(name, "stage name") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../..", "/a", "a/b", "a\\b", ".lock", "a\0", "a\x1b[2J", "x" * 256, 3]
)
def test_f82_a_name_that_is_a_path_is_refused(name) -> None:
    with pytest.raises(ValueError, match="The stage name "):
        component(name, "stage name")


def test_f83_sample_keys_are_safe_and_stay_apart() -> None:
    keys = [
        "000012",
        "a_b",
        "a.b",
        "a/b",
        "/etc/evil",
        "..",
        "",
        "a\0b",
        "a\x1bb",
        "\ud800",
        "漢",
        "x" * 999,
        "x" * 998,
    ]
    made = [safe_key(key) for key in keys]
    assert len(set(made)) == len(keys)
    assert made[:2] == ["000012", "a_b"] and made[10] == "漢"
    assert all(len(key.encode()) <= 200 and not set(key) & set("/\\.\0 \x1b") and key for key in made)
    assert [safe_key(key) for key in made] == made  # safe keys stay


def test_only_regular_files_are_opened_and_no_pipe_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "pipe"), (tmp_path, "folder"), (Path("/dev/zero"), "device")):
        with pytest.raises(ValueError, match=f"{path} is a {kind}; expected a file"):
            open_regular(path)
    (tmp_path / "a").write_bytes(b"12345")
    assert read_limited(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="larger than 4 bytes"):
        read_limited(tmp_path / "a", 4)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
