"""Tars as others write them, and as they arrive: damaged, lying, torn, full of what belongs to no sample."""

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

from qwenvl.data import tars
from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.records import Pair
from qwenvl.data.stream.index import sample_index
from qwenvl.data.stream.samples import Unusable, read_sample
from qwenvl.data.tars import BLOCK, TarWriter, grouped, read_tar, skim_tar

IMAGE = b"\xff\xd8 the bytes of an image"
"""Nothing here decodes it."""


def packed(files: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    writer = TarWriter(buffer)
    for name, data in files:
        writer.add(name, data)
    writer.close()
    return buffer.getvalue()


def sample(key: str, text: str, data: bytes = IMAGE) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", data), (f"{key}.txt", text.encode())]


def three() -> bytes:
    return packed([each for k in range(3) for each in sample(f"{k}", f"text {k}")])


def cleaned(path: Path) -> list[str]:
    """What cleaning finds: texts, and the kinds of what cannot be read."""
    return [each.text if isinstance(each, Pair) else each.kind for each in read_samples(Source(path, ""))]


def trained(path: Path) -> list[str]:
    """What training finds."""
    found = []
    for place in sample_index(path).tolist():
        try:
            one = read_sample(path, *place)
            found.append(one.columns["text"] if len(one.images) == 1 else f"{len(one.images)} images")
        except Unusable as reason:
            found.append(reason.kind)
    return found


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


# === F-71: what others put into tars ===


def both(tmp_path: Path, files: list[tuple[str, bytes]]) -> tuple[list[str], list[str]]:
    (tmp_path / "a.tar").write_bytes(packed(files))
    return cleaned(tmp_path / "a.tar"), trained(tmp_path / "a.tar")


TWO = ["text 0", "text 1"]


@pytest.mark.parametrize(
    "beside",
    [
        lambda name: f"._{name}",
        lambda name: f"./._{name}",
        lambda name: f"__MACOSX/{name}",
        lambda name: f"folder/._{name}",
        lambda name: ".DS_Store",
    ],
)
def test_f71_files_that_macos_adds_are_no_samples(beside: object, tmp_path: Path) -> None:
    files = [
        each
        for k in range(2)
        for name, data in sample(f"./{k}", f"text {k}")
        for each in ((beside(name.removeprefix("./")), b"\0\5\26\7"), (name, data))  # type: ignore[operator]
    ]
    assert both(tmp_path, files) == (TWO, TWO)
    assert both(tmp_path, files[::-1]) == (TWO[::-1], TWO[::-1])


def test_f71_a_name_that_comes_again_is_another_sample(tmp_path: Path) -> None:
    found, in_training = both(tmp_path, sample("0", "text 0") + sample("0", "text 1"))
    assert found == in_training == TWO, "neither replaces the other"


@pytest.mark.parametrize(
    ("image", "text"),
    [("input.jpg", "outputs.txt"), ("jpg", "en.txt"), ("left.webp", "txt"), ("JPEG", "TXT")],
)
def test_f71_suffixes_of_two_parts(image: str, text: str, tmp_path: Path) -> None:
    files = [(f"{k}.{end}", data) for k in range(2) for end, data in ((image, IMAGE), (text, b"text %d" % k))]
    assert both(tmp_path, files) == (TWO, TWO)


def test_f71_the_plain_suffix_comes_before_longer_ones(tmp_path: Path) -> None:
    more = [
        ("0.seg.png", b"mask"),
        ("0.meta.json", b"[]"),
        ("0.pixels.json", b"{}"),
        ("0.de.txt", b"ein Text"),
    ]
    assert both(tmp_path, sample("0", "text 0") + more) == (["text 0"], ["text 0"])


def test_f71_two_images_are_not_one(tmp_path: Path) -> None:
    found, in_training = both(tmp_path, [("0.left.jpg", IMAGE), ("0.right.jpg", IMAGE), ("0.txt", b"which")])
    assert found == ["several images"] and in_training == ["2 images"], "training has documents of several"


def test_f71_an_unsorted_tar_says_how_to_sort_it(tmp_path: Path) -> None:
    files = sorted(
        (each for k in range(3) for each in sample(f"{k}", f"text {k}")), key=lambda each: each[0][2:]
    )
    (tmp_path / "a.tar").write_bytes(packed(files))
    found = list(read_samples(Source(tmp_path / "a.tar", "")))
    assert [getattr(each, "kind", "") for each in found] == ["empty caption"] * 3 + ["unsorted tar"] * 3
    assert "tar --sort=name" in getattr(found[-1], "detail", "")
    with pytest.raises(
        ValueError, match=r"a.tar: the files of a sample do not stand side by side .* --sort=name"
    ):
        sample_index(tmp_path / "a.tar")


# === F-84: headers that lie ===


def with_size(tar: bytes, name: bytes, field: bytes) -> bytes:
    """The tar with another size in a file's header, its checksum in order."""
    raw = bytearray(tar)
    at = raw.index(name)
    raw[at + 124 : at + 136] = field.ljust(12, b"\0")
    raw[at + 148 : at + 156] = b" " * 8
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + BLOCK])
    return bytes(raw)


def binary(size: int) -> bytes:
    return (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=size < 0)


@pytest.mark.parametrize(
    "field",
    [binary(1 << 40), binary(1 << 62), b"\x80" + b"\xff" * 11, b"\x82" + bytes(11), binary(-1), b"77777777777",
     b"-1", b"-0000000001", b"1_0", b"0x10", b"9", b"12 34"],
)  # fmt: skip
def test_f84_a_size_that_cannot_be_costs_its_sample(field: bytes, tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    shard.write_bytes(with_size(three(), b"1.jpg", field))
    found = cleaned(shard)
    assert found[0] == "text 0" and found[-1] == "text 2" and "damaged tar header" in found
    assert not any(text == "text 1" for text in found)
    assert trained(shard)[0] == "text 0" and trained(shard)[-1] == "text 2"
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    assert cleaned(tmp_path / "b.tar.gz")[0] == "text 0", "a packed one has no end to compare with"


def test_f84_octal_with_leading_spaces_is_no_lie(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(with_size(three(), b"1.jpg", b"%11o" % len(IMAGE)))
    assert cleaned(tmp_path / "a.tar") == ["text 0", "text 1", "text 2"]


def test_f84_names_longer_than_a_megabyte_are_no_names(tmp_path: Path) -> None:
    """A header of GNU's long names whose name is all that follows."""
    raw = bytearray(packed([("0.jpg", b"x" * 3_000_000), ("0.txt", b"text 0"), *sample("1", "text 1")]))
    raw[156:157] = b"L"
    (tmp_path / "a.tar").write_bytes(with_size(bytes(raw), b"0.jpg", b"%011o" % 3_000_000))
    assert cleaned(tmp_path / "a.tar")[-1] == "text 1"


def test_sizes_and_names_of_posix_headers_are_read_by_their_lengths(tmp_path: Path) -> None:
    """A name with a line end in it, and a size that only the block before the header says."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("a\nb.jpg", IMAGE), ("a\nb.txt", b"text 0")):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = (
                len(data),
                {"path": name, "size": str(len(data)), "comment": "a=b\n7 x=y"},
            )
            tar.addfile(info, io.BytesIO(data))
    assert [(each.name, each.data) for each in read_tar(tmp_path / "a.tar")] == [
        ("a\nb.jpg", IMAGE),
        ("a\nb.txt", b"text 0"),
    ]


# === F-94, F-98: bombs and damage ===


def test_f94_a_file_beyond_the_limit_costs_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenvl.data.stream.samples.LARGEST", 1 << 20)
    shard = tmp_path / "a.tar"
    shard.write_bytes(packed(sample("0", "text 0", bytes(20 << 20)) + sample("1", "text 1")))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(shard.read_bytes()))
    assert (tmp_path / "b.tar.gz").stat().st_size < 30_000
    for path in (shard, tmp_path / "b.tar.gz"):
        tracemalloc.start()
        groups = list(grouped(read_tar(path, largest=1 << 20)))
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
        tracemalloc.stop()
        assert [each.damage for each in groups[:2]] == ["file too large (more than 1,048,576 bytes)", None]
        assert groups[1].files["txt"].data == b"text 1"
    assert trained(shard) == ["file too large", "text 1"]


def test_skimming_reads_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(packed(sample("0", "text 0", bytes(20 << 20)) + sample("1", "text 1")))
    tracemalloc.start()
    found = list(skim_tar(tmp_path / "a.tar"))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert [(each.name, each.size, each.data[:4]) for each in found] == [
        ("0.jpg", 20 << 20, b""), ("0.txt", 6, b"text"), ("1.jpg", len(IMAGE), IMAGE[:4]), ("1.txt", 6, b"text"),
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "bits", "tail"])
def test_f98_a_damaged_archive_gives_what_is_whole(damage: str, tmp_path: Path) -> None:
    image = bytes(range(256)) * 300
    many = packed([each for k in range(100) for each in sample(f"{k:03}", f"text {k}", image[k:])])
    whole = gzip.compress(many)
    middle = len(whole) // 2
    raw = {
        "cut": whole[:middle],
        "bits": whole[:middle] + b"\xff\0\xff\0" * 16 + whole[middle + 64 :],
        "tail": whole[:-8] + b"\0" * 8,
    }[damage]
    (tmp_path / "a.tar.gz").write_bytes(raw)
    found = cleaned(tmp_path / "a.tar.gz")
    assert found[:20] == [f"text {k}" for k in range(20)]
    assert (
        any(kind in ("damaged archive", "cut tar", "damaged tar header") for kind in found)
        or damage == "tail"
    )
    assert tars.name_and_suffix("a/001.pixels.JSON") == ("a/001", "pixels.json")
