"""What cannot be read is counted with a reason, and the rest of the shard survives."""

import gzip
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from qwenvl.cli import main
from qwenvl.data.clean.contamination import Benchmarks, not_in
from qwenvl.data.clean.images import BadImage, difference_hash, measure
from qwenvl.data.clean.pairs import Source, read_samples
from qwenvl.data.parquet import write_parquet
from qwenvl.data.records import Pair, Skipped
from qwenvl.data.shards import dump, find_shards
from qwenvl.data.tars import write_tar
from qwenvl.images import open_image

RNG = np.random.default_rng(0)


def encoded(kind: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    small = pillow.fromarray(RNG.integers(0, 255, (6, 8, 3), np.uint8))
    buffer = io.BytesIO()
    small.resize(size).save(buffer, kind)
    return buffer.getvalue()


JPEG, PNG, WEBP, GIF = (encoded(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF"))


def samples(path: Path, **options: object) -> list[Pair | Skipped]:
    return list(read_samples(Source(path, "test", **options)))  # type: ignore[arg-type]


def outcome(path: Path) -> list[str]:
    return [sample.kind if isinstance(sample, Skipped) else sample.text for sample in samples(path)]


# === Images ===


@pytest.mark.parametrize(("data", "kind"), [(JPEG, "jpg"), (PNG, "png"), (WEBP, "webp"), (GIF, "gif")])
@pytest.mark.parametrize("decode", [False, True])
def test_a_whole_image_is_measured(data: bytes, kind: str, decode: bool) -> None:
    assert measure(data, decode=decode) == (kind, 64, 48)


def with_size(data: bytes, width: int, height: int) -> bytes:
    if data[:2] == b"\xff\xd8":
        place = data.index(b"\xff\xc0")
        return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]
    return data[:16] + struct.pack(">II", width, height) + data[24:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (JPEG[: len(JPEG) // 2], "truncated image"),
        (PNG[: len(PNG) // 2], "truncated image"),
        (WEBP[: len(WEBP) // 2], "truncated image"),
        (with_size(JPEG, 2000, 2000), "image lies about its size"),
        (with_size(PNG, 2000, 2000), "damaged image"),
        (with_size(JPEG, 60_000, 60_000), "decompression bomb"),
        (with_size(PNG, 60_000, 60_000), "decompression bomb"),
        (with_size(JPEG, 0, 10), "image without pixels"),
        (b"<html>gone</html>", "no image"),
        (b"", "no image"),
        (b"\xff\xd8\xff", "truncated image"),
    ],
)
def test_an_image_that_is_none(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as caught:
        measure(data)
    assert str(caught.value) == reason


def test_a_small_lie_is_found_by_decoding() -> None:
    data = with_size(JPEG, 80, 96)
    assert measure(data).width == 80
    with pytest.raises(BadImage, match=r"lies about its size|damaged"):
        measure(data, decode=True)


def test_the_hash_survives_scaling_and_tells_images_apart() -> None:
    small = pillow.fromarray(RNG.integers(0, 255, (8, 9, 3), np.uint8))
    hashes = []
    for size, quality in (((288, 216), 80), ((150, 120), 50)):
        buffer = io.BytesIO()
        small.resize(size, pillow.Resampling.BILINEAR).save(buffer, "JPEG", quality=quality)
        hashes.append(difference_hash(buffer.getvalue()))
    assert (hashes[0] ^ hashes[1]).bit_count() <= 3
    assert (hashes[0] ^ difference_hash(JPEG)).bit_count() > 10


# === Tars ===


def raw_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with write_tar(path) as tar:
        for name, data in members:
            tar.add(name, data)


def three(path: Path) -> bytes:
    members = [
        (f"{k}.{e}", d) for k in range(3) for e, d in (("jpg", JPEG), ("json", dump({"text": f"text {k}"})))
    ]
    raw_tar(path, members)
    return path.read_bytes()


def test_samples_of_a_tar(tmp_path: Path) -> None:
    three(tmp_path / "a.tar")
    found = samples(tmp_path / "a.tar")
    assert [(s.key, s.text, s.image) for s in found if isinstance(s, Pair)] == [
        (str(k), f"text {k}", JPEG) for k in range(3)
    ]
    assert all(s.source == "test" for s in found)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_others_with_long_and_foreign_names(tmp_path: Path, format: int) -> None:
    names = [
        "folder/a.jpg",
        "folder/a.txt",
        f"{'long/' * 25}b.jpg",
        f"{'long/' * 25}b.txt",
        "狗.jpg",
        "狗.txt",
    ]
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            data = JPEG if name.endswith("jpg") else b"a red dog"
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [s.key for s in samples(tmp_path / "a.tar")] == ["folder/a", f"{'long/' * 25}b", "狗"]
    assert outcome(tmp_path / "a.tar") == ["a red dog"] * 3


def test_our_tars_are_read_by_tarfile(tmp_path: Path) -> None:
    raw_tar(tmp_path / "a.tar", [("x.json", b"1"), ("狗" * 60 + ".txt", b"22"), ("empty", b"")])
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == {
            "x.json": b"1",
            "狗" * 60 + ".txt": b"22",
            "empty": b"",
        }  # type: ignore[union-attr]


def test_a_gzipped_tar(tmp_path: Path) -> None:
    import gzip

    data = gzip.compress(three(tmp_path / "a.tar"))
    (tmp_path / "a.tar.gz").write_bytes(data)
    assert outcome(tmp_path / "a.tar.gz") == ["text 0", "text 1", "text 2"]
    (tmp_path / "b.tgz").write_bytes(data[:-500])
    assert outcome(tmp_path / "b.tgz")[-1] in ("damaged archive", "cut tar")


def test_a_cut_tar_gives_what_is_whole(tmp_path: Path) -> None:
    whole = three(tmp_path / "a.tar")
    for length in range(len(whole) - 1024, 0, -177):
        (tmp_path / "b.tar").write_bytes(whole[:length])
        found = outcome(tmp_path / "b.tar")
        texts = [text for text in found if text.startswith("text")]
        assert texts == [f"text {k}" for k in range(len(texts))]
        assert all(kind in ("cut tar", "empty caption", "no image") for kind in found[len(texts) :])
        assert "cut tar" in found


def test_garbage_in_the_middle_costs_only_what_it_covers(tmp_path: Path) -> None:
    whole = bytearray(three(tmp_path / "a.tar"))
    second = whole.index(b"1.jpg")
    whole[second : second + 300] = b"?" * 300
    (tmp_path / "b.tar").write_bytes(whole)
    found = outcome(tmp_path / "b.tar")
    assert found[0] == "text 0" and found[-1] == "text 2" and "damaged tar header" in found


@pytest.mark.parametrize(
    ("json", "kind"),
    [
        (b'{"text": "a \xff\xfe b"}', "broken UTF-8"),
        (b'{"text": "a', "broken JSON"),
        (b"[1]", "broken JSON"),
        (b'{"text": " "}', "empty caption"),
        (b'{"text": null}', "empty caption"),
        (b'{"text": 7}', "empty caption"),
        (b'{"text": "\\ud800 x"}', "broken JSON"),
        (b'{"text": "x", "clip_score": NaN}', "score is not finite"),
        (b'{"text": "x", "similarity": "high"}', "score is no number"),
        (b'{"text": "x", "width": -5}', "size is not positive"),
        (b'{"text": "x", "width": NaN}', "size is no number"),
        (b"[" * 100_000, "broken JSON"),
    ],
)
def test_a_broken_annotation(tmp_path: Path, json: bytes, kind: str) -> None:
    raw_tar(tmp_path / "a.tar", [("0.jpg", JPEG), ("0.json", json), ("1.jpg", JPEG), ("1.txt", b"fine")])
    assert outcome(tmp_path / "a.tar") == [kind, "fine"]


def test_text_without_image_and_image_without_text(tmp_path: Path) -> None:
    raw_tar(
        tmp_path / "a.tar", [("0.txt", b"alone"), ("1.jpg", JPEG), ("2.jpg", JPEG), ("2.txt", b"caf\xc3\xa9")]
    )
    assert outcome(tmp_path / "a.tar") == ["no image", "empty caption", "café"]


# === Parquet and JSON lines ===


def test_parquet_with_urls_is_not_fetched(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "a.parquet",
        [{"URL": "http://x/1.jpg", "TEXT": "a red dog", "WIDTH": 640, "HEIGHT": 480, "similarity": 0.31, "punsafe": 0},
         {"URL": "http://x/2.jpg", "TEXT": None, "WIDTH": 640, "HEIGHT": 480, "similarity": float("nan")}],
    )  # fmt: skip
    first, second = samples(tmp_path / "a.parquet")
    assert first == Pair(
        key="a-00000000", text="a red dog", source="test", width=640, height=480, clip_score=0.31, url="http://x/1.jpg",
        extra={"punsafe": 0},
    )  # fmt: skip
    assert isinstance(second, Skipped) and second.kind == "score is not finite"


def test_a_fetcher_of_the_caller_is_asked(tmp_path: Path) -> None:
    def fetch(url: str) -> bytes:
        if url.endswith("2.jpg"):
            raise OSError("404")
        return JPEG

    write_parquet(tmp_path / "a.parquet", [{"url": f"http://x/{k}.jpg", "text": "a dog"} for k in (1, 2)])
    first, second = samples(tmp_path / "a.parquet", fetch=fetch)
    assert isinstance(first, Pair) and first.image == JPEG
    assert isinstance(second, Skipped) and (second.kind, second.detail) == ("not fetched", "404")


def test_hugging_face_images_in_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"image": {"bytes": JPEG, "path": "x.jpg"}, "caption": "a dog"}])
    (found,) = samples(tmp_path / "a.parquet")
    assert isinstance(found, Pair) and found.image == JPEG


def test_a_damaged_parquet_is_one_failure(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"url": "u", "text": "t"}] * 10)
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-30])
    assert outcome(tmp_path / "a.parquet") == ["damaged parquet"]


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    lines = [
        b'{"image": "1.jpg", "text": "one", "source": "mine"}', b"", b"{broken", b'{"image": "none.jpg", "text": "x"}',
        b'{"image": "1.jpg", "captions": ["first", "second"]}', b"\xff\xfe", b"3",
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert outcome(tmp_path / "a.jsonl") == [
        "one", "broken JSON", "missing image", "first", "second", "broken UTF-8", "broken JSON",
    ]  # fmt: skip
    assert [s.source for s in samples(tmp_path / "a.jsonl")][:2] == ["mine", "test"]
    assert [s.key for s in samples(tmp_path / "a.jsonl")][3:5] == ["a-00000004-0", "a-00000004-1"]


def test_what_is_no_shard(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no"):
        find_shards(tmp_path / "none")
    with pytest.raises(ValueError, match="no shard in"):
        find_shards(tmp_path)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "x"}))
    (tmp_path / ".a.tar.tmp").write_text("")
    assert [path.name for path in find_shards(tmp_path)] == ["b.jsonl"]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 300 300\n%%EndComments\nshowpage\n%%EOF\n"


def test_f80_f98_no_command_of_cleaning_starts_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """EPS among web images: no image for clean (each look at pixels), calibrate and inspect."""
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *words, **options: started.append(words))
    monkeypatch.setattr("os.system", started.append)
    texts = ["a plain red square on a wall", "a plain blue circle on a wall", "a small green dog by a door"]
    (tmp_path / "raw").mkdir()
    files = [("0.jpg", encoded(size=(400, 300))), ("1.jpg", EPS), ("2.png", EPS + bytes(100))]
    texted = [(f"{k}.txt", text.encode()) for k, text in enumerate(texts)]
    raw_tar(tmp_path / "raw/a.tar", [each for pair in zip(files, texted, strict=True) for each in pair])
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/a.txt").write_text("what is the colour of the very large bus")
    (tmp_path / "bench/b.png").write_bytes(encoded("PNG", (300, 300)))
    changes = ["clip_score=null", "near_images=3", "short_side=100"]
    words = [
        "data",
        "clean",
        "raw",
        "out",
        "--benchmarks",
        "bench",
        "--aside",
        "all",
        "--decode",
        "--change",
        *changes,
    ]
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert main(["data", "inspect", "out", "--out", "page.html"]) == 0
    assert main(["data", "calibrate", "raw", "--target", "0.3", "--change", *changes]) == 0
    assert not started
    total = json.loads((tmp_path / "out/statistics.json").read_text())["total"]
    assert total["kept"] == 1 and total["failed"] == {"no image": 2}
    assert "image" in capsys.readouterr().out
    (tmp_path / "bench/b.png").write_bytes(EPS)
    assert main(["data", "clean", "raw", "again", "--benchmarks", "bench"]) == 2, (
        "a benchmark that cannot be seen"
    )
    assert not started


def test_what_benchmarks_say_is_read_whatever_file_it_stands_in(tmp_path: Path) -> None:
    """Texts, tables, JSON, packed lines; none that is there goes unread, and a damaged one is named."""
    bench = tmp_path / "bench"
    (bench / "deep").mkdir(parents=True)
    things = ("bus", "dog", "cat", "cup", "hat", "jar")
    said = [f"a {thing} stands by a door in rain" for thing in things]
    (bench / "a.txt").write_bytes(b"\xef\xbb\xbf" + said[0].encode() + b"\r\n")
    (bench / "b.json").write_text(json.dumps({"questions": [{"question": said[1]}]}))
    (bench / "c.jsonl").write_text(json.dumps([said[2]]) + "\n")
    (bench / "deep" / "d.jsonl.gz").write_bytes(gzip.compress(json.dumps({"q": said[3]}).encode()))
    (bench / "e.tsv").write_text(f"1\t{said[4]}\tx\n")
    (bench / "._a.txt").write_bytes(b"\xff")
    image = encoded("PNG", (300, 300))
    (bench / "f.PNG").write_bytes(image)
    rule = not_in(Benchmarks.read(bench))
    dropped = [rule(Pair(key="k", text=text)) is not None for text in said]
    assert dropped == [True, True, True, True, True, False]
    assert "looks like" in (rule(Pair(key="k", text="other", image=image)) or "")
    for name, content, message in (
        ("g.parquet", b"x", r"g\.parquet is among the benchmarks, .* 1 of 7 files"),
        ("g.txt", b"\xff", r"g\.txt is not UTF-8"),
        ("g.jpg", b"\xff\xd8x", r"g\.jpg: .* must be whole"),
        ("g.jsonl", b"{", r"g\.jsonl, line 1"),
    ):
        (bench / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Benchmarks.read(bench)
        (bench / name).unlink()


def with_chunk(png: bytes, kind: bytes, data: bytes, *, right: bool = True) -> bytes:
    """The PNG with one more chunk behind its header."""
    checksum = zlib.crc32(kind + data) ^ (not right)
    return png[:33] + struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum) + png[33:]


@pytest.mark.parametrize(
    "png",
    [
        with_chunk(PNG, b"tEXt", b"Comment\0words", right=False),
        with_chunk(PNG, b"iCCP", b"profile\0\0not packed", right=True),
        with_chunk(PNG, b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100 << 20))),
        with_chunk(PNG, b"tEXt", b"Comment\0" + b"x" * (2 << 20)),
    ],
)
def test_f105_remarks_of_a_png_are_no_reason_to_lose_it(png: bytes, tmp_path: Path) -> None:
    """One verdict: what cleaning keeps is what training opens, with and without decoding everything."""
    for decode in (False, True):
        assert measure(png, decode=decode) == ("png", 64, 48)
    assert open_image(png).size == (64, 48)
    raw_tar(tmp_path / "a.tar", [("0.png", png), ("0.txt", b"words")])
    assert outcome(tmp_path / "a.tar") == ["words"]


def test_f105_pixels_that_are_damaged_are_damaged_everywhere() -> None:
    large = encoded("PNG", (300, 200))
    at = large.index(b"IDAT") + 500
    damaged = large[:at] + bytes(byte ^ 255 for byte in large[at : at + 40]) + large[at + 40 :]
    with pytest.raises(BadImage, match="damaged image"):
        measure(damaged, decode=True)
    with pytest.raises(ValueError, match="damaged image"):
        open_image(damaged)


def test_f73_one_bad_entry_of_a_list_costs_no_other(tmp_path: Path) -> None:
    good = {"url": "https://a.b/c.jpg", "width": 300, "height": 300, "caption": "a red kite"}
    spelled = json.dumps(good)
    for bad, kind in (
        ('{"caption": "\\ud83d"}', "broken JSON"),
        ('{"id": 1' + "0" * 30 + "}", "broken JSON"),
        ('{"caption": "a", "caption": "b"}', "broken JSON"),
        ("null", "broken JSON"),
        ("[" * 200 + "]" * 200, "broken JSON"),
    ):
        (tmp_path / "a.json").write_text(f"[{spelled}, {bad}, {spelled}]")
        assert outcome(tmp_path / "a.json") == ["a red kite", kind, "a red kite"]
    (tmp_path / "a.json").write_text(f"[{spelled}, {spelled}")
    assert outcome(tmp_path / "a.json") == ["a red kite", "a red kite", "broken JSON"]
    (tmp_path / "a.json").write_bytes(f"[{spelled}]".encode("utf-16"))
    assert outcome(tmp_path / "a.json") == ["broken JSON"]
