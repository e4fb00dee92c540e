"""`qwenvl data ...` as a person types it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as pillow

import qwenvl.cli as cli
from qwenvl.data.records import GroundedCaption, OcrPage, PlainText, Question, to_json
from qwenvl.data.synth.rawpairs import planted, write_raw
from qwenvl.markup import Box, Image, Quad, Ref, Text

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def typed(*args: object, status: int = 0) -> str:
        assert cli.main([str(arg) for arg in args]) == status
        out, err = capsys.readouterr()
        return out + err

    return typed


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_raw(planted(120), folder, shards=3, cut=False)
    return folder


def test_clean_then_read_then_mix_then_inspect(raw: Path, run: Run, tmp_path: Path) -> None:
    clean, records, mixed, shown = (
        tmp_path / name for name in ("clean", "captions.jsonl", "mix.jsonl", "page.html")
    )
    options = ("--preset", "coyo", "--change", 'languages=["en","zh"]', "--aside", "all", "--source", "CC3M")
    told = run("data", "clean", raw, clean, *options)
    assert "CC3M" in told and "clip score" in told and "the paper keeps 28% of Coyo" in told
    again = json.loads(run("data", "clean", raw, clean, *options, "--json"))
    assert again["total"]["read"] == 120 and again == json.loads((clean / "statistics.json").read_text())

    run("data", "inspect", clean, "--out", shown)
    page = shown.read_text()
    assert (
        page.count("<img src=") > 20
        and "tag soup" in page
        and "<script" not in page.replace("&lt;script", "")
    )

    kept = again["total"]["kept"]
    assert run("data", "read", "clean", clean, "--out", records).split() == [str(kept), "caption"]
    assert "CC3M" in run("data", "mix", records, "--out", mixed)
    assert len(mixed.read_text().splitlines()) == kept
    run("data", "inspect", mixed, "--out", shown, "--count", "3", "--queries", "4", "--row-length", "400")
    assert "packed into rows of 400" in shown.read_text()


def test_inspect_shows_ids_boxes_and_what_is_learned(run: Run, tmp_path: Path) -> None:
    pillow.new("RGB", (200, 100), "white").save(tmp_path / "1.png")
    picture = Image(str(tmp_path / "1.png"))
    records = [
        GroundedCaption(image=picture, caption=(Ref("a dog"), Box(100, 100, 500, 900), Text(" <b>runs</b>"))),
        Question(image=Image("nowhere.jpg"), question="Is it?", answer="yes"),
        OcrPage(image=picture, lines=(Quad(((1, 1), (900, 1), (900, 99), (1, 99)), label="TEXT"),)),
        PlainText(text="words only"),
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(to_json, records)))
    assert "page.html" in run(
        "data", "inspect", tmp_path / "r.jsonl", "--out", tmp_path / "page.html", "--queries", "4"
    )
    page = (tmp_path / "page.html").read_text()
    assert "<span class=yes" in page and "[4 x imgpad]" in page and "No picture at" in page
    assert "&lt;b&gt;runs" in page and "<b>runs" not in page, "text of the data is never markup of the page"


def test_calibrate_meets_the_target(raw: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    told = json.loads(
        run(
            "data",
            "calibrate",
            raw,
            "--target",
            "0.3",
            "--change",
            'languages=["en","zh"]',
            "--out",
            out,
            "--json",
        )
    )
    assert told["pairs"] == 120 and told["ceiling"] > 0.5
    assert told["choices"] and all(0.3 <= choice["survival"] <= 0.35 for choice in told["choices"])
    cleaned = json.loads(run("data", "clean", raw, tmp_path / "clean", "--thresholds", out, "--json"))
    assert cleaned["total"]["kept"] / cleaned["total"]["read"] == pytest.approx(0.3, abs=0.05)
    assert "no choice leaves that much" in run("data", "calibrate", raw, "--target", "0.99", status=1)


def test_plan(run: Run) -> None:
    told = json.loads(run("data", "plan", "2e9", "--cores", "500", "--rate", "5000", "--json"))
    assert told["shards"] == 200_000 and told["kept"] == 280_000_000
    assert told["core_hours"] == pytest.approx(111.1, abs=0.1)
    assert told["hours"] == pytest.approx(400 * 2 / 3600, abs=0.01)
    assert "wall time" in run("data", "plan", "1000000")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("data", "clean", "none", "out"), "there is no none"),
        (("data", "clean", ".", "out", "--preset", "laion"), "there is no preset 'laion'"),
        (("data", "read", "vqa", "x.json", "--out", "y"), "there is no reader 'vqa'"),
        (("data", "read", "gqa", "none.json", "--out", "y"), "no such file"),
        (("data", "inspect", "none"), "there is no none"),
        (("data", "inspect", "."), "holds no statistics.json"),
    ],
)
def test_bad_input_is_one_sentence(
    args: tuple[str, ...], complaint: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = run(*args, status=2)
    assert complaint in told and told.count("\n") == 1
