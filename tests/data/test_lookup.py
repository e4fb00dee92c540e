"""An image is what the data's own folder holds under that name, or nothing (F-81, F-107)."""

import os
import unicodedata
from pathlib import Path

import pytest

from qwenvl.data.faults import Unusable
from qwenvl.data.lookup import Lookup, name_of
from qwenvl.data.stream.samples import Located, Sample


def lookup(folder: Path, root: Path | None = None, *, strict: bool = True) -> Lookup:
    return Lookup(Sample(where="", columns={}, images={}, folder=folder, root=root), [], strict=strict)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("data/images/a.png", "secret/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "data/link").symlink_to(tmp_path / "secret")
    (tmp_path / "data/b.png").symlink_to(tmp_path / "secret/b.png")
    os.mkfifo(tmp_path / "data/pipe")
    return tmp_path / "data"


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../secret/b.png", "link/b.png", "b.png", "images/../../secret/b.png", "/dev/zero"],
)
def test_f81_nothing_outside_the_folder_is_opened(data: Path, name: str) -> None:
    for strict in (True, False):
        with pytest.raises(Unusable, match="path outside the folder"):
            lookup(data, strict=strict)(name)


@pytest.mark.parametrize(
    "name", ["nowhere.png", "images", "pipe", "a" * 300, "x/" * 200 + "a.png", "a\0b", "~/a.png"]
)
def test_f81_what_is_no_file_there_is_missing(data: Path, name: str) -> None:
    with pytest.raises(Unusable, match=r"missing image|path outside the folder"):
        lookup(data)(name)


def test_f81_a_folder_that_the_user_names_may_be_opened(data: Path) -> None:
    root = data.parent
    assert lookup(data)("images/a.png") == data / "images/a.png"
    assert lookup(data)(str(data / "images/a.png")) == data / "images/a.png", "absolute, and below it"
    assert lookup(data, root)(str(root / "secret/b.png")) == root / "secret/b.png"
    assert lookup(data, root)("secret/b.png") == root / "secret/b.png"
    assert lookup(data, root)("link/b.png") == data / "link/b.png"
    with pytest.raises(Unusable, match="path outside"):
        lookup(data, root)("/etc/passwd")


@pytest.mark.parametrize(
    "name", ["https://a.b/c.png", "file:///etc/passwd", "data:image/png;base64,AAAA", "s3://a/b"]
)
def test_no_url_is_followed(data: Path, name: str) -> None:
    with pytest.raises(Unusable, match="image at a URL"):
        lookup(data)(name)


def test_f107_a_name_that_looks_the_same_is_told(data: Path) -> None:
    accented = unicodedata.normalize("NFD", "café bar.png")
    (data / accented).write_bytes(b"x")
    for name, message in (
        (unicodedata.normalize("NFC", accented), "another form of Unicode"),
        (accented.upper(), "other letter case"),
        (accented.replace(" ", "%20"), "is there, not"),
        ("images\\A.png", "missing image"),
    ):
        with pytest.raises(Unusable, match=message):
            lookup(data)(name)
    with pytest.raises(Unusable, match=r"'a\.png' is there, not ' a\.png '"):
        lookup(data / "images")(" a.png ")


def test_an_image_in_a_tar_is_named_by_its_place(data: Path) -> None:
    (data / "pages.tar").write_bytes(bytes(4096))
    found = lookup(data)("pages.tar/0.jpg#512+2048")
    assert found == Located(data / "pages.tar", 512, 2048, "0.jpg")
    assert name_of(found, data) == "pages.tar/0.jpg#512+2048"
    assert name_of(data / "images/a.png", data) == "images/a.png"
    assert name_of(data / "images/a.png", data / "images") == "a.png"
    assert name_of(data.parent / "secret/b.png", data) == str(data.parent / "secret/b.png")
    with pytest.raises(Unusable, match="path outside"):
        lookup(data / "images")("../pages.tar/0.jpg#512+2048")


def test_an_image_that_lies_below_the_working_folder_is_told(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `qwenvl data read` names images when its output is in another folder."""
    monkeypatch.chdir(data.parent)
    with pytest.raises(Unusable, match="give --images"):
        lookup(data)("data/images/a.png")
