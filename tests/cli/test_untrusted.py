"""What strangers send ends in one sentence, by every command: nothing hangs, nothing is a traceback."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from qwenvl import cli, terminal

DEEP = "[" * 50_000 + "]" * 50_000
CLEAR = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e"

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder; what it prints on both streams. It never raises and never hangs."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object, status: int | None = None) -> str:
        capsys.readouterr()
        code = cli.main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert status is None or code == status, out + err
        assert "Traceback" not in out + err
        return out + err

    return call


DEEP_COMMANDS = {
    "mix": ("data", "mix", "deep.jsonl", "--out", "out.jsonl", "--total", "2"),
    "inspect": ("data", "inspect", "deep.jsonl", "--tokenizer", "tiny"),
    "check": ("data", "check", "deep.jsonl"),
    "check json": ("data", "check", "deep.json"),
    "finetune": ("finetune", "tiny", "--data", "deep.jsonl", "--out", "tuned"),
    "read coco": ("data", "read", "coco", "deep.json", "--out", "out.jsonl"),
    "read gqa": ("data", "read", "gqa", "deep.json", "--out", "out.jsonl"),
    "read grit": ("data", "read", "grit-phrases", "deep.jsonl", "--out", "out.jsonl"),
    "read labelme": ("data", "read", "labelme", "deep.json", "--out", "out.jsonl"),
    "read vqav2": ("data", "read", "vqav2", "deep.json", "deep.json", "--out", "out.jsonl"),
    "clean thresholds": ("data", "clean", "good.jsonl", "out", "--thresholds", "deep.json"),
    "clean": ("data", "clean", "deep.jsonl", "out"),
    "clean benchmarks": ("data", "clean", "good.jsonl", "out", "--benchmarks", "deep.json"),
    "calibrate": ("data", "calibrate", "deep.jsonl"),
    "dialogues": ("data", "dialogues", "deep.jsonl", "--out", "out.jsonl"),
    "score": ("eval", "score", "vqav2", "--predictions", "deep.json", "--data", "deep.json"),
    "report": ("eval", "report", "scores"),
    "ask": ("ask", "model", "What?"),
    "convert": ("convert", "model", "new"),
    "recipe": ("train", "recipe", "--out", "run"),
    "stage": ("train", "recipe/1-a.toml", "--init", "tiny", "--out", "run"),
    "parity": ("parity", "golden"),
}


@pytest.mark.parametrize("name", DEEP_COMMANDS)
def test_f86_deep_json_and_toml_end_in_a_sentence(name: str, run: Run, tmp_path: Path) -> None:
    for file in ("deep.json", "deep.jsonl", "model/config.json", "scores/score.json", "golden/cases.json"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(DEEP + "\n")
    (tmp_path / "recipe").mkdir()
    for file in ("recipe.toml", "1-a.toml"):
        (tmp_path / "recipe" / file).write_text(f"name = {DEEP}\n")
    (tmp_path / "good.jsonl").write_text(
        json.dumps({"text": "a sentence about a red bus", "url": "http://a/b"}) + "\n"
    )
    printed = run(*DEEP_COMMANDS[name])
    assert printed.strip() and len(printed) < 5_000, printed[:2000]
    assert "recursion" not in printed.lower()


# === Recipes ===

STAGE = """
name = {name}
trains = ["vision", "adapter", "llm"]
image_size = 112
sequence_length = 64
documents = 2
micro_documents = 1
packing = "isolated"
[optim]
peak_lr = 1e-4
final_lr = 1e-5
warmup_steps = 1
steps = 2
"""


@pytest.mark.parametrize("name", ["../..", "/tmp/evil", "a/b", "..", "a\\\\b", "", ".hidden", "x\\u001b[2J"])
def test_f82_f92_a_stage_name_is_one_component_of_a_path(name: str, run: Run, tmp_path: Path) -> None:
    """`../..` wrote a model two folders up, an absolute name deleted a folder called `state` there."""
    (tmp_path / "stage.toml").write_text(STAGE.format(name=f'"{name}"'))
    (tmp_path / "state").mkdir()
    assert "The stage name " in run("train", "stage.toml", "--init", "tiny", "--out", "deep/run", status=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage.toml", "state"]


@pytest.mark.parametrize(
    "preset", ["dataclass", "replace", "__name__", "ModelConfig", "Mapping", "small", "", "7"]
)
def test_f88_a_preset_is_looked_up_in_a_table(preset: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "recipe.toml").write_text(f'preset = "{preset}"\nmerges = 40\n')
    (tmp_path / "recipe" / "1-a.toml").write_text(STAGE.format(name='"1-a"'))
    assert f"preset {'is ' if preset != 'small' else ''}'{preset}'" in run(
        "train", "recipe", "--out", "run", status=2
    )


# === Text that reaches the terminal ===


ODD = f"evil{CLEAR}"


@pytest.mark.parametrize(
    "command",
    ["clean", "clean json", "mix", "mix json", "check", "check json", "read", "score", "ask", "convert", "inspect",
     "objective", "parity", "report", "unknown option", "unknown choice", "dialogues"],
)  # fmt: skip
def test_f90_escape_codes_of_strangers_are_shown_as_escapes(command: str, run: Run, tmp_path: Path) -> None:
    """Captions, ids, sources, keys of JSON, paths and names of models."""
    odd = ODD
    pair = {"text": f"{odd} a red bus", "key": odd, "source": odd, "image": f"{odd}.jpg", odd: odd}
    record = {"kind": odd, "source": odd, "image": f"{odd}.jpg", "caption": odd, odd: 1}
    dialogue = {"id": odd, "conversations": [{"from": odd, "value": odd}], odd: odd}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair) + "\n")
    (tmp_path / "records.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "dialogues.json").write_text(json.dumps([dialogue]))
    (tmp_path / "coco.json").write_text(
        json.dumps({"images": [{"id": odd, "file_name": odd}], "annotations": [pair]})
    )
    arguments = {
        "clean": ("data", "clean", "pairs.jsonl", "out"),
        "mix": ("data", "mix", "records.jsonl", "--out", "out.jsonl", "--total", "2"),
        "check": ("data", "check", "dialogues.json"),
        "read": ("data", "read", "coco", "coco.json", "--out", "out.jsonl"),
        "score": ("eval", "score", "vqav2", "--predictions", "dialogues.json", "--data", f"{odd}.json"),
        "ask": ("ask", odd, "What?"),
        "convert": ("convert", odd, "new"),
        "inspect": ("data", "inspect", "dialogues.json", "--tokenizer", "tiny", "--out", f"{odd}.html"),
        "objective": ("plan", "stage.toml"),
        "parity": ("parity", "folder"),
        "report": ("eval", "report", f"{odd}/run"),
        "unknown option": ("ask", "tiny", f"--{odd}", "What?"),
        "unknown choice": ("data", "dialogues", f"{odd}.jsonl"),
        "dialogues": ("data", "dialogues", "self-instruction", "good.jsonl", "--model", odd, "--dry-run"),
    }
    stage = STAGE.format(name='"a"').replace("[optim]", f"objective = {json.dumps(odd)}\n[optim]")
    (tmp_path / "stage.toml").write_text(stage)
    (tmp_path / "folder" / odd).mkdir(parents=True)
    (tmp_path / "folder" / odd / "case.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    good = {"kind": "caption", "image": "a.png", "text": odd, "source": odd}
    (tmp_path / "good.jsonl").write_text(json.dumps(good) + "\n")
    printed = run(
        *arguments[command.removesuffix(" json")], *(["--json"] if command.endswith("json") else [])
    )
    assert printed.strip() and printed == terminal.printable(printed, lines=True)


def test_a_name_that_is_no_text_is_shown(tmp_path: Path) -> None:
    """Names of files are bytes: one that is no UTF-8, in a locale of ASCII."""
    name = os.fsdecode(bytes(tmp_path) + b"/\xff.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", name)
    line = {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}], "漢": 1}
    (tmp_path / "d.json").write_text(json.dumps([line]))
    command = [
        sys.executable,
        "-m",
        "qwenvl",
        "data",
        "inspect",
        str(tmp_path / "d.json"),
        "--tokenizer",
        "tiny",
    ]
    done = subprocess.run(
        [*command, "--out", os.fsencode(name + ".html")],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0 and rb"\udcff.png.html" in done.stdout


@pytest.mark.parametrize("text", ["", "name = 'a'", "[optim]\nsteps = 1"])
@pytest.mark.parametrize("command", [("plan",), ("train", "--init", "tiny", "--out", "run")])
def test_f86_a_stage_without_its_keys_ends_in_a_sentence(
    command: tuple, text: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "stage.toml").write_text(text)
    assert "lacks the key" in run(*command, "stage.toml", status=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "line", ["[1, 2]", DEEP, '{"image": "/etc/passwd", "caption": "words"}', '{"kind": []}']
)
def test_f5_inspect_fails_where_nothing_can_be_used_and_its_page_says_why(
    line: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    said = run("data", "inspect", "bad.jsonl", "--out", "page.html", status=2)
    assert "none of the 1 samples shown can be used; page.html says why" in said
    assert "cannot be used:" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("option", ["--queries", "--row-length", "--count"])
def test_f14_inspect_takes_no_number_below_one(option: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"kind": "text", "text": "words"}\n')
    assert f"{option} 0; expected at least 1" in run("data", "inspect", "a.jsonl", option, "0", status=2)


def test_f14_inspect_counts_the_queries_of_its_checkpoint(run: Run, tmp_path: Path) -> None:
    """The shipped model has 36 visual tokens an image, the paper 256; `--queries` wins over both."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "a.png", "caption": "a red square"}) + "\n")
    for options, queries in (
        ((), 256),
        (("--tokenizer", "tiny"), 36),
        (("--tokenizer", "tiny", "--queries", 4), 4),
    ):
        run("data", "inspect", "a.jsonl", "--out", "page.html", *options, status=0)
        assert f"{queries} × imgpad" in (tmp_path / "page.html").read_text()


DAMAGED: dict[str, tuple[tuple[str, ...], str]] = {
    "train": (("train", "stage.toml", "--init", "MODEL", "--out", "run"), "none of "),
    "finetune": (("finetune", "MODEL", "--data", "bad/a.jsonl", "--out", "run", "--device", "cpu"), "repair"),
    "eval": (
        ("eval", "run", "MODEL", "bad/a.jsonl", "--out", "run"),
        "questions of own-caption could be asked",
    ),
    "clean": (("data", "clean", "bad", "run", "--preset", "coyo"), "nothing was kept of 3 samples"),
    "inspect": (("data", "inspect", "bad/a.jsonl", "--out", "page.html"), "none of the 3 samples shown"),
    "check": (("data", "check", "bad/a.jsonl"), "0 of 3 samples are fine"),
    "ask": (("ask", "MODEL", "bad/0.jpg", "What is it?"), "damaged"),
}
MODEL = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
TRIAL = """
name = "trial"
image_size = 28
sequence_length = 64
data = [{ paths = ["bad/a.jsonl"] }]
documents = 4
micro_documents = 2
bfloat16 = false
[optim]
peak_lr = 1e-4
final_lr = 1e-4
warmup_steps = 1
steps = 2
"""


@pytest.mark.parametrize("command", DAMAGED)
def test_f5_a_run_whose_images_are_all_damaged_fails_with_a_sentence(
    command: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image at all" * 20)
    lines = [json.dumps({"image": f"{number}.jpg", "caption": "a fine red dog runs"}) for number in range(3)]
    (tmp_path / "bad" / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "stage.toml").write_text(TRIAL)
    words, sentence = DAMAGED[command]
    status = 1 if command in ("finetune", "check") else 2  # 1: what was asked about is not as it should be
    said = run(*(str(MODEL) if word == "MODEL" else word for word in words), status=status)
    assert sentence in said
    assert not list(tmp_path.glob("run*/**/model*"))


LINES = (
    b"[1, 2]", b'"text"', b"7", b"null", b"{}", b"{", b"[" * 5000 + b"]" * 5000,
    b'{"image": "/etc/passwd", "caption": "words"}', b'{"image": "../../etc/passwd", "caption": "words"}',
    b'{"image": "file:///etc/passwd", "caption": "words"}', b'{"image": "pipe", "caption": "words"}',
    b'{"image": {"bytes": 5}, "caption": "words"}', b'{"image": "a.png\\u0000", "caption": "words"}',
    b'{"image": "\\u001b[2J.png", "caption": "words"}', b'{"image": "a.png", "caption": NaN}',
    b'{"image": "a.png", "question": "How many?", "answer": NaN}', b'{"question": Infinity, "answer": "2"}',
    b'{"image": "a.png", "caption": "words", "width": 1e999}', b'{"image": "a.png", "caption": 1e30}',
    b'{"image": "a.png", "caption": "\\ud800 words"}', b'{"image": "a.png", "caption": "a \xff\xfe word"}',
    b'{"image": "a.png", "image": "b.png", "caption": "words"}', b'{"kind": []}', b'{"messages": [null]}',
    b'{"format": [], "record": 3}', b'{"record": {"kind": "referring", "phrase": "it", "boxes": [[0, 0, "9"]]}}',
    b'{"conversations": 5}', b'{"conversations": [{"from": "user"}]}', b'{"prompt": [], "completion": []}',
    b'{"query": "<img>/etc/passwd</img>?", "response": "root"}', b'{"query": {"a": 1}, "response": ["x"]}',
)  # fmt: skip
SWEEP = {
    "check": (("data", "check", "x.jsonl"), 1, f"0 of {len(LINES)} samples are fine"),
    "mix": (("data", "mix", "x.jsonl", "--out", "out.jsonl"), 2, "none of the "),
    "inspect": (("data", "inspect", "x.jsonl", "--out", "p.html", "--count", "99"), 2, f"none of the {len(LINES)}"),
    "clean": (("data", "clean", "x.jsonl", "out"), 2, f"nothing was kept of {len(LINES)} samples"),
    "finetune": (("finetune", str(MODEL), "--data", "x.jsonl", "--out", "out", "--device", "cpu"), 1, "needs repair"),
    "eval": (("eval", "run", str(MODEL), "x.jsonl", "--out", "out"), 2, "x.jsonl, line 1: broken JSON"),
}  # fmt: skip


@pytest.mark.parametrize("command", SWEEP)
def test_lines_of_which_none_is_a_sample_end_in_a_sentence(command: str, run: Run, tmp_path: Path) -> None:
    """Every line by itself: it opens nothing, costs no other, and is counted."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(LINES) + b"\n")
    words, status, sentence = SWEEP[command]
    said = run(*words, status=status)
    assert sentence in said and said == terminal.printable(said, lines=True)
    if command == "check":
        assert sum(int(count) for count in re.findall(r"^[\w -]+: (\d+)$", said, re.M)) == len(LINES)
