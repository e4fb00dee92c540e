"""Boxes of other formats come back within half a cell of the grid, and boxes that mean nothing say why."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl.data import boxes
from qwenvl.data.boxes import BadBox
from qwenvl.markup import Box


@st.composite
def images_with_boxes(draw: Any) -> tuple[int, int, tuple[float, float, float, float]]:
    width, height = draw(st.integers(20, 4000)), draw(st.integers(20, 4000))
    x1, y1 = draw(st.floats(0, width - 2)), draw(st.floats(0, height - 2))
    x2, y2 = draw(st.floats(x1 + 1, width)), draw(st.floats(y1 + 1, height))
    return width, height, (x1, y1, x2, y2)


def assert_near(box: Box, corners: tuple[float, ...], width: int, height: int) -> None:
    """Half a cell, and a whole one at the right and lower edge, where 999 is the last cell."""
    for got, true, side in zip(box.to_pixels(width, height), corners, (width, height) * 2, strict=True):
        assert abs(got - true) <= (0.5005 if true < 0.999 * side else 1) * side / 1000


@given(images_with_boxes())
def test_every_converter_keeps_a_box_within_half_a_cell(example: Any) -> None:
    width, height, (x1, y1, x2, y2) = example
    corners = (x1, y1, x2, y2)
    shares = (x1 / width, y1 / height, x2 / width, y2 / height)
    centre = f"{(shares[0] + shares[2]) / 2!r} {(shares[1] + shares[3]) / 2!r}"
    yolo = f"0 {centre} {shares[2] - shares[0]!r} {shares[3] - shares[1]!r}"
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    bndbox = f"<bndbox><xmin>{x1 + 1!r}</xmin><ymin>{y1 + 1!r}</ymin><xmax>{x2!r}</xmax><ymax>{y2!r}</ymax></bndbox>"
    xml = f"<annotation>{size}<object><name>7</name>{bndbox}</object></annotation>"
    labelme = {"imageWidth": width, "imageHeight": height,
               "shapes": [{"label": "7", "shape_type": "rectangle", "points": [[x2, y1], [x1, y2]]}]}  # fmt: skip
    found = [
        boxes.from_corners(corners, width, height),
        boxes.from_coco((x1, y1, x2 - x1, y2 - y1), width, height),
        boxes.from_shares(shares, width, height),
        boxes.from_yolo(yolo, width, height, ["7"]),
        *boxes.from_voc(xml),
        *boxes.from_labelme(labelme),
        *boxes.from_entities(xml)[0]["7"],
    ]
    assert len(found) == 7
    for box in found:
        assert isinstance(box, Box)
        assert_near(box, corners, width, height)


@given(st.tuples(*[st.integers(0, 999)] * 4), st.integers(10, 3000), st.integers(10, 3000))
def test_boxes_of_the_grid_survive_coco_and_yolo(values: tuple[int, ...], width: int, height: int) -> None:
    x1, x2 = sorted(values[:2])
    y1, y2 = sorted(values[2:])
    if x1 == x2 or y1 == y2:
        return
    box = Box(x1, y1, x2, y2)
    assert boxes.from_coco(boxes.to_coco(box, width, height), width, height) == box
    assert boxes.from_yolo(boxes.to_yolo(box, 3), width, height) == box


@pytest.mark.parametrize(
    ("corners", "reason"),
    [
        ((10, 10, 5, 20), "box reversed"),
        ((10, 10, 10, 20), "box empty"),
        ((10, 10, 120, 20), "box outside the image"),
        ((-10, 10, 50, 20), "box outside the image"),
        ((float("nan"), 10, 50, 20), "box not finite"),
        ((0, 10, float("inf"), 20), "box not finite"),
        ((1, 2, 3), "box without four numbers"),
    ],
)
def test_a_box_that_means_nothing_says_why(corners: Any, reason: str) -> None:
    with pytest.raises(BadBox) as caught:
        boxes.from_corners(corners, 100, 100)
    assert str(caught.value) == reason


def test_a_pixel_beyond_the_border_is_moved_to_it() -> None:
    assert boxes.from_corners((-1, 0, 101, 50), 100, 100) == Box(0, 0, 999, 500)


def test_annotations_that_attack_are_refused() -> None:
    with pytest.raises(ValueError, match="declares an entity"):
        list(boxes.from_voc('<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation>&a;</annotation>'))
    with pytest.raises(ValueError, match="no XML"):
        list(boxes.from_voc("<annotation>"))
    for line in ("0 0.5", "x 1 2 3 4", ""):
        with pytest.raises(BadBox):
            boxes.from_yolo(line, 10, 10)


# === Other spellings in a text ===


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        (
            "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(10,20),(300,400)<|box_end|> sits",
            "<ref>a cat</ref><box>(10,20),(300,400)</box> sits",
        ),
        ("<box>[[1, 2, 3, 4], [5,6,7,8]]</box>", "<box>(1,2),(3,4)</box><box>(5,6),(7,8)</box>"),
        ("<|box_start|>(0,0),(1000,1000)<|box_end|>", "<box>(0,0),(999,999)</box>"),
        ("no box, <box>(1,2),(3,4)</box>", "no box, <box>(1,2),(3,4)</box>"),
    ],
)
def test_tags_of_other_models_become_ours(written: str, ours: str) -> None:
    assert boxes.from_tags(written) == ours


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("<|box_start|>(1,2),(3)<|box_end|>", "without four numbers"),
        ("<|box_start|>(1,2),(3,1001)<|box_end|>", "outside the image"),
        ("<box>[[-1, 2, 3, 4]]</box>", "outside the image"),
    ],
)
def test_tags_that_mean_nothing_are_refused(written: str, reason: str) -> None:
    with pytest.raises(BadBox, match=reason):
        boxes.from_tags(written)


def test_marks_of_ms_swift_are_filled_in_order_over_all_texts() -> None:
    objects = {"ref": ["the dog", "the cat"], "bbox": [[0, 0, 50, 100], [50, 50, 100, 200]]}
    filled = boxes.from_objects("<ref-object><bbox> and <ref-object><bbox>", objects, 100, 200)
    assert (
        filled
        == "<ref>the dog</ref><box>(0,0),(500,500)</box> and <ref>the cat</ref><box>(500,250),(999,999)</box>"
    )
    with pytest.raises(BadBox, match="fewer objects than marks"):
        boxes.from_objects("<bbox><bbox><bbox>", objects, 100, 200)
    with pytest.raises(BadBox, match="more objects than marks"):
        boxes.from_objects("<bbox>", objects, 100, 200)
    assert boxes.from_objects("nothing", {}, 100, 200) == "nothing"
