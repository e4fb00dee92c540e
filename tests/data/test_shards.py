"""Which files are shards: one table and one rule for cleaning and training."""

import gzip
import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image as pillow

from qwenvl.data.clean import pairs as raw_pairs
from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.parquet import write_parquet
from qwenvl.data.records import Pair, Skipped
from qwenvl.data.shards import find_shards, kind_of
from qwenvl.data.stream import index, samples
from qwenvl.data.stream.samples import Unusable, read_sample
from qwenvl.data.tars import write_tar


def jpeg(level: int) -> bytes:
    file = io.BytesIO()
    pillow.new("RGB", (320, 320), (level, 80, 200)).save(file, "JPEG")
    return file.getvalue()


def tar_of(path: Path, texts: list[str]) -> Path:
    with write_tar(path) as tar:
        for number, text in enumerate(texts):
            tar.add(f"{number:03}.jpg", jpeg(number))
            tar.add(f"{number:03}.json", json.dumps({"text": text}).encode())
    return path


def names(source: str | Path, *, deep: bool = False) -> list[str]:
    return [path.name for path in find_shards(source, deep=deep)]


def texts_of(shard: Path) -> list[str]:
    """What cleaning reads."""
    return [
        sample.text if isinstance(sample, Pair) else sample.kind for sample in read_samples(Source(shard, ""))
    ]


def trained_on(shard: Path) -> list[str]:
    """What training reads."""
    return [read_sample(shard, *place).columns["text"] for place in index.sample_index(shard).tolist()]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def img2dataset(folder: Path, form: str) -> list[dict[str, object]]:
    """Two shards as img2dataset writes them in one of its formats; the second download of each failed."""
    folder.mkdir()
    rows: list[dict[str, object]] = []
    for shard in range(2):
        found: list[dict[str, object]] = []
        for number in range(3):
            key, good = f"{shard:05}{number:04}", number != 1
            row: dict[str, object] = {
                "key": key, "url": f"http://example.org/{key}.jpg", "caption": f"a small boat on a lake, {key}",
                "status": "success" if good else "failed_to_download",
                "error_message": None if good else "HTTP Error 404", "width": 320 if good else None,
                "height": 320 if good else None,
            }  # fmt: skip
            found.append({**row, "jpg": jpeg(number) if good else None} if form == "parquet" else row)
        write_parquet(folder / f"{shard:05}.parquet", found)
        (folder / f"{shard:05}_stats.json").write_text('{"count": 3, "successes": 2}')
        good_rows = [row for row in found if row["status"] == "success"]
        if form == "webdataset":
            with write_tar(folder / f"{shard:05}.tar") as tar:
                for row in good_rows:
                    tar.add(f"{row['key']}.jpg", jpeg(1))
                    tar.add(f"{row['key']}.json", json.dumps(row).encode())
                    tar.add(f"{row['key']}.txt", str(row["caption"]).encode())
        elif form == "files":
            (folder / f"{shard:05}").mkdir()
            for row in good_rows:
                (folder / f"{shard:05}" / f"{row['key']}.jpg").write_bytes(jpeg(1))
                (folder / f"{shard:05}" / f"{row['key']}.json").write_text(json.dumps(row))
        rows += found
    return rows


@pytest.mark.parametrize("form", ["webdataset", "files", "parquet"])
def test_f6_f62_img2dataset_is_read_once_and_whole(form: str, tmp_path: Path) -> None:
    """What stands beside a tar belongs to it; failed downloads are counted; every pair has its image."""
    good = [row["caption"] for row in img2dataset(tmp_path / "raw", form) if row["status"] == "success"]
    shards = find_shards(tmp_path / "raw", deep=True)
    assert len(shards) == 2 and {kind_of(path) for path in shards} == {
        "tar" if form == "webdataset" else "parquet"
    }
    found = [sample for path in shards for sample in read_samples(Source(path, ""))]
    pairs = [sample for sample in found if isinstance(sample, Pair)]
    assert [pair.text for pair in pairs] == good and all(pair.image for pair in pairs)
    lost = [sample.kind for sample in found if isinstance(sample, Skipped)]
    assert lost == [] if form == "webdataset" else lost == ["failed download"] * 2
    assert find_shards(tmp_path / "raw") == shards == find_shards(f"{tmp_path}/raw/*"), (
        "training sees the same"
    )
    assert sum(len(index.sample_index(path)) for path in shards) == len(found)
    message = read_sample(shards[0], *index.sample_index(shards[0])[0].tolist())
    assert message.images or (tmp_path / "raw" / str(message.columns["image"])).is_file()


def test_f6_one_shard_named_is_read_whatever_stands_beside_it(tmp_path: Path) -> None:
    img2dataset(tmp_path / "raw", "webdataset")
    assert names(tmp_path / "raw/00000.parquet") == ["00000.parquet"]
    assert names(f"{tmp_path}/raw/*.parquet") == ["00000.parquet", "00001.parquet"]
    (tmp_path / "raw/00001.tar").rename(tmp_path / "raw/00001.TAR")
    (tmp_path / "raw/other.parquet").write_bytes(b"")
    assert names(tmp_path / "raw") == ["00000.tar", "00001.TAR", "other.parquet"]


def test_one_table_for_cleaning_and_training(tmp_path: Path) -> None:
    """Packed shards too: training unpacks them once, beside the shard, and reads any sample."""
    message = [f"text {k}" for k in range(5)]
    tar = tar_of(tmp_path / "a.tar", message)
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    (tmp_path / "c.TGZ").write_bytes(gzip.compress(tar.read_bytes()))
    lines = "".join(json.dumps({"text": text, "url": "u"}) + "\n" for text in message).encode()
    (tmp_path / "d.jsonl").write_bytes(lines)
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "f.ndjson").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n\r\n"))
    write_parquet(tmp_path / "g.parquet", [{"text": text, "url": "u"} for text in message])
    listed = tmp_path / "h.json"
    listed.write_text(json.dumps([{"text": text, "url": "u"} for text in message]))
    shards = find_shards(tmp_path)
    assert [path.name for path in shards] == [
        "a.tar", "b.tar.gz", "c.TGZ", "d.jsonl", "e.jsonl.gz", "f.ndjson", "g.parquet",
    ]  # fmt: skip
    for shard in [*shards, *find_shards(listed)]:
        assert texts_of(shard) == message == trained_on(shard) == trained_on(shard), shard
    assert names(tmp_path) == [path.name for path in shards], "what training keeps beside a shard is no shard"
    image = next(iter(read_sample(shards[1], *index.sample_index(shards[1])[3].tolist()).images.values()))
    assert image.read() == jpeg(3) and str(image) == "b.tar.gz, 003.jpg"


def test_a_packed_shard_that_changes_is_unpacked_again(tmp_path: Path) -> None:
    shard = tmp_path / "a.jsonl.gz"
    for message in (["one"], ["one", "two"]):
        shard.write_bytes(gzip.compress("".join(f'{{"text": "{text}"}}\n' for text in message).encode()))
        assert trained_on(shard) == message
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a.jsonl.gz cannot be unpacked .* get a fresh copy"):
        index.sample_index(shard)


def test_f94_a_bomb_is_not_unpacked_for_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MOST", 1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(bytes(20 << 20)))
    with pytest.raises(ValueError, match="unpacks to more than"):
        index.sample_index(tmp_path / "a.jsonl.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl.gz"], "nothing is left of the attempt"


def test_an_unpacked_copy_beside_its_archive_counts_once(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "a.tar", ["x"])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    (tmp_path / "b.jsonl").write_text("{}")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    assert names(tmp_path) == ["a.tar", "b.jsonl"]


def test_what_cleaning_put_aside_is_not_cleaned_again(tmp_path: Path) -> None:
    tar_of(tmp_path / "run/00000.tar", ["kept"])
    tar_of(tmp_path / "run/aside/00000.tar", ["dropped"])
    tar_of(tmp_path / "run/.hidden/00000.tar", ["hidden"])
    assert len(find_shards(tmp_path, deep=True)) == 2, "any folder may be called aside"
    (tmp_path / "run/cleaning.json").write_text("{}")
    for source in (tmp_path, tmp_path / "run"):
        assert find_shards(source, deep=True) == [tmp_path / "run/00000.tar"]


def test_f65_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    """Cleaning and training agree on every separator that Python's own splitlines knows, and on long lines."""
    message = [f"one{letter}two" for letter in "\u2028\u2029\x85\x0b\x0c\x1c\r"] + ["x" * 3_000_000]
    lines = [json.dumps({"text": text, "url": "u"}, ensure_ascii=False) for text in message]
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines), encoding="utf-8", newline="")
    assert texts_of(tmp_path / "a.jsonl") == message == trained_on(tmp_path / "a.jsonl")


def test_f94_a_line_beyond_the_limit_is_one_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_pairs, "LARGEST", 100_000)
    monkeypatch.setattr(samples, "LARGEST", 100_000)
    shard = tmp_path / "a.jsonl"
    shard.write_bytes(
        b'{"text": "one", "url": "u"}\n{"text": "' + b"x" * 5_000_000 + b'"}\n{"text": "two", "url": "u"}\n'
    )
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(shard.read_bytes(), 1))
    assert texts_of(shard) == ["one", "line too long", "two"] == texts_of(packed)
    places = index.sample_index(shard).tolist()
    assert len(places) == 3 and read_sample(shard, *places[2]).columns["text"] == "two"
    with pytest.raises(Unusable, match="line too long"):
        read_sample(shard, *places[1])


def test_f98_a_damaged_archive_of_lines_gives_what_is_whole(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"text {k}", "url": "u"}) + "\n" for k in range(5000)).encode()
    whole = gzip.compress(lines)
    for number, damaged in enumerate(
        (whole[: len(whole) // 2], whole[:5000] + b"\0\xff\0\xff" * 40 + whole[5160:])
    ):
        shard = tmp_path / f"{number}.jsonl.gz"
        shard.write_bytes(damaged)
        found = texts_of(shard)
        assert found[:10] == [f"text {k}" for k in range(10)]
        assert found[-1] in ("damaged archive", "broken JSON", "broken UTF-8") and "damaged archive" in found


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"a.tar is neither a file nor a folder"):
        find_shards(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="no shard in"):
        find_shards(tmp_path)


def test_shards_packed_in_other_ways_are_told_not_passed_over(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", ["x"])
    (tmp_path / "b.txt.zst").write_bytes(b"")
    assert names(tmp_path) == ["a.tar"]
    for name in ("b.tar.zst", "b.jsonl.bz2", "b.parquet.XZ"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=r"is packed in a way that is not read .* unpack it"):
            find_shards(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "a.tar.xz").write_bytes(b"")
    assert names(tmp_path) == ["a.tar"], "unpacked already"


def test_loose_files_of_a_folder_are_read_as_those_of_a_tar(tmp_path: Path) -> None:
    for key in ("a", "b"):
        (tmp_path / f"{key}.jpg").write_bytes(jpeg(1))
        (tmp_path / f"{key}.txt").write_text(f"text {key}")
    (tmp_path / "c.png").write_bytes(jpeg(1))
    assert texts_of(tmp_path) == ["text a", "text b", "empty caption"]
