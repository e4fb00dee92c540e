"""Hand-computed values of every metric but the captions'."""

import math

import numpy as np
import pytest

from qwenvl.evaluation.metrics import (
    anls,
    exact,
    gqa,
    grounding,
    mme,
    multiple_choice,
    relaxed,
    touchstone,
    vqa,
)
from qwenvl.evaluation.metrics.tally import Tally, tally, tally_by


def test_a_tally_of_parts_is_the_tally_of_the_whole():
    scores = [1.0, 0.0, 0.5, 1.0, 1.0]
    assert tally(scores[:2]) + tally(scores[2:]) == tally(scores) == Tally(3.5, 5)
    assert tally(scores).mean == 0.7
    assert tally_by("aabba", scores) == {"a": Tally(2.0, 3), "b": Tally(1.5, 2)}
    with pytest.raises(ValueError, match="no items were scored"):
        _ = Tally().mean


# === VQA ===


@pytest.mark.parametrize(
    ("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_vqa_leaves_each_person_out_once(agreeing, expected):
    # 1 of 10: nine people see one agreeing other (1/3), the one herself sees none: 9/30
    assert vqa.score("dog", ["dog"] * agreeing + ["cat"] * (10 - agreeing)) == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize(
    ("text", "official", "corrected"),
    [
        ("5.", "5", "5."),  # the look-behind that does nothing
        ("a.b", "ab", "ab"),
        ("3.5", "3.5", "3.5"),
        ("." * 40, "." * 8, ""),  # only the first 32 go
        ("a-b", "a b", "a b"),
        ("a -b", "a b", "a b"),
        ("1,000-a", "1000a", "1000a"),  # digit,digit anywhere: every mark vanishes
    ],
)
def test_vqa_punctuation_with_and_without_the_slip(text, official, corrected):
    assert vqa.process_punctuation(text) == official
    assert vqa.process_punctuation(text, False) == corrected


def test_vqa_words_of_the_prediction_only():
    assert vqa.process_prediction("\tThe two dogs,\nwasnt it?") == "2 dogs wasn't it"
    assert vqa.process_words("hadnt've hadn'tve yall'll 'ow'sat somebody'd Im") == (
        "hadn't've hadn't've y'all'll 'ow's'at somebodyd im"
    )
    assert vqa.score("two", ["two"] * 10) == 0.0  # references are never mapped
    assert vqa.score("x-y", ["x-y"] * 10) == 0.0  # nor stripped of punctuation when all agree
    assert vqa.score("x-y", ["x-y"] * 9 + ["c"]) == 1.0
    answers = ["x-y"] * 9 + ["c"]
    vqa.score("x", answers)
    assert answers == ["x-y"] * 9 + ["c"], "the reference rewrites its input, ours must not"


def test_vqa_percent_rounds_like_the_reference():
    assert vqa.percent(tally([0.3, 0.6, 1.0])) == 63.33
    with pytest.raises(ValueError, match="no reference answers"):
        vqa.score("a", [])


# === Short answers ===


def test_gqa_substring_rules():
    cases = {
        "The cat is on a mat of hay.": "mat",
        "this is a dog": "",
        "pizza x": "x",
        "No, it is red": "no",
        "roof of it": "roof",
    }
    assert {raw: gqa.extract_answer(raw) for raw in cases} == cases
    assert gqa.score("It is a dog.", " DOG") == 1.0
    with pytest.raises(ValueError, match="must be text, got None"):
        gqa.extract_answer(None)


def test_exact_match_takes_the_best_annotation():
    assert [exact.score(" Dog", ["cat", "dog "]), exact.score("dog.", "dog")] == [1.0, 0.0]
    with pytest.raises(ValueError, match="empty list"):
        exact.score("dog", [])


@pytest.mark.parametrize(
    ("answer", "annotation", "official", "documented"),
    [
        ("100", "95", 1.0, 0.0),
        ("95", "100", 0.0, 1.0),
        ("5%%", "0.05", 1.0, 1.0),
        ("0", "0.0", 0.0, 0.0),  # a target of zero is compared as text
        ("inf", "inf", 0.0, 0.0),
        ("1_0", "١٠", 1.0, 1.0),  # whatever float() reads
        (" Blue", ["red", "blue"], 1.0, 1.0),
        ("5", "5 %", 0.0, 0.0),
    ],
)
def test_relaxed_accuracy_in_both_orders(answer, annotation, official, documented):
    assert relaxed.score(answer, annotation) == official
    assert relaxed.score(answer, annotation, official=False) == documented


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("dog", ["dog"], 1.0),
        ("dgo", ["dog"], 0.0),  # 2 edits of 3
        ("ab", ["ax"], 0.5),  # exactly one half is kept
        ("sheep    ", ["sheepxx"], 1 - 2 / 9),  # spaces count in the length only
        ("ß", ["x"], 0.5),  # one edit over len("SS")
        ("", [" "], 1.0),
        ("", ["x", ""], 1.0),
    ],
)
def test_anls(prediction, answers, expected):
    assert anls.score(prediction, answers) == pytest.approx(expected, abs=1e-12)


# === Boxes ===


def test_grounding_parses_the_first_pair_only():
    assert grounding.parse_box("<box>(1,2),(3,4)</box>(5,6),(7,8)") == (1, 2, 3, 4)
    assert grounding.parse_box("a(b)(1,2),(3,4)") is None
    assert grounding.parse_box("(1,2), (3,4)") is None


def test_grounding_scores():
    right = grounding.score("(0,0),(999,999)", [0, 0, 640, 480], width=640, height=480)
    assert right.correct
    assert right.iou == 1.0
    half = grounding.score("(0,0),(999,999)", [0, 0, 320, 480], width=640, height=480)
    assert half.iou == 0.5
    assert half.correct
    none = grounding.score("no box", [0, 0, 640, 480], width=640, height=480)
    assert (none.parsed, none.correct) == (None, False)
    assert math.isnan(grounding.score("(1,1),(1,1)", [5, 5, 5, 5], 10, 10).iou)


# === Yes or no ===


def test_mme_labels_look_at_four_characters():
    cases = {"Yes.": "yes", "  Yes": "other", "know": "no", "eyes": "yes", "": "other", "The no": "other"}
    assert {answer: mme.label(answer) for answer in cases} == cases


def test_mme_counts_questions_and_images():
    counts = mme.count(["Yes", "No", "Yes", "No"], ["yes", "no", "yes", "maybe"])
    assert counts == mme.Subtask(images=2, right=3, both_right=1, other=1)
    assert counts.score == 75 + 50
    with pytest.raises(ValueError, match="two in a row"):
        mme.count(["Yes"], ["yes"])
    with pytest.raises(ValueError, match="missing"):
        mme.total({"OCR": counts}, mme.PERCEPTION)


def test_mme_published_scores_of_qwen_vl_chat_sum_up():
    """Whole numbers of right answers whose scores are the published ones (paper Table 7): 1487.58 and 360.71."""
    points = {  # questions right + 2 x images with both right, images
        "existence": (95, 30), "count": (90, 30), "position": (77, 30), "color": (102, 30), "posters": (525, 147),
        "celebrity": (410, 170), "scene": (609, 200), "landmark": (656, 200), "artwork": (502, 200), "OCR": (56, 20),
        "commonsense_reasoning": (183, 70), "numerical_calculation": (16, 20), "text_translation": (59, 20),
        "code_reasoning": (17, 20),
    }  # fmt: skip
    counted = {}
    for name, (total, images) in points.items():
        both, one = divmod(total, 4)
        counted[name] = mme.count(
            ["Yes"] * 2 * images,
            ["yes"] * 2 * both + ["yes", "no"] * one + ["no"] * 2 * (images - both - one),
        )
    assert round(mme.total(counted, mme.PERCEPTION), 2) == 1487.58
    assert round(mme.total(counted, mme.COGNITION), 2) == 360.71
    assert round(counted["celebrity"].score, 2) == 120.59


# === Likelihood ===


def test_choice_is_by_the_mean_and_not_the_sum():
    found = multiple_choice.choose([[-9.0, -9.0, -1.0], [-0.6, -0.6, -0.6]], [1, 3])
    assert found.mean_nll.tolist() == pytest.approx([1.0, 0.6])
    assert found.chosen == 1
    assert multiple_choice.likeliest(found.nll_sums) == 0
    assert multiple_choice.choose([[-1.0], [-1.0]], [1, 1]).chosen == 0
    assert multiple_choice.choose([[-1.0], [math.nan]], [1, 1]).chosen is None
    with pytest.raises(ValueError, match="expected 1 to 1"):
        multiple_choice.choose([[-1.0]], [2])


def test_prompts_and_frames():
    assert multiple_choice.scienceqa_prompt("a.png", "Why?", ["x", "y"], None) == (
        "<img>a.png</img>Context: N/A\nQuestion: Why?\nOptions: A. x\nB. y\nAnswer:"
    )
    assert multiple_choice.seed_prompt(["a", "b"], "Why?", ["x"]).startswith(
        "<img>a</img>\n<img>b</img>\nQuestion: "
    )
    assert multiple_choice.even_frames(8, 8) == [0, 1, 2, 3, 4, 4, 5, 6]  # round half to even
    assert multiple_choice.seed_frames(301, 30.0) == [18, 55, 93, 130, 168, 205, 242, 280]
    assert multiple_choice.seed_frames(48, 29.97, (0.74, 5.58)) == [23, 26, 29, 32, 35, 38, 41, 44]


def test_left_padding_masks_by_place_and_not_by_id():
    ids, mask = multiple_choice.left_pad([[7, 5], [1, 2, 3]], pad_id=7)
    assert np.array_equal(ids, [[7, 7, 5], [1, 2, 3]])
    assert np.array_equal(mask, [[0, 1, 1], [1, 1, 1]])


# === A judge ===


def test_touchstone_counts_nonsense_apart():
    replies = [
        touchstone.Reply("8 6\nbecause", 1),
        touchstone.Reply("9, 7.5", 2),
        touchstone.Reply("I cannot say", 1),
        touchstone.Reply("11 4", 1),
        touchstone.Reply("", 2),
    ]
    rated, unusable = touchstone.count(replies)
    assert (rated, unusable) == (Tally(15.5, 2), 3)
    assert touchstone.score(rated) == 775.0
