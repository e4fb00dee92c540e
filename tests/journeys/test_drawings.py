"""recipes/drawings from a hundred drawings that are kept here to a model that answers, at toy length."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from qwenvl.chat import Assistant
from qwenvl.checkpoint.folder import resolve
from qwenvl.cli import main
from qwenvl.data.datasets.sample import Sample
from qwenvl.data.drawings.collection import PERMISSIVE, Collection
from qwenvl.data.drawings.scenes import noun_of
from qwenvl.data.drawings.splits import is_held_out, nouns
from qwenvl.demo.asking import DRAWN, ask_drawings
from qwenvl.evaluation.naming import right
from qwenvl.options import PromptFormat
from qwenvl.runtime import Runtime
from qwenvl.train.alignment import SHARPNESS

HUNDRED = Path(__file__).parents[1] / "data/drawings/hundred"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HUNDRED, tmp_path / "drawings"))


def test_the_hundred_may_be_kept_and_are_owed_to_somebody(folder: Path) -> None:
    drawings = Collection(folder).drawings
    assert len(drawings) == 100 and {each.licence for each in drawings} <= PERMISSIVE - {
        "CC-BY-3.0",
        "CC-BY-4.0",
    }
    assert not any(is_held_out(each.source, each.key) for each in drawings)
    assert set(Counter(noun_of(each) for each in drawings).values()) == {4}, "25 nouns, each in four styles"
    owed = (folder / "ATTRIBUTION.md").read_text()
    assert all(f"| {source} | 25 |" in owed for source in {each.source for each in drawings})


def test_the_recipe_runs_whole_at_toy_length_and_its_model_answers(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ["train", "recipes/drawings", "--images", str(folder), "--out", str(run), "--scale", "1e-4"]
    small = ["--stage.documents", "4", "--stage.micro-documents", "4", "--device", "cpu"]
    assert main([*train, *small]) in (0, None)
    stages = sorted(path.parent.name for path in run.glob("*/log.jsonl"))
    assert stages == [
        "0a-language",
        "0b-names",
        "1-alignment",
        "2-pretraining",
        "3-multitask",
        "4-finetuning",
    ]
    for stage in stages:
        lines = [json.loads(line) for line in (run / stage / "log.jsonl").read_text().splitlines()]
        most = 12 if stage not in ("1-alignment", "2-pretraining") else 2 * SHARPNESS  # of cosines
        assert len(lines) == 2 and all(0 < line["loss"] < most for line in lines)
        assert all(line["images"] == (0 if stage == "0a-language" else line["images"]) for line in lines)
    assert json.loads((run / "0b-names/labels.json").read_text()), (
        "words that several of the sets have in common"
    )
    assert (run / "0b-names/namer.safetensors").exists(), "what it is judged by alone"
    model = run / "4-finetuning/model"
    image = tmp_path / "cat.png"
    next(each for each in Collection(folder).drawings if each.key == "cat").image().save(image)
    assert PromptFormat.read(model).chat_format == "chatml"
    assert main(["ask", str(model), str(image), "What is this?", "--max-new-tokens", "4"]) in (0, None)


def test_the_shipped_model_names_what_it_has_never_seen() -> None:
    folder = resolve("drawings")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 25_000_000
    card, owed = (folder / "MODEL_CARD.md").read_text(), (folder / "ATTRIBUTION.md").read_text()
    assert "nearest on HOG" in card and "blind" in card and "CC-BY-4.0" in card and "| noto |" in owed
    answered = ask_drawings(Assistant.load("drawings", Runtime.detect(device="cpu", dtype="float32")))
    known = {name: next(each for each in nouns() if name in each.names("en")) for name, _ in DRAWN}
    named = [
        right(answer.reply.plain, Sample(id=name, answers=known[name].names(language)))
        for answer, (name, language) in zip(answered, DRAWN, strict=True)
    ]
    assert sum(named) >= 2, "of four, two of them asked about in Chinese"
