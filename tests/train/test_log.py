"""What a run says while it learns: lines, their drawing in TensorBoard and elsewhere, and sample predictions."""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as pillow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qwenvl.checkpoint import folder
from qwenvl.data.tars import write_tar
from qwenvl.data.toy.streams import Vocabulary, chat_document, task_document
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import show as showing
from qwenvl.train.data import documents
from qwenvl.train.log import read_log
from qwenvl.train.loop import train
from qwenvl.train.optim import learning_rate
from qwenvl.train.recipe import run_stage
from qwenvl.train.stages import StageConfig

from .conftest import stage

CPU = Runtime.detect(device="cpu", dtype="float32")


class Killed(Exception):
    pass


def run(start: Path, run_dir: Path, message: StageConfig, *, killed_at: int | None = None) -> None:
    """The stage in this process, stopped behind an update as a kill would."""

    def watch(model: object, stage: object, step: int) -> None:
        if step == killed_at:
            raise Killed

    model = folder.load(start, CPU)
    if killed_at is None:
        train(model, Tokenizer.load(start), message, run_dir, CPU)
    else:
        with pytest.raises(Killed):
            train(model, Tokenizer.load(start), message, run_dir, CPU, watch=watch)


def board(run_dir: Path) -> EventAccumulator:
    return EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "images": 0}).Reload()


# === Lines ===


def test_a_line_tells_everything(start: Path, tmp_path: Path) -> None:
    decayed = dataclasses.replace(stage().optim, vision_lr_decay=0.5)
    run(start, tmp_path, stage(optim=decayed, documents=16))
    lines = read_log(tmp_path / "log.jsonl")
    for line in lines:
        assert set(line["losses"]) <= {"tasks", "text", "chats"} and len(line["losses"]) > 1
        assert min(line["losses"].values()) <= line["loss"] <= max(line["losses"].values())
        assert set(line["norms"]) == {"vision", "adapter", "llm"}
        assert line["grad_norm"] == pytest.approx(np.linalg.norm(list(line["norms"].values())))
        peak = learning_rate(decayed, line["step"] - 1)
        assert line["rates"] == pytest.approx(
            {"adapter": peak, "llm": peak, "vision": peak * 0.5, "vision.lowest": peak * 0.125}
        )
        assert 0 < line["fill"] <= 1 and 0 < line["mfu"] < 2
        assert line["tokens_per_second"] > line["images_per_second"] > 0
    assert len(lines) == 4


def test_losses_of_the_sources_add_up_over_processes(start: Path, tmp_path: Path) -> None:
    run_stage(stage(), start, tmp_path / "one", CPU)
    run_stage(stage(), start, tmp_path / "two", CPU, processes=2)
    one, two = (read_log(tmp_path / name / "log.jsonl")[0] for name in ("one", "two"))
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-5)
    assert one["norms"] == pytest.approx(two["norms"], rel=1e-4)


# === TensorBoard ===


def test_tensorboard_survives_a_kill_without_doubled_points(start: Path, tmp_path: Path) -> None:
    """Killed behind update 3 of 4, saved behind 2: update 3 is done again and stands there once, for everyone."""
    message = stage(show_every=1)
    run(start, tmp_path, message, killed_at=3)
    watching = board(tmp_path)
    assert [point.step for point in watching.Scalars("loss")] == [1, 2, 3]
    run(start, tmp_path, message)
    lines = read_log(tmp_path / "log.jsonl")
    for seen in (board(tmp_path), watching.Reload()):
        for tag, value in {"loss": "loss", "gradient norm": "grad_norm", "speed/mfu": "mfu"}.items():
            points = seen.Scalars(tag)
            assert [point.step for point in points] == [1, 2, 3, 4]
            assert [point.value for point in points] == pytest.approx([line[value] for line in lines])
        assert {"loss/tasks", "gradient norm/llm", "learning rate/vision", "speed/fill"} <= set(
            seen.Tags()["scalars"]
        )
        assert [image.step for image in seen.Images("predictions")] == [1, 2, 3, 4]


def test_a_log_of_an_earlier_version_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    from qwenvl.train.track import TensorBoard

    old = {"step": 0, "loss": 2.5, "seconds": 1.0, "tokens": 10, "images": 1, "grad_norm": 3.0}
    TensorBoard(tmp_path / "tensorboard", [old], []).close()
    assert board(tmp_path).Scalars("gradient norm")[0].value == 3.0


# === Weights & Biases, trackio ===


@pytest.mark.parametrize("library", ["wandb", "trackio"])
def test_a_tracker_is_sent_every_update_once(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, capsys: pytest.CaptureFixture
) -> None:
    calls: list[tuple[str, Any]] = []
    fake: Any = types.ModuleType(library)
    fake.init = lambda **given: (print("hello from a tracker"), calls.append(("init", given)))
    fake.log = lambda values, step: calls.append(("log", (step, values)))
    fake.finish = lambda: calls.append(("finish", None))
    fake.Image = lambda path: ("image", path)
    monkeypatch.setitem(sys.modules, library, fake)
    message = stage(track=library, show_every=4)
    run(start, tmp_path / "trial", message, killed_at=3)
    run(start, tmp_path / "trial", message)
    first, second = (given for name, given in calls if name == "init")
    assert first == second and first["resume"] == "allow" and first["config"]["image_size"] == 56
    assert first["name"].startswith("trial-") and ("id" in first) is (library == "wandb")
    logged = [given for name, given in calls if name == "log"]
    assert [step for step, values in logged if "loss" in values] == [1, 2, 3, 4]
    assert {"speed/tokens_per_second", "gradient norm/llm", "learning rate/llm"} <= set(logged[0][1])
    assert [values["predictions"][0] for step, values in logged if "predictions" in values] == ["image"]
    assert [name for name, _ in calls].count("finish") == 2
    assert "hello" not in capsys.readouterr().out


def test_a_tracker_that_is_not_there_is_told(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match=r"tracking with wandb needs it; install it: pip install 'qwenvl\[track\]'"
    ):
        run(start, tmp_path, stage(track="wandb"))
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(
        ValueError, match="needs it; install it: pip install trackio, then pip install 'pillow>=13'"
    ):
        run(start, tmp_path, stage(track="trackio"))
    with pytest.raises(ValueError, match="tracked by 'mlflow'; expected wandb, trackio or nothing"):
        stage(track="mlflow")


# === Sample predictions ===


def test_looking_changes_nothing(start: Path, tmp_path: Path) -> None:
    run(start, tmp_path / "seen", stage(show_every=1))
    run(start, tmp_path / "unseen", stage())
    losses = [
        [line["loss"] for line in read_log(tmp_path / name / "log.jsonl")] for name in ("seen", "unseen")
    ]
    assert losses[0] == losses[1] and not (tmp_path / "unseen" / "predictions").exists()
    words = (tmp_path / "seen" / "predictions" / "step-000004.jsonl").read_text().splitlines()
    assert len(words) == showing.SHOWN
    assert all(json.loads(line)["step"] == 4 and json.loads(line)["expected"] for line in words)


def test_the_question_ends_where_the_answer_begins(start: Path) -> None:
    tokenizer = Tokenizer.load(start)
    world = Vocabulary(tokenizer, 4, 0)
    for number in range(20):
        for example in (task_document(world, number), chat_document(world, number)):
            asked, expected = showing._question(example, tokenizer)
            text = tokenizer.decode(expected)
            assert text.endswith(("<|endoftext|>", "<|im_end|>\n", "<|im_end|>\n<|im_start|>"))
            assert len(text.split("<|")[0]) > 0
            assert not tokenizer.decode(asked).endswith(text)
            assert asked.count(tokenizer.img) == len(example.images)


def test_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    image = pillow.new("RGB", (80, 60))
    shown = showing.Shown(
        asked="Where is the cat?",
        answered="<ref>the cat</ref><box>(500,100),(900,900)</box>",
        expected="<ref>the cat</ref><box>(100,100),(400,900)</box>",
        image=image,
    )
    drawn = np.asarray(shown.drawn())
    assert drawn.shape[:2] == (300, 400)
    lit = np.flatnonzero(drawn[200].max(axis=1) > 90)
    assert lit[[0, -1]].tolist() == pytest.approx([40, 360], abs=4)
    file = showing.write_sheet(tmp_path, 7, [shown, dataclasses.replace(shown, image=None)])
    with pillow.open(file) as sheet:
        assert sheet.size[0] == 800 and np.asarray(sheet)[310:].min() < 100, "words stand below the image"


def test_learning_parts_are_told_apart(start: Path) -> None:
    from qwenvl.train.flops import learning

    model = folder.load(start, CPU)
    model.vision.requires_grad_(False)
    model.llm.embed.requires_grad_(False)
    assert learning(model) == ({"adapter", "llm"}, {"adapter", "llm"}), "no product is spared"
    model.llm.head.requires_grad_(False)
    assert learning(model) == ({"adapter", "llm"}, {"adapter"})


def test_the_peak_of_a_cpu_is_measured() -> None:
    from qwenvl.train.flops import peak

    assert (peak(torch.device("cpu"), bfloat16=False) or 0) > 1e8
    assert peak(torch.device("meta"), bfloat16=False) is None


def of_shard(shard: Path, **changes: object) -> StageConfig:
    """A stage over image-text pairs."""
    rows = [{"paths": [str(shard)]}]
    values = {"documents": 4, "micro_documents": 2, "sequence_length": 64, "show_every": 4}
    return stage(**values).changed({"data": rows, **changes})


def test_f2_images_inside_shards_are_shown(start: Path, shard: Path, tmp_path: Path) -> None:
    run(start, tmp_path, of_shard(shard))
    words = (tmp_path / "predictions" / "step-000004.jsonl").read_text().splitlines()
    assert (
        all("a plain wall" in json.loads(line)["expected"] for line in words) and len(words) == showing.SHOWN
    )
    with pillow.open(tmp_path / "predictions" / "step-000004.png") as sheet:
        assert sheet.width == 4 * 400 and sheet.height > 300, "the images stand above the words"


def test_f2_parquet_is_shown(start: Path, shard: Path, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    import tarfile

    with tarfile.open(shard) as tar:
        raw = [tar.extractfile(f"{k:03}.jpg").read() for k in range(12)]  # type: ignore[union-attr]
    images = [{"bytes": each, "path": None} for each in raw]
    table = pyarrow.table({"image": images, "text": [f"wall {k}" for k in range(12)]})
    parquet.write_table(table, tmp_path / "walls.parquet")
    run(start, tmp_path / "run", of_shard(tmp_path / "walls.parquet"))
    assert (tmp_path / "run" / "predictions" / "step-000004.png").exists()


def test_f2_without_a_readable_image_there_is_no_sheet(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing but damaged images beside one text: the run goes on, and says why it shows nothing."""
    with write_tar(tmp_path / "cut.tar") as tar:
        for number in range(6):
            tar.add(f"{number}.jpg", b"\xff\xd8 cut")
            tar.add(f"{number}.txt", b"a text")
    shown = showing.show(
        folder.load(start, CPU),
        Tokenizer.load(start),
        of_shard(tmp_path / "cut.tar"),
        lambda number: documents(of_shard(tmp_path / "cut.tar"), Tokenizer.load(start), 4)(number).made,
    )
    assert shown == []
    with pytest.raises(ValueError, match=r"none of \d+ documents could be used \(\d damaged image, such as"):
        run(start, tmp_path / "run", of_shard(tmp_path / "cut.tar"))
    assert not (tmp_path / "run" / "model").exists()
