"""The order of samples belongs to the stage: ranks share it, a run that goes on with other ranks continues it."""

import dataclasses
import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest

from qwenvl.checkpoint.folder import resolve
from qwenvl.config import from_dict
from qwenvl.data.packing import Rows
from qwenvl.data.tars import write_tar
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import distributed
from qwenvl.train.data import batches, documents, left_out
from qwenvl.train.loop import micro_batches
from qwenvl.train.recipe import find_recipe
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


def toys(**weights: float) -> list[dict[str, object]]:
    """Rows of sources of the toy world."""
    return [{"paths": [f"toy:{name}"], "weight": weight} for name, weight in weights.items()]


def texts(data: Path, **changes: object) -> StageConfig:
    rows = [{"paths": [str(data / "a.tar")], "weight": 3.0}, {"paths": [str(data / "b.jsonl")], "weight": 1}]
    sizes = {"sequence_length": 128, "documents": 16, "micro_documents": 2, "window": 16}
    return stage(**sizes).changed({"data": rows, **changes})


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
    rows = [{"paths": [str(data / "b.jsonl")]}, *toys(lookups=4.0)]
    mixed = stage().changed({"data": rows, "sequence_length": 384})
    read = documents(mixed, BYTES, 4)
    tasks = [read(number).task for number in range(400)]
    assert 0.75 < tasks.count("lookups") / len(tasks) < 0.85 and set(tasks) == {"text", "lookups"}
    # of all documents of the toy world at the same positions, those that are drawn are as without other data
    alone = documents(stage().changed({"data": toys(lookups=4.0)}), BYTES, 4)
    first = tasks.index("lookups")
    assert read(first).made.ids == alone(first).made.ids


def test_a_curriculum_comes_first() -> None:
    """The first updates, and no document more: the others are those of a stage without one."""
    plain = stage(documents=8).changed({"data": toys(text=0.5, described=0.5)})
    opened = plain.changed({"curriculum": {"steps": 3, "data": toys(lookups=1.0)}})
    tasks = [[documents(each, BYTES, 4)(number).task for number in range(60)] for each in (plain, opened)]
    assert set(tasks[1][:24]) == {"lookups"} and tasks[1][24:] == tasks[0][24:]
    assert set(tasks[0][24:]) == {"text", "described"}
    words = [token for token in documents(opened, BYTES, 4)(0).made.ids if token < 256]
    assert "?" in BYTES.decode(words) and "(" not in BYTES.decode(words), "questions, and no place"
    assert opened.scaled(10 / 3).curriculum.steps == 10 and opened.scaled(0.01).curriculum.steps == 1
    assert plain.scaled(10).curriculum.steps == 0
    for given, rows in (({"steps": 2}, 0), ({"data": toys(lookups=1.0)}, 1)):
        with pytest.raises(
            ValueError, match=rf"the curriculum has steps = \d and {rows} rows of data; give both"
        ):
            stage().changed({"curriculum": given})


def test_data_behind_a_curriculum_begins_with_its_first_sample(data: Path) -> None:
    plain = texts(data)
    opened = plain.changed({"curriculum": {"steps": 2, "data": toys(text=1.0)}})
    read, alone = documents(opened, BYTES, 4), documents(plain, BYTES, 4)
    begin = 2 * plain.documents
    assert read(0).task == "text" and read.shards() == alone.shards()
    assert [read(begin + k).made.ids for k in range(6)] == [alone(k).made.ids for k in range(6)]


def test_sources_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage trial has no data; give `qwenvl train` a file"):
        batches(stage(data=()), BYTES, 4)
    with pytest.raises(ValueError, match=r"no source 'toy:tables'; expected one of toy:lookups, toy:text"):
        stage().changed({"data": toys(tables=1.0)})
    for more in ({"paths": ["toy:text", "a.tar"]}, {"paths": ["toy:text"], "format": "refer"}):
        with pytest.raises(ValueError, match=r"the row of toy:text says more than its weight"):
            stage().changed({"data": [more]})
    with pytest.raises(ValueError, match=r"there is no .*nowhere"):
        batches(stage().changed({"data": [{"paths": [str(tmp_path / "nowhere")]}]}), BYTES, 4)
    with pytest.raises(
        ValueError, match=r"packs 6 documents together, which 4 per forward pass do not divide"
    ):
        stage(window=6)


DIGESTS = {
    "tiny/0a-language": "937e04c1ce4d0ecf",
    "tiny/1-pretraining": "9e7a4e597831f46b",
    "tiny/2-multitask": "43c855f7a9644f26",
    "tiny/3-finetuning": "04cc0c6315731e9b",
    "demo/0a-language": "c9d475f4fa62c59d",
    "demo/1-pretraining": "9e7a4e597831f46b",
    "demo/2-multitask": "d09762a44ec59b6b",
    "demo/3-finetuning": "5ae1c8bda73a691f",
}
"""Of documents in the shipped vocabulary, recorded when the toy world was no source of `data` yet."""


@pytest.mark.parametrize("name", DIGESTS)
def test_the_recipes_of_the_toy_world_read_what_the_shipped_model_read(name: str) -> None:
    """The order of its documents is a promise: the scores of `tiny` and of the demo stand on it."""
    words = Tokenizer.load(resolve("tiny"))
    read = documents(StageConfig.read(find_recipe(f"{name}.toml")), words, 36)
    digest = blake2b(digest_size=8)
    for number in (*range(8), *range(2396, 2404), 10**6):
        task, made = read(number)
        digest.update(task.encode())
        for values in (made.ids, made.labels, made.branches, made.positions):
            digest.update(np.ascontiguousarray(values).tobytes())
        for image in made.images:
            digest.update(image.source.tobytes())
    assert digest.hexdigest() == DIGESTS[name]


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
        ValueError, match=r"none of the first 16 documents can be used \(16 missing image, such"
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
