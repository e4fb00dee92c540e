"""`qwenvl data ...` as a person types it."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image as pillow

import qwenvl.cli as cli
from qwenvl.data.conversations import read_conversations
from qwenvl.data.records import (
    Caption,
    GroundedCaption,
    OcrPage,
    PlainText,
    Question,
    Record,
    Referring,
    to_json,
)
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
    message = run("data", "clean", raw, clean, *options)
    assert "CC3M" in message and "clip score" in message and "the paper keeps 28% of Coyo" in message
    again = json.loads(run("data", "clean", raw, clean, *options, "--json"))
    assert again["total"]["read"] == 120 and again == json.loads((clean / "statistics.json").read_text())

    run("data", "inspect", clean, "--out", shown)
    page = shown.read_text()
    assert (
        page.count("<img alt=") > 20
        and "tag soup" in page
        and "<script" not in page.replace("&lt;script", "")
    )

    kept = again["total"]["kept"]
    assert run("data", "read", "clean", clean, "--out", records).split() == [str(kept), "caption"]
    assert "CC3M" in run("data", "mix", records, "--out", mixed)
    assert len(mixed.read_text().splitlines()) == kept
    run("data", "inspect", mixed, "--out", shown, "--count", "3", "--queries", "4", "--row-length", "400")
    assert "packed into rows of 400" in shown.read_text() and "too long for a row" not in shown.read_text()


def test_inspect_shows_ids_boxes_and_what_is_learned(run: Run, tmp_path: Path) -> None:
    pillow.new("RGB", (200, 100), "white").save(tmp_path / "1.png")
    image = Image(str(tmp_path / "1.png"))
    records: list[Record] = [
        GroundedCaption(image=image, caption=(Ref("a dog"), Box(100, 100, 500, 900), Text(" <b>runs</b>"))),
        Question(image=Image("nowhere.jpg"), question="Is it?", answer="yes"),
        OcrPage(image=image, lines=(Quad(((1, 1), (900, 1), (900, 99), (1, 99)), label="TEXT"),)),
        PlainText(text="words only"),
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(to_json, records)))
    assert "page.html" in run(
        "data", "inspect", tmp_path / "r.jsonl", "--out", tmp_path / "page.html", "--queries", "4"
    )
    page = (tmp_path / "page.html").read_text()
    assert "too long for a row" not in page
    short = ("--row-length", "60", "--queries", "4")
    run("data", "inspect", tmp_path / "r.jsonl", "--out", tmp_path / "short.html", *short)
    assert "too long for a row, never cut: 0, 2" in (tmp_path / "short.html").read_text()
    assert f'<span class="yes">T<small>{ord("T")}</small>' in page
    assert "4 × imgpad<small>" in page and "No image at" in page
    assert "<b>" not in page, "text of the data is never markup of the page"


def test_calibrate_meets_the_target(raw: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    message = json.loads(
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
    assert message["pairs"] == 120 and message["ceiling"] > 0.5
    assert message["choices"] and all(0.3 <= choice["survival"] <= 0.35 for choice in message["choices"])
    cleaned = json.loads(run("data", "clean", raw, tmp_path / "clean", "--thresholds", out, "--json"))
    assert cleaned["total"]["kept"] / cleaned["total"]["read"] == pytest.approx(0.3, abs=0.05)
    assert "no choice leaves that much" in run("data", "calibrate", raw, "--target", "0.99", status=1)


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """Captions and phrases of four images."""
    box = Box(100, 100, 500, 900)
    lines = []
    for k in range(4):
        image = Image(f"{k}.jpg")
        lines += [to_json(Caption(image=image, text=f"a dog number {k}")),
                  to_json(Referring(image=image, phrase="the tail", boxes=(box,)))]  # fmt: skip
    (tmp_path / "known.jsonl").write_text("\n".join(lines))
    return tmp_path / "known.jsonl"


def test_annotations_and_mixtures_name_images_as_their_readers_look_for_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative to the file that names them; `data read --out sub/x.jsonl` named them relative to where it ran."""
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "sub"):
        (tmp_path / folder).mkdir()
    pillow.new("RGB", (64, 64)).save("photos/a.png")
    listed = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "red"}]}
    Path("coco.json").write_text(json.dumps(listed))
    read = ("data", "read", "coco-caption", "coco.json", "--images", "photos", "--out")
    run(*read, "x.jsonl")
    assert json.loads(Path("x.jsonl").read_text())["image"] == "photos/a.png"
    assert "outside sub: whoever reads x.jsonl must name its folder (--images)" in run(*read, "sub/x.jsonl")
    for name, options in (("x.jsonl", ()), ("sub/x.jsonl", ("--images", tmp_path))):
        assert "1 of 1 samples are fine" in run("data", "check", name, *options)
        mix = ("data", "mix", name, *options, "--table", "pretraining", "--out", "mixed.jsonl")
        assert "no image was opened: `qwenvl data check mixed.jsonl` opens each" in run(*mix)
        assert "1 of 1 samples are fine" in run("data", "check", "mixed.jsonl")
    Path("photos/a.png").unlink()
    Path("mixed.jsonl").unlink()
    mixed = run("data", "mix", "x.jsonl", "--table", "pretraining", "--out", "mixed.jsonl", status=2)
    assert "none of the 1 samples drawn has its image" in mixed and not Path("mixed.jsonl").exists()


def test_joined_dialogues_are_what_finetuning_reads(known: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "where.jsonl"
    message = json.loads(run("data", "dialogues", "localisation", known, "--out", out, "--json"))
    assert message == {"images": 4, "dialogues": 4, "questions": 4}
    first, *_ = read_conversations(out)
    assert first.turns[0].role == "user" and Image(tmp_path / "0.jpg") in first.turns[0].content
    assert "2  dialogues" in run("data", "dialogues", "several-images", known, "--out", out)
    first, second = read_conversations(out)
    assert len(first.images) == len(second.images) == 2
    assert "Picture 1: <img>" in out.read_text() and "Picture 2: <img>" in out.read_text()
    run("data", "dialogues", "localisation", known, "--out", out, "--format", "records")
    for number in range(4):
        pillow.new("RGB", (64, 64)).save(tmp_path / f"{number}.jpg")
    run("data", "inspect", out, "--out", tmp_path / "page.html")
    assert "dialogue" in (tmp_path / "page.html").read_text()


def test_self_instruction_dry_then_real_then_remembered(known: Path, run: Run, tmp_path: Path) -> None:
    args = ("data", "dialogues", "self-instruction", known, "--model", "any")
    shown = run(*args, "--dry-run", "--questions", "2").splitlines()
    assert shown[-1] == "4 requests, none sent" and len(shown) == 5
    body = json.loads(shown[0])
    assert "Write 2 questions" in body["messages"][0]["content"] and body["model"] == "any"
    assert body["messages"][1]["content"] == "caption: a dog number 0\nthing: the tail at 100,100,500,900"
    asked: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(int(self.headers["Content-Length"]))
            self.rfile.read(asked[-1])
            self.send_response(200)
            self.end_headers()
            written = "I cannot." if len(asked) == 2 else '[{"question": "What?", "answer": "A dog."}]'
            self.wfile.write(json.dumps({"choices": [{"message": {"content": written}}]}).encode())

        def log_message(self, *args: object) -> None:
            pass

    out = tmp_path / "chats.jsonl"
    with HTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        there = (
            "--server",
            f"http://127.0.0.1:{web.server_port}/v1",
            "--out",
            out,
            "--at-once",
            "1",
            "--json",
        )
        counted, fault = run(*args, *there).splitlines()
        message = json.loads(counted)
        assert message == {"images": 4, "dialogues": 3, "questions": 3, "skipped: reply not in form": 1}
        assert "image 1, reply not in form" in fault
        again = json.loads(run(*args, *there).splitlines()[0])
        assert again == message and len(asked) == 4, "replies are remembered"
        web.shutdown()
    gone = run(*args, "--server", "http://127.0.0.1:9/v1", "--out", tmp_path / "none.jsonl", status=2)
    assert "image 0, no reply: the server at http://127.0.0.1:9/v1 did not answer" in gone
    assert "4 skipped: no reply), and" in gone and not (tmp_path / "none.jsonl").exists()
    assert len(read_conversations(out)) == 3


def test_read_counts_and_lists_what_it_skips(run: Run, tmp_path: Path) -> None:
    pillow.new("RGB", (1000, 2000)).save(tmp_path / "000.jpg")
    (tmp_path / "000.csv").write_text(
        "72,25,326,25,326,64,72,64,TAN WOON YANN\n1,2,3\n1,2,9,2,9,9,1,9,<box>(1,2)\n"
    )
    pillow.new("RGB", (100, 100)).save(tmp_path / "001.jpg")
    (tmp_path / "001.csv").write_text("1,2,90,2,90,90,1,90,FINE\n")
    out = tmp_path / "pages.jsonl"
    message = run("data", "read", "icdar", tmp_path, "--images", tmp_path, "--out", out)
    assert "2  ocr" in message and "1  skipped: line without eight numbers and a text" in message
    (line,) = (tmp_path / "pages.skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "000:1"
    assert (
        "packed into rows"
        in (run("data", "inspect", out, "--out", tmp_path / "p.html"), (tmp_path / "p.html").read_text())[1]
    )


def test_plan(run: Run) -> None:
    message = json.loads(run("data", "plan", "2e9", "--cores", "500", "--rate", "5000", "--json"))
    assert message["shards"] == 200_000 and message["kept"] == 280_000_000
    assert message["core_hours"] == pytest.approx(111.1, abs=0.1)
    assert message["hours"] == pytest.approx(400 * 2 / 3600, abs=0.01)
    assert "wall time" in run("data", "plan", "1000000")
    slow = json.loads(run("data", "plan", "2e9", "--cores", "500", "--storage-mb-s", "10000", "--json"))
    assert slow["hours"] == pytest.approx(2e9 * 30.35e3 * 1.14 / 10e9 / 3600, abs=0.01)


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("data", "clean", "none", "out"), "there is no none"),
        (("data", "clean", ".", "out", "--preset", "laion"), "there is no preset 'laion'"),
        (("data", "read", "vqa", "x.json", "--out", "y"), "there is no reader 'vqa'"),
        (("data", "read", "gqa", "none.json", "--out", "y"), "no such file"),
        (("data", "dialogues", "localisation", "--out", "y"), "no records named"),
        (
            ("data", "dialogues", "localisation", "x", "--dry-run"),
            "give --out for the dialogues, or --dry-run",
        ),
        (("data", "dialogues", "self-instruction", "x.jsonl", "--out", "y"), "no --model named"),
        (("data", "dialogues", "several-images", "x.jsonl", "--out", "y", "--together", "1"), "2 at least"),
        (
            ("data", "dialogues", "self-instruction", "x.jsonl", "--out", "y", "--model", "m"),
            "no --server named",
        ),
        (("data", "inspect", "none"), "there is no none"),
        (("data", "inspect", "."), ". holds no sample"),
    ],
)
def test_bad_input_is_one_sentence(
    args: tuple[str, ...], complaint: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").touch()
    message = run(*args, status=2)
    assert complaint in message and message.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{broken", "line 3, broken JSON"),
        (b"\xff", "line 3, broken UTF-8"),
        (b'{"kind": ["text"]}', "line 3, broken record: a line of kind"),
        (b"[" * 50_000, "line 3, broken JSON: it nests more than"),
    ],
)
def test_f86_dialogues_name_the_line_that_is_no_record(
    line: bytes, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is counted, and the others are used."""
    good = b'{"kind": "referring", "image": "a.jpg", "phrase": "a\xe2\x80\xa8b", "boxes": [[1, 2, 3, 4]]}\n'
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + line + b"\n" + good)
    words = ["data", "dialogues", "localisation", tmp_path / "a.jsonl", "--out", tmp_path / "out.json"]
    assert cli.main([*map(str, words), "--json"]) == 0
    shown = capsys.readouterr()
    assert complaint in shown.err and shown.err.count("\n") == 1
    counts = json.loads(shown.out)
    assert counts["dialogues"] == 1 and sum(n for kind, n in counts.items() if "unusable" in kind) == 1


def test_f5_records_that_give_no_dialogue_leave_an_earlier_file_alone(run: Run, tmp_path: Path) -> None:
    """One image is not several: one sentence, status 2, nothing written."""
    question = Question(image=Image("a.jpg"), question="Is it?", answer="yes")
    (tmp_path / "r.jsonl").write_text(to_json(question) + "\n")
    out = tmp_path / "out.jsonl"
    out.write_text("earlier\n")
    message = run("data", "dialogues", "several-images", tmp_path / "r.jsonl", "--out", out, status=2)
    assert "no dialogue comes out of these records (1 images)" in message and message.count("\n") == 1
    assert out.read_text() == "earlier\n" and not list(tmp_path.glob("*unfinished*"))


def test_f74_values_that_contradict_or_mean_nothing_are_refused(run: Run, raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, said in (
        (
            ("clean", raw, out, "--change", "clip_score=0.1", "clip_score=0.2"),
            "'clip_score=0.2' names a threshold again",
        ),
        (
            ("clean", raw, out, "--change", "clip_score=0.1", "--change", "clip_score=0.1"),
            "names a threshold again",
        ),
        (("clean", raw, out, "--change", "clip_score"), "'clip_score' has no value"),
        (("mix", raw, "--out", out, "--total", 0), "--total is 0"),
        (("mix", raw, "--out", out, "--total", -1), "--total is -1"),
        (("mix", raw, "--out", out, "--seed", -1), "--seed -1"),
        (("check", raw, "--sequence-length", 0), "--sequence-length 0"),
        (("plan", "inf"), "inf pairs on 0 GPUs"),
        (("plan", "nan"), "nan pairs on 0 GPUs"),
        (("plan", "1e9", "--gpus", -1), "1e+09 pairs on -1 GPUs"),
        (("plan", "1e9", "--storage-mb-s", 0), "--storage-mb-s is 0"),
        (("plan", "1e9", "--rate", "nan"), "--rate is nan"),
    ):
        assert said in run("data", *words, status=2)
    assert not out.exists()


def test_a_mixture_in_the_folder_of_its_sources_is_none_of_them(run: Run, tmp_path: Path) -> None:
    pillow.new("RGB", (64, 48)).save(tmp_path / "a.jpg")
    asked = [Question(image=Image("a.jpg"), question=f"{k}?", answer="yes", source="vqav2") for k in range(3)]
    (tmp_path / "vqa.jsonl").write_text("".join(to_json(each) + "\n" for each in asked))
    mixed = tmp_path / "mix.jsonl"
    first = run("data", "mix", tmp_path, "--out", mixed), mixed.read_bytes()
    assert (run("data", "mix", tmp_path, "--out", mixed), mixed.read_bytes()) == first
    (tmp_path / "chat.jsonl").write_text(json.dumps({"query": "a", "response": "b"}))
    said = run("data", "mix", tmp_path / "chat.jsonl", "--out", tmp_path / "no.jsonl", status=2)
    assert (
        "none of the samples belongs to a row of the table `multitask`: found 1 x dialogue, which goes by"
        in said
    )


def test_cleaning_into_a_folder_of_its_source_by_another_spelling_resumes(
    run: Run, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").mkdir()
    shard = next(raw.glob("*.tar"))
    (tmp_path / "raw" / shard.name).write_bytes(shard.read_bytes())
    monkeypatch.chdir(tmp_path)
    for source, out in (
        ("raw", "raw/clean"),
        (tmp_path / "raw", "raw/clean"),
        ("raw", tmp_path / "raw" / "clean"),
    ):
        run("data", "clean", source, out, "--change", "clip_score=null")
