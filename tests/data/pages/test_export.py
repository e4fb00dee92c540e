"""Pages on disk and through the command line; real receipts into the OCR format and back."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl import cli, markup
from qwenvl.data.datasets import icdar
from qwenvl.data.records import OcrPage, Skipped, from_json
from qwenvl.data.synth.pages.export import funnel, write_pages
from qwenvl.data.synth.pages.fonts import Fonts
from qwenvl.data.synth.pages.look import Look
from qwenvl.data.synth.pages.page import Line, Page, PageMaker, numbered_pages
from qwenvl.data.synth.pages.scenery import Backgrounds
from qwenvl.data.tars import read_tar
from qwenvl.data.tasks import record_of, task_of

RECEIPTS = Path(__file__).parents[4] / "shared/real/receipts"
SMALL = ["--size", "400", "--chinese", "0"]


def test_tars_hold_images_records_and_exact_corners(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["data", "synth", "pages", "--count", "3", "--per-shard", "2", *SMALL]
    assert cli.main([*line, "--out", str(tmp_path / "a"), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["read"] == counts["kept"] == 3
    shards = sorted((tmp_path / "a").glob("*.tar"))
    assert [shard.name for shard in shards] == ["pages-000000.tar", "pages-000001.tar"]
    files = {member.name: member.data for shard in shards for member in read_tar(shard)}
    assert len(files) == 9
    for name in (name for name in files if name.endswith(".jpg")):
        key = name.removesuffix(".jpg")
        record = from_json(files[f"{key}.json"].decode())
        exact = json.loads(files[f"{key}.pixels.json"])
        (tmp_path / "one.jpg").write_bytes(files[name])
        assert Image.open(tmp_path / "one.jpg").size == (exact["width"], exact["height"])
        assert isinstance(record, OcrPage) and record.image.source == name
        for quad, found in zip(record.lines, exact["lines"], strict=True):
            assert quad.label == found["text"]
            pixels = np.array(quad.to_pixels(exact["width"], exact["height"]))
            assert np.abs(pixels - np.array(found["quad"])).max() < 0.5
    assert cli.main([*line, "--out", str(tmp_path / "b")]) == 0
    assert [s.read_bytes() for s in sorted((tmp_path / "b").glob("*.tar"))] == [
        s.read_bytes() for s in shards
    ]


def test_parts_of_a_run_are_the_run(tmp_path: Path) -> None:
    line = ["data", "synth", "pages", "--format", "folder", *SMALL, "--out", str(tmp_path)]
    assert cli.main([*line, "--count", "2"]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.jpg")}
    assert cli.main([*line, "--start", "1", "--count", "2"]) == 0
    after = {path.name: path.read_bytes() for path in tmp_path.glob("*.jpg")}
    assert len(before) == 2 and len(after) == 3
    assert before.items() <= after.items()


def test_pdf_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from reportlab.pdfgen import canvas

    paper = canvas.Canvas(str(tmp_path / "a.b.pdf"), pagesize=(300, 300))
    paper.drawString(20, 200, "Twenty characters and a few more")
    paper.showPage()
    paper.drawString(20, 200, "Few")
    paper.save()
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    out = tmp_path / "out"
    assert cli.main(["data", "synth", "pdf", str(tmp_path), "--format", "folder", "--out", str(out)]) == 0
    message = capsys.readouterr().out
    assert "- fewer than 20 characters" in message and "- broken PDF" in message and "33.3 %" in message
    assert sorted(path.name for path in out.iterdir()) == [
        "000000-a_b-00000.jpg", "000000-a_b-00000.json", "000000-a_b-00000.pixels.json",
        "pages-000000.statistics.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pdf", "no pdf files named"),
        ("html missing.html", "there is no missing.html"),
        ("pages --count 0", "--count 0"),
        ("pages --size 20", "64"),
        ("pages --chinese 2", "0 to 1"),
        ("pages --texts missing", "no .txt file"),
        ("pages --per-shard 0", "at least 1"),
    ],
)
def test_bad_use_is_one_sentence(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "synth", *words.split(), "--out", str(tmp_path / "out")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert message in last and last.startswith("qwenvl: error: ")


def test_a_damaged_background_costs_its_page_and_is_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.jpg").write_bytes(b"no image")
    maker = PageMaker(Look(longest=300), fonts=Fonts([]), backgrounds=Backgrounds(tmp_path / "in"))
    counts = write_pages(numbered_pages(maker, 0, range(2)), tmp_path / "out")
    assert counts == {"read": 2, "damaged background": 2}
    assert "damaged background" in funnel(counts)


@pytest.fixture
def written_receipts(tmp_path: Path) -> Path:
    """Two receipts in the form of SROIE: commas in the text, a byte order mark, a slanted line, Chinese."""
    for name, size, lines in (
        (
            "000",
            (463, 894),
            ["72,25,326,25,326,64,72,64,TAN WOON, YANN", "50,82,440,90,438,121,48,110,NO: 3%"],
        ),
        ("007", (1000, 1517), ["0,0,1000,0,1000,60,0,60,合计 RM 9.00", "", "1,1,9,1,9,7,1,7,x"]),
    ):
        Image.new("L", size, 255).save(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    return tmp_path


@pytest.mark.parametrize("folder", ["written", *[str(RECEIPTS)] * RECEIPTS.is_dir()])
def test_receipts_into_the_ocr_format_and_back(folder: str, written_receipts: Path) -> None:
    place = written_receipts if folder == "written" else Path(folder)
    records = list(icdar.records([place], place))
    assert len(records) == len(list(place.glob("*.csv")))
    for record in records:
        assert isinstance(record, OcrPage), record
        message = task_of(record)
        assert message.prompt[-1] == markup.Text("OCR with grounding:")
        answer = "".join(map(markup.spell, message.answer))
        again = record_of("ocr", "OCR with grounding:", answer, record.image, source="SROIE")
        assert again == record
        source = Path(str(record.image.source))
        width, height = Image.open(source).size
        rows = source.with_suffix(".csv").read_text("utf-8-sig").splitlines()
        cells = [row.split(",", 8) for row in rows if row.strip()]
        assert len(cells) == len(record.lines)
        for row, quad in zip(cells, record.lines, strict=True):
            assert quad.label == row[8].strip()
            off = np.abs(np.array(quad.to_pixels(width, height)).ravel() - np.array(row[:8], float))
            assert (off.reshape(4, 2) <= np.array([width, height]) / 1000).all()


def test_skipped_pages_keep_their_place_in_the_count(tmp_path: Path) -> None:
    pages = [(str(k), Skipped(key=str(k), kind="too small" if k % 2 else "other")) for k in range(4)]
    counts = write_pages(iter(pages), tmp_path, tar=False)
    assert counts == {"read": 4, "too small": 2, "other": 2}
    assert "50.0 %" in funnel(counts)


def test_what_a_killed_run_left_of_its_shards_goes(tmp_path: Path) -> None:
    """A killed run leaves its tar unfinished; the next run with the same shards removes it, and nobody else's."""
    left = [tmp_path / f".pages-{number:06d}.tar.{'0' * 12}.tmp" for number in (0, 7)]
    for file in left:
        file.write_bytes(b"half a tar")
    line = Line("one", ((0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 9.0)))
    page = Page(image=Image.new("RGB", (40, 40)), lines=(line,), source="pdf")
    write_pages(iter([("0-0", page)]), tmp_path, tar=True, per_shard=5)
    assert [file.exists() for file in left] == [False, True] and (tmp_path / "pages-000000.tar").exists()
