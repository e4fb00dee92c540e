"""Visual tokens that say in the language model's words what is drawn at their places."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_drawings import LETTERS, fetched, row, small, stage

from qwenvl.data.drawings.splits import nouns
from qwenvl.data.stream.sources import SourceConfig
from qwenvl.data.toy.worlds import Dice
from qwenvl.model.vlm import QwenVL
from qwenvl.runtime import Runtime
from qwenvl.train.alignment import (
    DIRECTIONS,
    LENGTH,
    SHOWN,
    STRAIGHT,
    Lesson,
    Seen,
    Spoken,
    Where,
    align,
    places,
    zoomed,
)
from qwenvl.train.loop import train
from qwenvl.train.stages import StageConfig


def aligned(folder: Path, steps: int = 6) -> StageConfig:
    scenes = SourceConfig(paths=("drawings:scenes",), images=str(folder))
    read = stage(folder, steps).changed({"name": "1", "objective": "align", "trains": ("adapter",)})
    return StageConfig(**{**vars(read), "data": (row(folder), scenes), "image_size": 28, "save_every": 4})


def test_the_adapter_learns_to_say_what_is_drawn_and_nothing_else_changes(tmp_path: Path) -> None:
    folder, model = fetched(tmp_path / "drawings"), small()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    objective = align(model, LETTERS, aligned(folder), run_dir=tmp_path)
    batch = objective.batch(range(8))
    for part in (model.vision, model.llm):
        part.requires_grad_(False)
    trained = [each for each in objective.module.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-2)
    losses = []
    for _ in range(120):
        made = objective.loss(objective.placed(batch))
        losses.append({name: float(total) / count for name, (total, count) in made.by_source.items()})
        optimizer.zero_grad()
        made.total.backward()
        optimizer.step()
    assert made.supervised == len(batch.said) >= 4 and made.images == 8
    first, last = losses[0], losses[-1]
    assert last["said"] < 0.5 * first["said"] and last["said_wrong"] < 0.7 < first["said_wrong"]
    assert last["boxes"] < 0.7 * first["boxes"] and last["stray"] < 0.2 * first["stray"]
    changed = {
        name.split(".")[0] for name, each in model.state_dict().items() if not each.equal(before[name])
    }
    assert changed == {"adapter"}

    pixels, image, said, shares, boxes, _, words = objective.placed(batch)
    with torch.no_grad():
        visual, where = model.encode(pixels), Where(model.llm.embed)
    there = (shares[:, None] @ visual[image]).squeeze(1)
    spoken = (where.rest(there) * words[said]).sum(dim=1) / model.llm.embed.weight.norm(dim=1).mean()
    assert spoken.tolist() == pytest.approx([LENGTH] * len(said), abs=0.3), "as long as words"
    tenths = where.said(there)[:, 4:].reshape(-1, 4, 10).argmax(dim=-1)
    first = (boxes[:, 0] * 10).long().clamp(max=9)
    assert ((tenths - first).abs() <= 1).float().mean() > 0.9, "first digits can be read"


def test_a_thing_is_said_at_the_places_that_it_covers() -> None:
    seen = Seen(
        pixels=np.zeros((60, 60, 3), np.uint8), things=[(" cat", (0, 0, 40, 20)), (None, (45, 45, 50, 50))]
    )
    (cat, boxes), (small_one, _) = places(seen, 3)
    assert cat.reshape(3, 3).tolist() == [[0.5, 0.5, 0], [0, 0, 0], [0, 0, 0]]
    assert small_one.tolist() == [0] * 8 + [1], "less than a place, but there"
    assert np.allclose(boxes * 60, [0, 0, 40, 20]), "whole at each place"


def test_scenes_widen_from_one_thing_to_all_with_true_boxes() -> None:
    pixels = np.zeros((168, 168, 3), np.uint8)
    boxes = ((2, 2, 42, 32), (60, 100, 124, 160), (130, 4, 166, 44))
    for number, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right] = number + 1
    scene = Seen(pixels=pixels, things=[(f" {number + 1}", box) for number, box in enumerate(boxes)])
    shown = {
        grown: [zoomed(scene, grown, Dice(grown, number)) for number in range(60)]
        for grown in (0.0, 0.5, 1.0)
    }
    for part in (each for parts in shown.values() for each in parts):
        assert part.pixels.shape[0] == part.pixels.shape[1] and part.things
        for name, (x0, y0, x1, y1) in part.things:
            seen = np.unique(part.pixels[y0:y1, x0:x1])
            assert len(seen) == 1 and (name is None or seen[0] == int(name)), "a box is full of its thing"
            left, top, right, bottom = boxes[seen[0] - 1]
            whole = (x1 - x0) * (y1 - y0) >= SHOWN * (right - left) * (bottom - top)
            assert whole == (name is not None), "what is hardly there stands there without a name"
    counts = [
        np.mean([sum(name is not None for name, _ in each.things) for each in parts])
        for parts in shown.values()
    ]
    assert counts[0] < 1.5 < counts[1] < counts[2] == 3
    assert max(len(each.pixels) for each in shown[0.0]) < 168


def test_scenes_and_drawings_alone_are_read_with_their_signs(tmp_path: Path) -> None:
    lesson = Lesson(aligned(fetched(tmp_path)), 4)
    batch = lesson(range(60))
    said = [batch.texts[number] for number in batch.said]
    assert {len(each.things) for each in map(lesson.seen, range(60))} >= {1, 3}
    assert {" cat", " key"} <= {*said} and any(text.endswith(" sign") for text in said)
    assert {each for each in said if not each.endswith(" sign")} <= {f" {each.noun}" for each in nouns()}
    assert np.allclose(batch.places.sum(axis=1), 1)
    assert batch.bare.shape == (60, 4) and 0.05 < batch.bare.mean() < 0.9
    unnamed = set(range(60)) - set(batch.image.tolist())
    assert all(batch.bare[number].min() == 0 for number in unnamed if lesson.seen(number).things)
    for number in range(60):
        there = np.flatnonzero(batch.places[batch.image == number].sum(axis=0))
        assert not batch.bare[number, there].any()
    again = lesson(range(60))
    assert np.array_equal(batch.pixels, again.pixels) and np.array_equal(batch.boxes, again.boxes)


def test_boxes_are_said_where_words_say_least() -> None:
    embedding = torch.nn.Embedding(400, 96)
    with torch.no_grad():
        embedding.weight[:, :40] *= 0.1  # channels that words hardly use
    where, boxes = Where(embedding), torch.tensor([[0.0, 0.25, 0.31, 0.99], [0.5, 0.5, 0.75, 1.0]])
    directions = where.directions
    torch.testing.assert_close(directions @ directions.T, torch.eye(DIRECTIONS), atol=1e-5, rtol=0)
    assert (directions[:40, :40].square().sum(dim=1) > 0.95).all()
    code = where.code(boxes)
    assert code.shape == (2, DIRECTIONS)
    torch.testing.assert_close(code[:, :4], STRAIGHT * (boxes - 0.5))
    assert code[:, 4:].reshape(2, 4, 10).argmax(dim=-1).tolist() == [[0, 2, 3, 9], [4, 4, 7, 9]]
    visual = torch.randn(3, 96)
    torch.testing.assert_close(where.said(where.rest(visual)), torch.zeros(3, DIRECTIONS), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        where.said(where.rest(visual)[:2] + code @ directions), code, atol=1e-5, rtol=0
    )
    with pytest.raises(
        ValueError, match="embeddings have 80 channels; boxes are said in 44, which leaves words"
    ):
        Where(torch.nn.Embedding(400, 80))


def test_names_begin_with_their_first_token() -> None:
    spoken = Spoken(LETTERS, small().llm.embed)
    cat, act = spoken(["cat", "act"])
    letter = torch.nn.functional.normalize(spoken.table[ord("c")], dim=0)
    assert float(cat @ letter) > float(act @ letter) and abs(float(cat.norm()) - 1) < 1e-5


def test_a_killed_alignment_goes_on_with_the_same_weights(tmp_path: Path) -> None:
    folder, runtime = fetched(tmp_path / "drawings"), Runtime.detect(device="cpu", dtype="float32")
    one, two = small(), small()
    train(one, LETTERS, aligned(folder), tmp_path / "one", runtime)

    class Killed(Exception):
        pass

    def kill(_model: QwenVL, _stage: StageConfig, step: int) -> None:
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        train(small(), LETTERS, aligned(folder), tmp_path / "two", runtime, watch=kill)
    train(two, LETTERS, aligned(folder), tmp_path / "two", runtime)
    assert all(
        torch.equal(each, two.adapter.state_dict()[name]) for name, each in one.adapter.state_dict().items()
    )


def test_other_data_is_refused(tmp_path: Path) -> None:
    other = aligned(fetched(tmp_path)).changed({"data": [{"paths": ["toy:tasks"]}]})
    rows = r'\["drawings:names"\], \["drawings:scenes"\], \["drawings:busy_scenes"\]'
    with pytest.raises(ValueError, match=f"reads rows of paths = {rows}, and nothing else"):
        align(small(), LETTERS, other)
