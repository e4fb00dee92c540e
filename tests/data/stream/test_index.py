"""Any sample of a shard is read without the others, and is what a reader of the whole shard finds."""

import gzip
import io
import json
import os
import tarfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import pytest

from qwenvl.data.faults import Unusable
from qwenvl.data.shards import find_shards
from qwenvl.data.stream import index
from qwenvl.data.stream.index import sample_index
from qwenvl.data.stream.samples import Sample, read_sample
from qwenvl.data.tars import SKIMMED, write_tar

from .conftest import (
    captions_parquet,
    dialogues_json,
    jpeg,
    mixed_records,
    noise,
    pages_tar,
    pairs_tar,
    records_lines,
)


def samples(shard: Path) -> list[Sample]:
    """Backwards, so that nothing can lean on the sample before."""
    return [read_sample(shard, *place) for place in sample_index(shard)[::-1].tolist()][::-1]


def test_pairs_in_a_tar(tmp_path: Path) -> None:
    found = samples(pairs_tar(tmp_path / "a.tar", [f"text {k}" for k in range(7)]))
    assert [each.columns["text"] for each in found] == [f"text {k}" for k in range(7)]
    assert [next(iter(each.images.values())).read() for each in found] == [jpeg(k) for k in range(7)]
    assert found[3].where == "a.tar, 000003"


def test_a_packed_shard_in_a_folder_that_cannot_be_written_is_read_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services have a home in name only (`/nonexistent`); what another user has put into the folder for temporary files
    is not read."""
    shard = pairs_tar(tmp_path / "data" / "a.tar", ["one", "two"])
    packed = shard.with_name("a.tar.gz")
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    shard.unlink()
    (tmp_path / "no-home").touch()
    (tmp_path / "temp").mkdir()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "no-home"))
    monkeypatch.setattr(index.tempfile, "gettempdir", lambda: str(tmp_path / "temp"))
    written = index.atomic

    def refuse(path: Path, **options: bool) -> AbstractContextManager[IO[bytes]]:
        if path.parent == shard.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return written(path, **options)

    monkeypatch.setattr(index, "atomic", refuse)
    assert [each.columns["text"] for each in samples(packed)] == ["one", "two"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a.tar.gz"]
    spare = tmp_path / "temp" / f"cache-{os.getuid()}"
    assert len(list(spare.rglob("*.npy"))) == 2
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    spare.rename(tmp_path / "temp" / f"cache-{os.getuid()}")
    packed.touch()
    with pytest.raises(OSError, match="no-home"):
        samples(packed)


def test_the_sample_of_a_folder_or_a_tar_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(jpeg(0))
    (tmp_path / "a.json").write_text("{broken")
    with write_tar(tmp_path / "b.tar") as tar:
        tar.add("x/b.jpg", jpeg(0))
        tar.add("x/b.txt", b"\xff")
    with pytest.raises(Unusable, match="sample x/b: it is not UTF-8"):
        samples(tmp_path / "b.tar")
    with pytest.raises(Unusable, match="sample a: it is not valid"):
        samples(tmp_path)


def test_text_files_long_names_folders_and_large_files(tmp_path: Path) -> None:
    """As GNU tar and Python's tarfile write them; an image that is passed over and a record that must not be."""
    long = "x" * 180
    lines = [{"text": "LINE", "quad": [[1, 1], [9, 1], [9, 9], [1, 9]]}] * 3000
    files = {
        f"f/{long}.png": noise(1),
        f"f/{long}.txt": "第一".encode(),
        "f/2.png": noise(2),
        "f/2.json": json.dumps({"kind": "ocr", "image": "2.png", "lines": lines}).encode(),
    }
    assert len(files["f/2.png"]) > SKIMMED and len(files["f/2.json"]) > SKIMMED
    for number, form in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        shard = tmp_path / f"{number}.tar"
        with tarfile.open(shard, "w", format=form) as tar:
            tar.addfile(tarfile.TarInfo("f/"))
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        one, two = [each for each in samples(shard) if each.images]
        assert one.columns == {"text": "第一"} and len(two.columns["lines"]) == 3000
        assert [each.read() for each in (*one.images.values(), *two.images.values())] == [
            noise(1),
            noise(2),
        ]


def test_a_page_has_its_record_and_its_image(tmp_path: Path) -> None:
    found = samples(pages_tar(tmp_path / "pages.tar", 3))
    assert [each.columns["lines"][0]["text"] for each in found] == ["LINE 0", "LINE 1", "LINE 2"]
    assert list(found[1].images) == ["p1.jpg"]


def test_a_damaged_tar_gives_what_is_whole(tmp_path: Path) -> None:
    shard = pairs_tar(tmp_path / "a.tar", [f"text {k}" for k in range(6)])
    first, length = sample_index(shard)[2].tolist()
    raw = bytearray(shard.read_bytes())
    raw[first : first + 512] = b"\xff" * 512  # the header of an image
    damaged = tmp_path / "b.tar"
    damaged.write_bytes(raw[: first + 3 * length + 700])  # and the last sample is cut
    *whole, cut = sample_index(damaged).tolist()
    found = [read_sample(damaged, *place) for place in whole]
    assert [each.columns["text"] for each in found] == ["text 0", "text 1", "text 2", "text 3", "text 4"]
    assert not found[2].images, "its image is lost, its text is not"
    with pytest.raises(Unusable, match="cut tar"):
        read_sample(damaged, *cut)


@pytest.mark.parametrize(
    "raw", [b"", b"\xfd7zXZ\0" + b"packed" * 400, b"<html>not found</html>", b"\xff" * 20_480]
)
def test_a_tar_that_is_none_is_no_empty_one(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(raw)
    with pytest.raises(ValueError, match=r"a.tar has nothing whole in it \(.*\); expected a tar archive"):
        sample_index(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(bytes(10_240))
    assert not len(sample_index(tmp_path / "b.tar"))


def test_lines_and_lists_and_rows(tmp_path: Path) -> None:
    lines = records_lines(tmp_path / "r.jsonl", mixed_records(tmp_path / "images", 3))
    assert [each.columns["kind"] for each in samples(lines)] == ["question"] * 3 + ["referring"] * 3 + [
        "text"
    ] * 3
    official = dialogues_json(tmp_path / "d.json", 4)
    assert [each.columns["id"] for each in samples(official)] == ["0", "1", "2", "3"]
    marked = tmp_path / "bom.json"
    marked.write_bytes(b"\xef\xbb\xbf" + official.read_bytes())
    assert samples(marked)[3].columns == samples(official)[3].columns
    as_lines = tmp_path / "lines.json"
    as_lines.write_text("\n".join(json.dumps(each.columns) for each in samples(official)))
    assert samples(as_lines)[2].columns == samples(official)[2].columns
    rows = samples(captions_parquet(tmp_path / "c.parquet", 10))
    assert [each.columns["text"] for each in rows] == [f"row {k}" for k in range(10)]
    assert rows[7].images["image"].read() == jpeg(7)


def test_the_table_is_kept_and_made_again_when_the_shard_changes(tmp_path: Path) -> None:
    shard = pairs_tar(tmp_path / "a.tar", ["one", "two"])
    assert len(sample_index(shard)) == 2
    kept = tmp_path / ".a.tar.index.npy"
    before = kept.stat().st_mtime_ns
    assert len(sample_index(shard)) == 2 and kept.stat().st_mtime_ns == before
    pairs_tar(shard, ["one", "two", "three"])
    assert len(sample_index(shard)) == 3 and [each.columns["text"] for each in samples(shard)][2] == "three"
    assert find_shards(str(tmp_path)) == [shard], "the table is no shard"


def test_shards_are_found_by_name_folder_and_pattern(tmp_path: Path) -> None:
    one = pairs_tar(tmp_path / "clean/1.tar", ["a"])
    zero = pairs_tar(tmp_path / "clean/0.tar", ["a"])
    aside = pairs_tar(tmp_path / "clean/aside/0.tar", ["dropped"])
    (tmp_path / "clean/statistics.json").write_text("{}")
    assert find_shards(str(tmp_path / "clean")) == [zero, one], "what cleaning put aside is not trained on"
    assert find_shards(str(tmp_path / "clean/*.tar")) == [zero, one]
    assert find_shards(str(tmp_path / "*/*/*.tar")) == [aside]
    assert find_shards(str(one)) == [one]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"there is no .*nowhere; give a shard, a folder of shards or a pattern"
    ):
        find_shards(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no shard in .*\*.tar; expected files that end in .tar, .tar.gz"):
        find_shards(str(tmp_path / "*.tar"))
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.txt is no shard; expected a file that ends in .tar"):
        find_shards(str(tmp_path / "a.txt"))
    (tmp_path / "bad.json").write_text('[{"a": 1}, oops]')
    with pytest.raises(ValueError, match=r"bad.json is not valid JSON"):
        sample_index(tmp_path / "bad.json")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(ValueError, match=r"bad.parquet cannot be read as parquet .* get a fresh copy"):
        sample_index(tmp_path / "bad.parquet")
    shard = tmp_path / "broken.tar"
    with write_tar(shard) as tar:
        tar.add("a.json", b"{broken")
        tar.add("b.json", b"\xff{}")
        tar.add("c.json", b"[]")
    kinds = []
    for place in sample_index(shard).tolist():
        with pytest.raises(Unusable) as caught:
            read_sample(shard, *place)
        kinds.append(caught.value.kind)
    assert kinds == ["broken JSON", "broken UTF-8", "broken JSON"]
