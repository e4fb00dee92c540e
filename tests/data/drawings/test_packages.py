"""Packages: got once, checked by digest, and whatever cannot be had is named while the rest goes on."""

import os
from pathlib import Path

import pytest
import small_packages as made

from qwenvl.data.drawings.archives import files_of
from qwenvl.data.drawings.packages import digest_of, get, known


def test_the_table_names_every_package_once_with_its_digest() -> None:
    names = [package.name for package in known()]
    assert len(names) == len(set(names)) > 40
    lengths = {"npm": len("sha512:") + 128, "debian": len("sha256:") + 64}
    assert all(len(package.digest) == lengths[package.registry] for package in known())
    assert sum(package.bytes for package in known() if package.registry == "npm") < 92e6


def test_a_package_is_got_through_its_client_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = made.emoji_set(tmp_path / "registry")
    calls = tmp_path / "calls"
    made.client(tmp_path / "bin", "npm", f'echo "$@" >> {calls}\ncp {tmp_path}/registry/*.tgz .')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}/usr/bin:/bin")
    first = get([package], tmp_path / "out")[0]
    second = get([package], tmp_path / "out")[0]
    assert first.news and not second.news and first.path == second.path
    assert digest_of(tmp_path / "out" / package.file, package.digest) == package.digest
    (call,) = calls.read_text().splitlines()
    assert call.startswith("pack @iconify-json/twemoji@1.0.0 --ignore-scripts"), (
        "no script of a package is ever run"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == [package.file], "nothing else is left"


def test_half_a_download_is_got_again(tmp_path: Path) -> None:
    package = made.emoji_set(tmp_path / "registry")
    whole = (tmp_path / "registry" / package.file).read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / package.file).write_bytes(whole[:100])
    got = get([package], tmp_path / "out", archives=tmp_path / "registry")[0]
    assert got.news and (tmp_path / "out" / package.file).read_bytes() == whole


def test_an_archive_is_found_by_the_name_that_apt_gave_it(tmp_path: Path) -> None:
    package = made.debian(
        tmp_path / "registry", "openclipart-svg", {"usr/share/a": b"a"}, version="1:0.18+dfsg-19"
    )
    ours = tmp_path / "registry" / package.file
    ours.rename(ours.with_name("openclipart-svg_1%3a0.18+dfsg-19_all.deb"))
    (got,) = get([package], tmp_path / "out", archives=tmp_path / "registry")
    assert got.news and got.path == tmp_path / "out" / package.file
    (lost,) = get([package], tmp_path / "other", archives=tmp_path)
    assert "nor openclipart-svg_1%3a0.18+dfsg-19_all.deb" in lost.problem


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (
            "echo 'npm error 404 Not Found - GET it' >&2; exit 1",
            "npm brought nothing: npm error 404 Not Found",
        ),
        ("echo changed > twemoji-1.0.0.tgz", "it is not the file that this table was made from"),
        ("exit 0", "npm brought nothing: it says nothing"),
        ("sleep 5", "npm took longer than 1 s"),
    ],
)
def test_what_cannot_be_had_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, problem: str
) -> None:
    gone, there = made.emoji_set(tmp_path / "registry"), made.names(tmp_path / "out")
    made.client(tmp_path / "bin", "npm", script)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}/usr/bin:/bin")
    monkeypatch.setattr("qwenvl.data.drawings.packages.PATIENCE", 1)
    lost, kept = get([gone, there], tmp_path / "out")
    assert lost.path is None and problem in lost.problem
    assert kept.path is not None and not kept.news


def test_without_a_client_every_package_of_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    npm, apt = made.emoji_set(tmp_path / "a"), made.debian(tmp_path / "a", "stamps", {})
    problems = [got.problem for got in get([npm, apt], tmp_path / "out")]
    assert problems == ["npm is not on this machine", "apt-get is not on this machine"]


def test_files_are_read_out_of_both_kinds_of_archive(tmp_path: Path) -> None:
    npm = made.npm(tmp_path, "one", {"a.json": b"1", "b/c.svg": b"2"})
    deb = made.debian(tmp_path, "two", {"usr/share/x.png": b"3", "usr/share/odd": b"44", "usr/y.png": b"5"})
    assert dict(files_of(tmp_path / npm.file, r"package/.*\.svg")) == {"package/b/c.svg": b"2"}
    assert dict(files_of(tmp_path / deb.file, r".*\.png")) == {"usr/share/x.png": b"3", "usr/y.png": b"5"}


def test_an_archive_that_breaks_off_is_no_shorter_archive(tmp_path: Path) -> None:
    for package in (made.npm(tmp_path, "one", {f"{k}.svg": os.urandom(999) for k in range(40)}),
                    made.debian(tmp_path, "two", {f"{k}.svg": os.urandom(999) for k in range(40)})):  # fmt: skip
        place = tmp_path / package.file
        place.write_bytes(place.read_bytes()[:-9000])
        with pytest.raises(ValueError, match="remove it and fetch again"):
            list(files_of(place, ".*"))
