"""Rows of parquet: by every layout that is about, of every type, and within limits."""

import datetime
import decimal
import io
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as pillow

from qwenvl.data import parquet
from qwenvl.data.clean.engine import Settings
from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.clean.run import clean
from qwenvl.data.columns import image_of
from qwenvl.data.parquet import write_parquet
from qwenvl.data.records import Pair, Skipped
from qwenvl.data.stream.index import sample_index
from qwenvl.data.stream.samples import Unusable, read_sample


def jpeg() -> bytes:
    file = io.BytesIO()
    pillow.new("RGB", (320, 320), (40, 80, 200)).save(file, "JPEG")
    return file.getvalue()


JPEG = jpeg()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def found_in(path: Path, **options: Any) -> list[Pair | Skipped]:
    return list(read_samples(Source(path, "", **options)))


def outcome(path: Path, **options: Any) -> list[str]:
    return [each.text if isinstance(each, Pair) else each.kind for each in found_in(path, **options)]


# === Layouts ===


@pytest.mark.parametrize(
    "cell",
    [
        JPEG,
        {"bytes": JPEG, "path": None},
        {"bytes": None, "path": "images/a.jpg"},
        "images/a.jpg",
        [{"bytes": JPEG}],
    ],
)
def test_f72_an_image_by_bytes_or_by_its_path_is_the_same_for_cleaning_and_training(
    cell: Any, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(JPEG)
    shard = tmp_path / "a.parquet"
    write_parquet(shard, [{"image": cell, "text": "a square"}])
    (found,) = found_in(shard)
    assert isinstance(found, Pair) and found.image == JPEG
    row = read_sample(shard, *sample_index(shard)[0].tolist())
    assert row.images or image_of(row.columns["image"]) == "images/a.jpg" or isinstance(cell, list)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("none.jpg", "missing image"),
        ("/etc/passwd", "path outside the folder"),
        ("../a.parquet", "path outside the folder"),
        ("link.jpg", "path outside the folder"),
        ({"bytes": None, "path": "/etc/passwd"}, "path outside the folder"),
        ("/dev/zero", "path outside the folder"),
        ("pipe", "missing image"),
        ("folder", "missing image"),
        ("a\0b", "path outside the folder"),
        ({"bytes": None, "path": None}, "no image"),
        ("", "no image"),
    ],
)
def test_f81_names_in_data_stay_in_their_folder(cell: Any, kind: str, tmp_path: Path) -> None:
    """In parquet as in lines of JSON: nothing outside is opened, nothing that is no file is waited for."""
    import json
    import os

    home = tmp_path / "data"
    (home / "folder").mkdir(parents=True)
    os.mkfifo(home / "pipe")
    (home / "link.jpg").symlink_to("/etc/passwd")
    write_parquet(home / "a.parquet", [{"image": cell, "text": "a square"}])
    (home / "b.jsonl").write_text(json.dumps({"image": cell, "text": "a square"}))
    for shard in ("a.parquet", "b.jsonl"):
        assert outcome(home / shard) == [kind], shard


def test_f81_a_root_that_the_user_names(tmp_path: Path) -> None:
    import json

    (tmp_path / "lines").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(JPEG)
    shard = tmp_path / "lines/a.jsonl"
    names = ["a.jpg", f"{tmp_path}/images/a.jpg", "../secret", "/etc/passwd"]
    shard.write_text("\n".join(json.dumps({"image": name, "text": "a square"}) for name in names))
    expected = ["a square", "a square", "path outside the folder", "path outside the folder"]
    assert outcome(shard, images=tmp_path / "images") == expected
    (lost,) = [each for each in found_in(shard) if isinstance(each, Skipped)][1:2]
    assert str(tmp_path) in lost.detail and "relative" in lost.detail


def test_f41_a_list_of_captions_under_any_name(tmp_path: Path) -> None:
    for name in ("caption", "captions", "text", "texts"):
        write_parquet(
            tmp_path / "a.parquet", [{"image": JPEG, name: ["one", "two"]}, {"image": JPEG, name: []}]
        )
        assert outcome(tmp_path / "a.parquet") == ["one", "two", "empty caption"], name


def test_f61_dialogues_are_no_pairs_and_say_so(tmp_path: Path) -> None:
    said = {
        "conversations": [{"from": "human", "value": "What?"}],
        "messages": [{"role": "user", "content": "What?"}],
        "texts": [{"user": "What?", "assistant": "A square"}],
    }
    for name, value in said.items():
        write_parquet(tmp_path / "a.parquet", [{"images": [{"bytes": JPEG, "path": None}], name: value}])
        assert outcome(tmp_path / "a.parquet") == ["a dialogue, no pair"], name


def test_rows_without_anything_to_judge_are_counted(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"text": "words alone"}])
    assert outcome(tmp_path / "a.parquet") == ["no image"]
    write_parquet(tmp_path / "a.parquet", [{"text": "words", "images": [JPEG, JPEG]}])
    assert outcome(tmp_path / "a.parquet") == ["several images"]


# === F-85: odd types ===

ODD: dict[str, Any] = {
    "date": datetime.date(2020, 2, 3),
    "time": datetime.datetime(2020, 2, 3, 4, 5, 6),
    "price": decimal.Decimal("1.50"),
    "blobs": [b"\0\1", b"\2"],
    "nested": {"when": datetime.date(2020, 2, 3), "raw": b"\0", "score": float("nan")},
    "wait": datetime.timedelta(seconds=5),
}


def test_f85_columns_of_every_type_are_carried_or_passed_over(tmp_path: Path) -> None:
    import pyarrow

    table = pyarrow.table(
        {
            "image": [JPEG, JPEG],
            "text": ["a plain square on a white wall", "a plain square on a black wall"],
            **{name: [value, None] for name, value in ODD.items()},
            "tags": pyarrow.array([[("a", 1)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "far": pyarrow.array([2**62, 0], pyarrow.timestamp("ms")),
            "id": pyarrow.array([datetime.date(2020, 1, 1)] * 2),
            "broken": pyarrow.Array.from_buffers(
                pyarrow.string(), 2, pyarrow.array([b"\xff\xfe", b"ok"], pyarrow.binary()).buffers()
            ),
        }
    )
    (tmp_path / "raw").mkdir()
    parquet.library().write_table(table, tmp_path / "raw/a.parquet")
    settings = Settings(thresholds=Thresholds())
    assert clean(tmp_path / "raw", tmp_path / "out", settings).total.kept == 2
    (one, two) = found_in(tmp_path / "out/00000.tar")
    assert isinstance(one, Pair) and isinstance(two, Pair) and one.image == JPEG
    assert {name: one.extra.get(name) for name in ODD} == {
        "date": "2020-02-03", "time": "2020-02-03T04:05:06", "price": 1.5, "blobs": None, "nested": None, "wait": None,
    }  # fmt: skip
    assert two.extra["broken"] == "ok" and "broken" not in one.extra and "far" not in one.extra
    read_sample(tmp_path / "raw/a.parquet", *sample_index(tmp_path / "raw/a.parquet")[0].tolist())


def test_f85_numbers_and_letters_that_cannot_be(tmp_path: Path) -> None:
    lines = [
        '{"url": "u", "text": "one", "width": 1%s}' % ("0" * 400),
        '{"url": "u", "text": "two", "clip_score": 1%s}' % ("0" * 400),
        '{"url": "u", "text": "three", "id": 1%s}' % ("0" * 5000),
        '{"url": "u", "text": "four", "id": "\\ud800"}',
        '{"url": "u", "text": "five", "clip_score": "%s"}' % ("9" * 5000),
        '{"url": "u", "text": "six", "width": 99999999999}',
        '{"url": "u", "text": "seven", "similarity": 1e999}',
        '{"url": "u", "text": "eight", "other": NaN}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert outcome(tmp_path / "a.jsonl") == [
        "broken JSON", "broken JSON", "broken JSON", "broken JSON", "score is not finite",
        "size is no number of pixels", "score is not finite", "eight",
    ]  # fmt: skip


# === F-94: bombs ===


def bomb(path: Path, size: int, rows: int) -> None:
    """One long value that every row shares, in a dictionary page."""
    import random

    import pyarrow

    indices = pyarrow.array([0] * rows, pyarrow.int32())
    values = pyarrow.array([random.Random(0).randbytes(size)], pyarrow.binary())
    table = pyarrow.table(
        {"image": pyarrow.DictionaryArray.from_arrays(indices, values), "text": ["a square"] * rows}
    )
    parquet.library().write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30)


def test_f94_a_long_value_that_all_rows_share_is_not_unpacked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow

    bomb(tmp_path / "a.parquet", 4 << 20, 500)  # 2 GB
    assert (tmp_path / "a.parquet").stat().st_size < 5 << 20
    monkeypatch.setattr(parquet, "BUDGET", 16 << 20)
    monkeypatch.setattr(parquet, "GROUP", 40 << 20)
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    for number, row in enumerate(parquet.read_rows(tmp_path / "a.parquet")):
        assert not isinstance(row, parquet.Damaged) and len(row["image"]) == 4 << 20
        if number == 5:
            break
    assert pyarrow.total_allocated_bytes() - before < 64 << 20
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    with pytest.raises(Unusable, match=r"row group 0 unpacks to more than"):
        read_sample(tmp_path / "a.parquet", 0, 3)
    monkeypatch.setattr(parquet, "DENSITY", 1)
    *whole, last = parquet.read_rows(tmp_path / "a.parquet")
    assert len(whole) == 9 and isinstance(last, parquet.Damaged) and "unpacks to more than" in last.detail


def test_f94_what_unpacks_a_thousandfold_and_what_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is one loss, and the row groups behind it are read."""
    import pyarrow

    monkeypatch.setattr(parquet, "BUDGET", 16 << 20)
    schema = pyarrow.schema({"url": pyarrow.string(), "text": pyarrow.string()})
    with parquet.library().ParquetWriter(
        tmp_path / "a.parquet", schema, compression="zstd", use_dictionary=False
    ) as file:
        for text in ("before", "x" * (8 << 20), "behind"):
            file.write_table(pyarrow.table({"url": ["u"], "text": [text]}, schema))
    assert outcome(tmp_path / "a.parquet") == ["before", "damaged parquet", "behind"]
    monkeypatch.setattr(parquet, "DENSITY", 10**9)
    monkeypatch.setattr(parquet, "LARGEST", 1 << 20)
    assert outcome(tmp_path / "a.parquet") == ["before", "cell too large", "behind"]
    with pytest.raises(Unusable, match="cell too large"):
        read_sample(tmp_path / "a.parquet", 1, 0)


def test_a_damaged_row_group_costs_no_other(tmp_path: Path) -> None:
    import pyarrow

    rows = pyarrow.table({"url": ["u"] * 3, "text": ["before", "lost", "behind"]})
    parquet.library().write_table(
        rows,
        tmp_path / "a.parquet",
        row_group_size=1,
        compression="gzip",
        use_dictionary=False,
        write_statistics=False,
    )
    with parquet.opened(tmp_path / "a.parquet") as file:
        at = file.metadata.row_group(1).column(1).data_page_offset
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    raw[at + 20 : at + 50] = b"\xff" * 30
    (tmp_path / "a.parquet").write_bytes(raw)
    assert outcome(tmp_path / "a.parquet") == ["before", "damaged parquet", "behind"]
    assert read_sample(tmp_path / "a.parquet", 2, 0).columns["text"] == "behind"
    with pytest.raises(Unusable, match="damaged parquet"):
        read_sample(tmp_path / "a.parquet", 1, 0)


def test_a_name_of_a_column_that_is_no_text_is_a_damaged_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"caption": "x"}])
    (tmp_path / "a.parquet").write_bytes(
        (tmp_path / "a.parquet").read_bytes().replace(b"caption", b"ca\x99tion")
    )
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as parquet"):
        sample_index(tmp_path / "a.parquet")
    (skipped,) = found_in(tmp_path / "a.parquet")
    assert isinstance(skipped, Skipped) and skipped.kind == "damaged parquet"


def test_a_row_that_is_no_longer_there_is_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"caption": "x"}])
    with pytest.raises(Unusable, match="there is no row 1 among 1; the file has changed"):
        read_sample(tmp_path / "a.parquet", 0, 1)
