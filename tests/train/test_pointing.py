"""Heads that look at a thing while its box is said, and digits that count by their place."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_drawings import LETTERS, fetched, small

from qwenvl.data.formats import Example, example, task
from qwenvl.data.packing import Rows, pack
from qwenvl.data.stream.sources import SourceConfig
from qwenvl.markup import Box, Image, Ref, Text, render
from qwenvl.model import llm
from qwenvl.runtime import Runtime
from qwenvl.train.objectives import next_token, place_rows
from qwenvl.train.pointing import DIGITS, LOOKING, POINTING, Signs, digit_weights, looks, pointing, visible_to
from qwenvl.train.recipe import run_recipe
from qwenvl.train.stages import OptimConfig, StageConfig

ROOT = Path(__file__).parents[2]
QUERIES = 4
SIGNS = Signs(LETTERS)


def asked(*answers: tuple[Ref | Box | Text, ...]) -> Example:
    """An image, and a branch for each answer."""
    image = Image(np.full((28, 28, 3), 90, np.uint8))
    branches = [task([Text("find")], list(answer), LETTERS, QUERIES) for answer in answers]
    return example(render(image, LETTERS, QUERIES), branches)


def packed(*examples: Example, length: int = 160) -> Rows:
    return pack(list(examples), length, packing="isolated", pad_id=LETTERS.endoftext)


CAT = (Ref("cat"), Box(100, 600, 400, 950))  # the lower left place of a grid of two by two
WIDE = (Text(" all "), Box(0, 0, 999, 450))  # both upper ones


def test_every_token_behind_which_a_box_goes_on_looks_at_the_places_that_the_box_covers() -> None:
    words = example(render([Ref("dog"), Box(1, 2, 3, 4)], LETTERS, QUERIES, supervised=True))
    rows = packed(asked((Text("no box"),), WIDE), words, asked(CAT))  # the longest comes first
    found = looks(rows, SIGNS, QUERIES)
    texts = ("(0,0),(999,450", "(100,600),(400,950")
    assert len(found.row) == sum(map(len, texts)), "a box without an image says nothing"
    for number, own in ((0, [0, 1]), (1, [2])):
        chosen = slice(len(texts[0]) * number, len(texts[0]) * number + len(texts[number]))
        row = rows.ids[found.row[chosen.start]]
        assert LETTERS.decode(row[found.position[chosen]].tolist()) == texts[number]
        pads = np.flatnonzero(row == LETTERS.imgpad).reshape(-1, QUERIES)
        assert {tuple(np.flatnonzero(each)) for each in found.own[chosen]} == {tuple(pads[number][own])}


def test_what_is_no_box_is_looked_for_nowhere() -> None:
    ids = [LETTERS.box, *LETTERS.encode("(1,x),(3,4)"), LETTERS.box_end]
    assert SIGNS.box(np.array(ids[1:-1])) is None and SIGNS.box(np.array(LETTERS.encode("(1,2),(3,4)"))) == [
        1,
        2,
        3,
        4,
    ]
    assert not len(looks(packed(asked((Text("nothing"),))), SIGNS, QUERIES).row)


def test_an_image_that_a_box_does_not_see_is_not_looked_at() -> None:
    image = Image(np.full((28, 28, 3), 90, np.uint8))
    shown = task([Text("q"), image], [Text(" a")], LETTERS, QUERIES)
    other = task([Text("find")], list(CAT), LETTERS, QUERIES)
    rows = packed(example(render("words", LETTERS, QUERIES), [shown, other]))
    assert LETTERS.box in rows.ids and (rows.ids == LETTERS.imgpad).sum() == QUERIES
    assert not len(looks(rows, SIGNS, QUERIES).row)


def test_what_is_visible_is_what_the_language_model_lets_a_token_see() -> None:
    rows = packed(asked(CAT, WIDE), asked(WIDE))
    found = looks(rows, SIGNS, QUERIES)
    segments, hidden = torch.from_numpy(rows.segments), torch.zeros(*rows.ids.shape, 1)
    mask = llm.attention_mask(segments, rows.ids.shape[1], None, hidden)
    assert isinstance(mask, torch.Tensor)
    seen = (mask[:, 0] == 0).numpy()[found.row, found.position]
    assert (visible_to(rows.segments, found) == seen).all()
    assert (visible_to(rows.segments, found) & found.own).sum() == found.own.sum() > 0


def test_digits_of_coordinates_count_by_their_place_and_everything_else_once() -> None:
    rows = packed(asked((Text(" (7,7 "), *CAT)))
    given = place_rows(rows, small(blocks=3, heads=4).config, torch.device("cpu"))
    weights = digit_weights(rows, looks(rows, SIGNS, QUERIES), SIGNS)
    said = LETTERS.decode(given.supervised.targets[: given.supervised.count].tolist())
    assert said == " (7,7 <ref>cat</ref><box>(100,600),(400,950)</box><|endoftext|>"
    first, second, third = DIGITS
    coordinate = [first, second, third]
    box = [*coordinate, 1, *coordinate, 1, 1, 1, *coordinate, 1, *coordinate]
    assert weights.tolist() == pytest.approx([1.0] * 13 + [*box, 1.0, 1.0, 1.0]), "(7,7 is no coordinate"


def stage(folder: Path, steps: int = 2) -> StageConfig:
    return StageConfig(
        name="3", objective="pointing", trains=("llm",), image_size=28, sequence_length=320,
        documents=4, micro_documents=4, bfloat16=False,
        optim=OptimConfig(peak_lr=1e-2, final_lr=1e-2, warmup_steps=0, steps=steps),
        data=(SourceConfig(paths=("drawings:scenes",), images=str(folder)),),
    )  # fmt: skip


def test_the_loss_is_that_of_the_tokens_and_of_the_attention_that_lies_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, model = stage(fetched(tmp_path / "drawings")), small(blocks=3, heads=4)
    objective = pointing(model, LETTERS, read, run_dir=tmp_path)
    given = objective.placed(objective.batch(range(4)))
    assert len(given.row) > 40
    found = objective.loss(given)

    kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    attend = llm.attend
    monkeypatch.setattr(
        llm, "attend", lambda q, k, v, mask: (kept.append((q, k, mask)), attend(q, k, v, mask))[1]
    )
    plain = next_token(model, LETTERS, read).loss(given.rows)
    missed = []
    for block, heads in LOOKING.items():
        query, key, mask = kept[block]
        shares = (query @ key.mT / query.shape[-1] ** 0.5 + mask).softmax(dim=-1)[
            given.row, :, given.position
        ]
        missed.append(-(shares * given.own[:, None]).sum(dim=-1).log()[:, list(heads)].mean(dim=1).sum())
    torch.testing.assert_close(
        found.total, plain.total + POINTING * torch.stack(missed).mean(), rtol=1e-5, atol=1e-4
    )
    unweighed = replace(given.rows, supervised=replace(given.rows.supervised, weights=None))
    assert plain.total > next_token(model, LETTERS, read).loss(unweighed).total, "first digits count more"
    assert found.by_source.keys() == plain.by_source.keys()


def test_heads_learn_to_look(tmp_path: Path) -> None:
    model, read = small(blocks=3, heads=4), stage(fetched(tmp_path / "drawings"))
    objective = pointing(model, LETTERS, read, run_dir=tmp_path)
    given = objective.placed(objective.batch(range(4)))
    optimizer = torch.optim.AdamW(model.llm.parameters(), 1e-2)

    @torch.no_grad()
    def looked() -> float:
        return float(objective.loss(given).total - objective.loss(replace(given, own=given.visible)).total)

    before = looked()
    for _ in range(30):
        optimizer.zero_grad()
        objective.loss(given).total.backward()
        optimizer.step()
    assert 0 < looked() < 0.5 * before


def test_rows_without_boxes_and_models_without_such_heads(tmp_path: Path) -> None:
    folder = fetched(tmp_path / "drawings")
    named = replace(stage(folder), data=(SourceConfig(paths=("drawings:names",), images=str(folder)),))
    model = small(blocks=3, heads=4)
    objective = pointing(model, LETTERS, named, run_dir=tmp_path)
    given = objective.placed(objective.batch(range(4)))
    assert not len(given.row)
    torch.testing.assert_close(
        objective.loss(given).total, next_token(model, LETTERS, named).loss(given.rows).total
    )
    for few in (small(blocks=2, heads=4), small(blocks=3, heads=2)):
        with pytest.raises(
            ValueError, match=r"points with heads .* the language model has \d blocks of \d heads"
        ):
            pointing(few, LETTERS, named)


def test_a_stage_that_points_without_data_is_found_before_the_stage_before_is_trained(tmp_path: Path) -> None:
    file = tmp_path / "recipe" / "2-multitask.toml"
    shutil.copytree(ROOT / "recipes" / "tiny", file.parent)
    lines = [each for each in file.read_text().splitlines() if "paths" not in each]
    file.write_text('objective = "pointing"\n' + "\n".join(lines))
    with pytest.raises(ValueError, match="stage 2-multitask has no data"):
        run_recipe(file.parent, tmp_path / "run", Runtime.detect(device="cpu"))
    assert not (tmp_path / "run").exists()
