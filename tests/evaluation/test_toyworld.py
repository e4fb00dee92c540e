"""The toy world as a benchmark: its answer key is right by its own rules, and it can be asked of a model."""

import pytest

from qwenvl.data.toy.worlds import holds_held_out, scene
from qwenvl.evaluation.toyitems import Blind, Count, Item, items, score_items
from qwenvl.evaluation.toyworld import GROUPS, scene_named
from qwenvl.markup import Box, Ref, parse, spell

IMAGES = 80


def asked(prompt_format: str) -> list[Item]:
    return [item for k in range(IMAGES) for item in items(scene(1, k, "test"), k, 1, prompt_format)]


@pytest.mark.parametrize("prompt_format", ["raw", "chatml"])
def test_the_answer_key_is_right_however_it_is_spelled(prompt_format: str) -> None:
    for item in asked(prompt_format):
        counts = score_items(item, parse(spell(item.answer).strip()))
        assert counts and all(count.correct == count.n > 0 for count in counts.values()), item


@pytest.mark.parametrize("prompt_format", ["raw", "chatml"])
def test_an_empty_answer_is_wrong_everywhere(prompt_format: str) -> None:
    for item in asked(prompt_format):
        assert all(count.correct == 0 < count.n for count in score_items(item, []).values()), item


def test_every_group_is_asked_in_both_manners_and_only_about_held_out_images() -> None:
    for prompt_format in ("raw", "chatml"):
        kinds = {name for item in asked(prompt_format) for name in score_items(item, [])}
        for members in GROUPS.values():
            assert set(members) <= kinds
        assert all(holds_held_out(item.scenes[0]) for item in asked(prompt_format))


def test_boxes_of_a_grounded_caption_count_one_by_one_under_their_phrase() -> None:
    item = next(
        item for item in asked("raw") if item.kind == "grounded_caption" and len(item.scenes[0].items) > 1
    )
    phrase, box = next(
        (a, b) for a, b in zip(item.answer, item.answer[1:], strict=False) if isinstance(b, Box)
    )
    assert isinstance(phrase, Ref)
    boxes = sum(isinstance(segment, Box) for segment in item.answer)
    assert score_items(item, [phrase, box]) == {
        "grounded_caption": Count(0, 1),
        "grounded_boxes": Count(1, boxes),
    }
    assert score_items(item, [Ref("a moon"), box])["grounded_boxes"] == Count(0, boxes)
    assert score_items(item, [phrase, box, phrase, box])["grounded_boxes"] == Count(1, boxes)


def test_a_scene_is_found_by_its_name() -> None:
    shown = scene(3, 14, "test")
    assert scene_named(shown.name) == shown


def test_the_blind_baseline_answers_from_training_frequencies_alone() -> None:
    blind = Blind(1, "raw", scenes=200)
    exist = [item for item in asked("raw") if item.kind == "exist"]
    assert {spell(blind.answer(item)) for item in exist} <= {" yes", " no"}
    choice = next(item for item in asked("raw") if item.options)
    assert spell(blind.answer(choice)) in choice.options
