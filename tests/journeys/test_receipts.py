"""Receipts to a model that was asked about them, by the command that anyone can run on real ones."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import qwenvl
from qwenvl.data.conversations import read_conversations
from qwenvl.markup import Quad
from qwenvl.runtime import Runtime

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "finetune_receipts.py"


@pytest.fixture
def receipts(tmp_path: Path) -> Path:
    """Three drawn receipts in the form of the ICDAR 2019 SROIE set."""
    folder = tmp_path / "receipts"
    folder.mkdir()
    for number, (company, total) in enumerate(
        [("TEA, CAKES & CO", "9.00"), ("BOOKS", "12.50"), ("SHOES", "80.10")]
    ):
        image = Image.new("L", (200, 320), 245)
        pen = ImageDraw.Draw(image)
        lines = [company, "25/12/2018", f"TOTAL {total}"]
        for row, text in enumerate(lines):
            pen.text((20, 20 + 90 * row), text, fill=20)
        image.save(folder / f"{number:03}.jpg")
        facts = {"company": company, "date": "25/12/2018", "total": total}
        (folder / f"{number:03}.json").write_text(json.dumps(facts))
        corners = [
            (20, 20 + 90 * row, 120, 20 + 90 * row, 120, 32 + 90 * row, 20, 32 + 90 * row) for row in range(3)
        ]
        rows = [",".join(map(str, place)) + "," + text for place, text in zip(corners, lines, strict=True)]
        (folder / f"{number:03}.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_receipts_are_learned_merged_verified_and_asked(
    receipts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("peft")
    words = [
        str(receipts),
        "--out",
        str(tmp_path / "out"),
        "--held-out",
        "1",
        "--epochs",
        "4",
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    message = capsys.readouterr()
    assert "2 of 2 samples are fine" in message.out
    assert "merged: logits differ by at most" in message.err and "verified:" in message.err
    assert "learned   000.jpg  total '9.00', answered" in message.out and "held out  002.jpg" in message.out
    facts = json.loads(message.out.splitlines()[-1])
    assert facts["updates"] == 2 and facts["loss"][1] < facts["loss"][0]

    first, _ = read_conversations(tmp_path / "out" / "receipts.json", tmp_path / "receipts")
    quads = [part for turn in first.turns for part in turn.content if isinstance(part, Quad)]
    assert quads[0].points[0] == (100, 62) and quads[1].points[2] == (600, 381), "pixels became thousandths"
    model = tmp_path / "out" / "run" / "model"
    reply = qwenvl.Assistant.load(model, Runtime.detect(device="cpu")).ask(
        receipts / "000.jpg", "What?", max_new_tokens=2
    )
    assert reply.tokens and (tmp_path / "out" / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert list((tmp_path / "out" / "run" / "tensorboard").glob("events.*"))
    assert (tmp_path / "out" / "run" / "predictions" / "step-000002.png").exists()


def test_a_folder_without_receipts_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path)])
    with pytest.raises(SystemExit, match="holds 0 receipts; expected more than the 3 held out"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
