"""The toy world: what it promises about its scenes and images, and that nothing held out leaks into training."""

from dataclasses import replace

import numpy as np
import pytest
from pace import at_most

from qwenvl.data.toy.labels import CHARACTERS, dense_labels
from qwenvl.data.toy.paint import BACKGROUNDS, PALETTE, render
from qwenvl.data.toy.tasks import tasks
from qwenvl.data.toy.worlds import (
    COLORS,
    SHAPES,
    SIZES,
    Thing,
    held_out_triples,
    holds_held_out,
    is_held_out,
    numbers,
    scene,
    words,
)

SCENES = [scene(11, index, split) for index in range(150) for split in ("train", "test")]


# === Scenes ===


def test_a_scene_is_a_function_of_seed_index_and_split():
    assert scene(1, 2, "train") == scene(1, 2, "train")
    others = [scene(1, 3, "train"), scene(2, 2, "train"), scene(1, 2, "test")]
    assert all(scene(1, 2, "train").name != other.name for other in others)
    assert np.array_equal(render(scene(1, 2)), render(scene(1, 2)))
    assert tasks(scene(1, 2), 5) == tasks(scene(1, 2), 5) != tasks(scene(1, 2), 6)


def test_nothing_held_out_is_ever_in_training():
    seen: set[tuple[str, str, str]] = set()
    texts: set[str] = set()
    for index in range(5000):
        drawn = scene(0, index, "train")
        seen |= {thing.triple for thing in drawn.things}
        texts |= {sign.text for sign in drawn.signs}
        assert not holds_held_out(drawn)
    assert len(held_out_triples()) == 8 and len(seen) == 84 - 8 and not seen & held_out_triples()
    assert not any(is_held_out(text) for text in texts) and len(texts) > 2000


def test_every_test_scene_holds_something_new():
    for index in range(1000):
        drawn = scene(0, index, "test")
        triples = {thing.triple for thing in drawn.things}
        assert triples & held_out_triples() or any(is_held_out(sign.text) for sign in drawn.signs)


def test_what_is_held_out_leaves_every_part_of_it_in_training():
    for axis, parts in enumerate((SHAPES, COLORS, SIZES)):
        lost = [sum(triple[axis] == part for triple in held_out_triples()) for part in parts]
        assert max(lost) <= (2, 2, 7)[axis]
    assert not set(words(True)) & set(words(False)) and 0.08 < len(words(True)) / len(words(False)) < 0.14
    assert (len(numbers(True)), len(numbers(False))) == (9, 81)
    trained = "".join(words(False))
    assert all(trained.count(letter) > 500 for letter in "ABCDEFGHIJKLMNOPRSTUVWXYZ")  # Q is left out
    for place in (0, 1):
        assert {text[place] for text in numbers(False)} >= set("123456789")


def test_things_lie_on_the_grid_apart_from_each_other():
    for drawn in SCENES:
        boxes = np.array([item.box for item in drawn.items])
        assert 1 <= len(boxes) <= 5 and len(drawn.things) <= 3 and len(drawn.signs) <= 2
        assert (boxes % 25 == 0).all() and boxes.min() >= 25 and boxes.max() <= 975
        centers = (boxes[:, 0] + boxes[:, 2]) / 2
        assert (np.diff(centers) >= 60).all()
        for k, (left, top, right, bottom) in enumerate(boxes):
            for x0, y0, x1, y1 in boxes[:k]:
                assert max(left - x1, x0 - right, top - y1, y0 - bottom) >= 25
        for thing in drawn.things:
            side = thing.box[2] - thing.box[0]
            assert side == thing.box[3] - thing.box[1]
            assert 150 <= side <= 200 if thing.size == "small" else 275 <= side <= 350


def test_every_letter_stands_in_a_cell_of_its_own():
    letters = [
        (sign.box[0] + k * 125, sign.box[1])
        for drawn in SCENES
        for sign in drawn.signs
        for k in range(len(sign.text))
    ]
    assert letters and {start % 125 for place in letters for start in place} == {0, 25}
    assert all(
        sign.box[2] - sign.box[0] == 125 * len(sign.text) - 25 for drawn in SCENES for sign in drawn.signs
    )


def test_the_share_of_scenes_with_text_can_be_chosen():
    assert all(scene(0, index, signs=1.0).signs for index in range(100))
    assert not any(scene(0, index, signs=0.0).signs for index in range(100))
    assert 0.6 < sum(bool(drawn.signs) for drawn in SCENES) / len(SCENES) < 0.85


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="unknown split 'val'"):
        scene(0, 0, "val")


# === Images ===


@pytest.mark.parametrize("size", [112, 224])
def test_boxes_are_the_extent_of_the_paint(size):
    alone = [
        replace(drawn, things=(), signs=(replace(s, plate=False),)) for drawn in SCENES for s in drawn.signs
    ]
    alone += [replace(drawn, things=(thing,), signs=()) for drawn in SCENES for thing in drawn.things]
    assert {item.text[0] for drawn in alone for item in drawn.signs} >= set("I1")
    for drawn in alone:
        painted = (render(drawn, size) != BACKGROUNDS[drawn.background]).any(axis=2)
        rows, columns = painted.any(axis=1).nonzero()[0], painted.any(axis=0).nonzero()[0]
        extent = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(extent - np.array(drawn.items[0].box) * size / 1000).max() <= 1, drawn


def test_things_have_their_color_and_signs_are_dark():
    for drawn in SCENES:
        image = render(drawn)
        assert image.shape == (112, 112, 3) and image.dtype == np.uint8
        for thing in drawn.things:
            x, y = (thing.box[0] + thing.box[2]) / 2, (thing.box[1] + thing.box[3]) / 2
            assert tuple(image[int(y * 0.112), int(x * 0.112)]) == PALETTE[thing.color]
        for sign in drawn.signs:
            left, top, right, bottom = (round(edge * 0.112) for edge in sign.box)
            ink = image[top:bottom, left:right].mean(axis=2) < 128
            assert 0.1 < ink.mean() < 0.7


def test_dense_labels_say_what_covers_each_patch():
    for drawn in SCENES[:60]:
        labels = dense_labels(drawn, 8)
        for row, column in np.ndindex(8, 8):
            share, most = max(
                ((_share(item.box, row, column), item) for item in drawn.items), key=lambda pair: pair[0]
            )
            item = most if share >= 1 / 8 else None
            found = tuple(int(layer[row, column]) for layer in (labels.shape, labels.color, labels.size))
            if item is None:
                assert found == (0, 0, 0) and not labels.box[row, column].any()
                assert not labels.digits[row, column].any()
                continue
            expected: tuple[int, ...] = (7, 0, 0)
            if isinstance(item, Thing):
                classes = zip((SHAPES, COLORS, SIZES), item.triple, strict=True)
                expected = tuple(names.index(part) + 1 for names, part in classes)
            assert found == expected
            text = "" if isinstance(item, Thing) else item.text
            assert "".join(["", *CHARACTERS][k] for k in labels.word[row, column]) == text
            edges = np.array(item.box) / 1000
            assert np.allclose(labels.box[row, column], edges, atol=1e-6)
            written = [f"{edge:03}" for edge in item.box]
            assert labels.digits[row, column].tolist() == [[int(edge[0]), int(edge[1])] for edge in written]
        for row, column in np.ndindex(16, 16):
            x, y = (column + 0.5) * 62.5, (row + 0.5) * 62.5
            letters = [
                text
                for sign in drawn.signs
                for k, text in enumerate(sign.text)
                if _covers((left := sign.box[0] + 120 * k - 10, sign.box[1], left + 120, sign.box[3]), x, y)
            ]
            found = labels.character[row // 2, column // 2, row % 2, column % 2]
            assert ["", *CHARACTERS][found] == "".join(letters)


def _share(box: tuple[int, int, int, int], row: int, column: int) -> float:
    """Of the patch in an 8 x 8 raster, by counting points 5 units apart."""
    points = [
        (column * 125 + x + 2.5, row * 125 + y + 2.5) for x in range(0, 125, 5) for y in range(0, 125, 5)
    ]
    return sum(_covers(box, x, y) for x, y in points) / len(points)


def _covers(box, x, y) -> bool:
    return box[0] <= x < box[2] and box[1] <= y < box[3]


def test_a_core_draws_paints_and_labels_faster_than_any_model_trains():
    """A smoke test, lax enough for the shape-checking hook; benchmarks/toyworld.py measures."""
    with at_most(2):
        for index in range(300):
            drawn = scene(9, index)
            render(drawn), dense_labels(drawn, 8), tasks(drawn, 0, limit=6)
