"""The order of samples belongs to the stage: ranks share it, a run that goes on with other ranks continues it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from qwenvl.config import from_dict
from qwenvl.data.packing import Rows
from qwenvl.data.tars import write_tar
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import distributed
from qwenvl.train.data import batches, documents, left_out
from qwenvl.train.loop import micro_batches
from qwenvl.train.stages import StageConfig, read_changes

from .conftest import stage

BYTES = Tokenizer({bytes([value]): value for value in range(256)})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts in a tar, two of them broken, one too long, and in JSON lines."""
    root = tmp_path_factory.mktemp("texts")
    with write_tar(root / "a.tar") as tar:
        for number in range(40):
            text = "long " * 99 if number == 7 else f"a text of number {number}" + " and more" * (number % 5)
            record = json.dumps({"kind": "text", "text": text}).encode()
            tar.add(f"{number:03}.json", record[:9] if number in (3, 21) else record)
    lines = [json.dumps({"kind": "text", "text": f"a line of number {k}"}) for k in range(9)]
    (root / "b.jsonl").write_text("\n".join(lines))
    return root


def texts(data: Path, **changes: object) -> StageConfig:
    rows = [{"paths": [str(data / "a.tar")], "weight": 3.0}, {"paths": [str(data / "b.jsonl")], "weight": 1}]
    sizes = {"sequence_length": 128, "documents": 16, "micro_documents": 2, "window": 16}
    return stage(mixture={}, **sizes).changed({"data": rows, **changes})


def updates(
    message: StageConfig, steps: Sequence[int], ranks: int, monkeypatch: pytest.MonkeyPatch
) -> list[list[bytes]]:
    """What all ranks read of each update, every rank with a reader of its own, as one set of micro-batches."""
    read: list[list[bytes]] = [[] for _ in steps]
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        reader = batches(message, BYTES, 4)
        for place, step in enumerate(steps):
            read[place] += [_bytes(reader(numbers)) for numbers in micro_batches(message, step, rank, ranks)]
    return [sorted(each) for each in read]


def _bytes(rows: Rows) -> bytes:
    return b"".join(np.ascontiguousarray(each).tobytes() for each in (rows.ids, rows.segments, rows.labels))


@pytest.mark.parametrize("window", [0, 8, 32])
def test_one_two_and_four_ranks_read_the_same_updates(
    data: Path, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the window: less than an update, several updates, or each micro-batch by itself."""
    message = texts(data, window=window)
    alone = updates(message, range(3), 1, monkeypatch)
    assert len(set(alone[0])) > 1 and alone[0] != alone[1]
    for ranks in (2, 4):
        assert updates(message, range(3), ranks, monkeypatch) == alone


def test_a_run_that_goes_on_with_other_ranks_and_workers_continues_the_order(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks read updates 0 and 1; four, one, and one with workers begin at update 2, having read nothing before."""
    message = texts(data)
    whole = updates(message, range(4), 2, monkeypatch)
    for ranks, workers in ((4, 0), (1, 0), (1, 2)):
        other = message.changed({"workers": workers})
        assert updates(other, (2, 3), ranks, monkeypatch) == whole[2:]


def test_what_is_left_out_is_noted_counted_and_named(data: Path, tmp_path: Path) -> None:
    message = texts(data)
    reader = batches(message, BYTES, 4, tmp_path)
    for step in range(5):  # 80 documents, 60 of them from the 40 samples of the tar
        for numbers in micro_batches(message, step):
            reader(numbers)
    with (tmp_path / "left_out-000.jsonl").open("a") as file:
        file.write('{"cut by a ki')
    found = left_out([tmp_path])
    assert {kind: count for kind, (count, _) in found.items()} == {"broken JSON": 2, "over-long": 1}
    assert found["over-long"][1] == "a.tar, 007: 496 tokens, 128 fit"


def test_a_run_does_not_go_on_with_other_data(data: Path, tmp_path: Path) -> None:
    batches(texts(data), BYTES, 4, tmp_path)
    batches(texts(data), BYTES, 4, tmp_path)
    before = (data / "b.jsonl").read_text()
    (data / "b.jsonl").write_text(before + '\n{"kind": "text", "text": "one more"}')
    try:
        with pytest.raises(
            ValueError, match=r"1 shards differ from those the run began with, such as .*b.jsonl"
        ):
            batches(texts(data), BYTES, 4, tmp_path)
    finally:
        (data / "b.jsonl").write_text(before)


def test_toys_and_data_are_mixed_by_their_weights(data: Path) -> None:
    message = texts(data).changed({"mixture": {"text": 4.0}, "sequence_length": 384})
    rows = [batches(message, BYTES, 4)(numbers) for numbers in micro_batches(message, 0)]
    read = BYTES.decode(int(token) for each in rows for token in each.ids.flatten() if token < 256)
    assert "a text of number" in read and ("circle" in read or "square" in read or "star" in read)


def test_a_stage_opens_with_other_documents() -> None:
    """The first updates, and no document more: the others are those of a stage without an opening."""
    plain = stage(mixture={"text": 0.5, "described": 0.5}, documents=8)
    opened = plain.changed({"curriculum": {"lookups": 1.0}, "curriculum_steps": 3})
    sources = [documents(message, BYTES, 4).source_of for message in (plain, opened)]  # type: ignore[union-attr]
    assert {sources[1](number) for number in range(3 * 8)} == {"lookups"}
    assert [sources[1](number) for number in range(24, 80)] == [
        sources[0](number) for number in range(24, 80)
    ]
    assert {sources[0](number) for number in range(24, 80)} == {"text", "described"}
    words = [token for token in documents(opened, BYTES, 4)(0).made.ids if token < 256]
    assert "?" in BYTES.decode(words) and "(" not in BYTES.decode(words), "questions, and no place"
    assert opened.scaled(10 / 3).curriculum_steps == 10 and opened.scaled(0.01).curriculum_steps == 1
    assert plain.scaled(10).curriculum_steps == 0
    with pytest.raises(ValueError, match=r"has curriculum_steps = 2 and curriculum = {}; give both"):
        stage(curriculum_steps=2)
    with pytest.raises(
        ValueError, match=r"has curriculum_steps = 0 and curriculum = {'lookups': 1.0}; give both"
    ):
        stage(curriculum={"lookups": 1.0})
    with pytest.raises(ValueError, match=r"opens with lookups and has no mixture to go on with"):
        batches(opened.changed({"mixture": {}, "data": [{"paths": ["a.tar"]}]}), BYTES, 4)
    with pytest.raises(
        ValueError, match=r"the mixture of stage trial has 'signs'; expected shares of lookups"
    ):
        batches(opened.changed({"curriculum": {"signs": 1.0}}), BYTES, 4)


def test_sources_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"stage trial has neither a mixture nor data; give `qwenvl train` a file"
    ):
        batches(stage(mixture={}), BYTES, 4)
    with pytest.raises(
        ValueError,
        match=r"the mixture of stage trial has 'tables'; expected shares of lookups, text, described",
    ):
        batches(stage(mixture={"tables": 1.0}), BYTES, 4)
    with pytest.raises(ValueError, match=r"there is no .*nowhere"):
        batches(stage().changed({"data": [{"paths": [str(tmp_path / "nowhere")]}]}), BYTES, 4)
    with pytest.raises(
        ValueError, match=r"packs 6 documents together, which 4 per forward pass do not divide"
    ):
        stage(window=6)


def test_a_file_of_changes_is_read_strictly(tmp_path: Path) -> None:
    file = tmp_path / "data.toml"
    file.write_text('[[trial.data]]\npaths = ["a.tar"]\nweight = 2\n[trial.optim]\npeak_lr = 0.5\n')
    changed = stage().changed(read_changes(file)["trial"])
    assert changed.data[0].paths == (str(tmp_path / "a.tar"),) and changed.data[0].weight == 2.0
    assert changed.optim.peak_lr == 0.5 and changed.optim.steps == stage().optim.steps
    assert from_dict(StageConfig, json.loads(json.dumps(dataclasses.asdict(changed)))) == changed, (
        "as stage.json keeps it"
    )
    with pytest.raises(ValueError, match=r"stage trial.optim has the unknown key 'lr'"):
        stage().changed({"optim": {"lr": 1.0}})
    file.write_text("seed = 3\n")
    with pytest.raises(ValueError, match=r"has 'seed' outside a table; write it under the name of a stage"):
        read_changes(file)


def test_the_tables_of_the_paper_are_in_the_mixture_file() -> None:
    """Weights and rows of Tables 2 and 3, by the code that mixes records too."""
    from qwenvl.data.mixtures import MULTITASK, PRETRAINING

    message = read_changes(Path(__file__).parents[2] / "recipes/qwen_vl_7b/data.toml")
    weights = {
        name: [row["weight"] for row in rows["data"] if "weight" in row] for name, rows in message.items()
    }
    assert weights["1-pretraining"] == [row.millions for row in PRETRAINING]
    assert weights["2-multitask"] == [row.millions for row in MULTITASK]
    assert list(message) == ["1-pretraining", "2-multitask", "3-finetuning"]


# === F-5, F-12: told before hours are spent ===


def captions(folder: Path, images: Sequence[bool]) -> Path:
    """JSON lines of pairs; the images that are there are whole."""
    from PIL import Image

    lines = []
    for number, there in enumerate(images):
        if there:
            Image.new("RGB", (30, 30)).save(folder / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "text": f"a plain wall {number}"}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder / "pairs.jsonl"


@pytest.mark.parametrize("window", [0, 4, 32])
def test_f5_a_run_without_a_usable_document_fails_before_its_first_update(
    start: Path, tmp_path: Path, window: int
) -> None:
    from qwenvl.runtime import Runtime
    from qwenvl.train.recipe import run_stage

    message = texts(tmp_path, documents=4, micro_documents=2, window=window).changed(
        {"data": [{"paths": [str(captions(tmp_path, [False] * 6))]}]}
    )
    cpu = Runtime.detect(device="cpu", dtype="float32")
    with pytest.raises(
        ValueError, match=r"none of the first 16 documents can be used \(16 missing picture, such"
    ):
        run_stage(message, start, tmp_path / "run", cpu)
    assert not (tmp_path / "run" / "model").exists()


def test_f12_documents_that_do_not_fit_are_told_at_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batches(texts(data, sequence_length=32), BYTES, 4, tmp_path)
    message = capsys.readouterr().err
    assert (
        "of the first 64 documents cannot be used and are left out" in message
        and "over-long, such as" in message
    )
    assert "Documents are never cut: raise sequence_length, or make shorter ones." in message
    batches(texts(data, sequence_length=32), BYTES, 4, tmp_path)
    assert not capsys.readouterr().err, "a run that goes on has been told"


def test_f5_a_run_that_changes_nothing_fails(start: Path, data: Path, tmp_path: Path) -> None:
    """Text teaches neither vision nor adapter."""
    from qwenvl.runtime import Runtime
    from qwenvl.train.recipe import run_stage

    message = texts(data, sequence_length=640, documents=4, window=4).changed(
        {"trains": ["vision", "adapter"]}
    )
    cpu = Runtime.detect(device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="trains vision, adapter and no document taught them anything"):
        run_stage(message, start, tmp_path, cpu)


def test_f81_images_of_a_row_are_seen_from_its_file(tmp_path: Path) -> None:
    """`images` of a row and `--images` say below which folder paths in the data may lead."""
    from qwenvl.train.stages import read_changes

    (tmp_path / "data.toml").write_text('[[1-pretraining.data]]\npaths = ["a.jsonl"]\nimages = "coco"\n')
    (row,) = read_changes(tmp_path / "data.toml")["1-pretraining"]["data"]
    assert row == {"paths": [str(tmp_path / "a.jsonl")], "images": str(tmp_path / "coco")}
