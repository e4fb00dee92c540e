"""Boxes of other people's formats: pixels or shares in, the model's grid [0, 1000) out (paper 2.2).

Every converter goes through corners in pixels; `Box.from_pixels` is the one place that rounds, so a box comes back
within half a grid cell (0.0005 of a side), plus the border cell 999 for boxes that touch the right or lower edge.
A box that is not finite, reversed, empty or outside its image raises BadBox: readers count it with that reason.
Files of many boxes give each its box or its BadBox, so that one bad box costs no other.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from xml.etree import ElementTree

from qwenvl.markup import GRID, Box, Quad

OVERSHOOT = 0.01
"""Share of a side by which annotators may miss the border; such corners move to it, beyond it the box is bad."""


class BadBox(ValueError):
    """A box that means nothing; the message is one of a few fixed reasons, so that it can be counted."""


class Frame(NamedTuple):
    """An image as the author of its boxes saw it."""

    width: int
    """Pixels in which the boxes are measured."""
    height: int
    orientation: int = 1
    """EXIF tag of the stored file where the author saw it turned by it (5 to 8), else 1."""


def from_corners(
    corners: Sequence[int | float], width: int, height: int, label: str | None = None, *, orientation: int = 1
) -> Box:
    """Left, top, right, bottom in pixels of a `width` x `height` image; raises BadBox.

    `orientation`: EXIF tag of an image that the corners measure as it is shown; the box is that of the stored pixels.
    """
    x1, y1, x2, y2 = _four(corners)
    _check([(x1, y1), (x2, y2)], width, height)
    if x2 < x1 or y2 < y1:
        raise BadBox("box reversed")
    if x2 == x1 or y2 == y1:
        raise BadBox("box empty")
    if orientation != 1:
        (x1, y1), (x2, y2) = (_as_stored(x, y, width, height, orientation) for x, y in ((x1, y1), (x2, y2)))
        x1, y1, x2, y2 = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        width, height = height, width
    return Box.from_pixels(x1, y1, x2, y2, width, height, label)


def _four(corners: Any) -> list[float]:
    try:
        numbers = [float(corner) for corner in corners]
    except (TypeError, ValueError, OverflowError):
        raise BadBox("box without four numbers") from None
    if len(numbers) != 4 or isinstance(corners, str):
        raise BadBox("box without four numbers")
    return numbers


def _as_stored(x: float, y: float, width: int, height: int, orientation: int) -> tuple[float, float]:
    """A point of an image on its side, from how it is shown (`width` x `height`) to how it is stored."""
    return {5: (y, x), 6: (y, width - x), 7: (height - y, width - x), 8: (height - y, x)}[orientation]


def _check(points: Sequence[tuple[int | float, int | float]], width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise BadBox("image without a size")
    if not all(math.isfinite(value) for point in points for value in point):
        raise BadBox("box not finite")
    dx, dy = max(1.0, OVERSHOOT * width), max(1.0, OVERSHOOT * height)
    if any(not (-dx <= x <= width + dx and -dy <= y <= height + dy) for x, y in points):
        raise BadBox("box outside the image")


def from_coco(bbox: Any, width: int, height: int, label: str | None = None, *, orientation: int = 1) -> Box:
    """COCO, RefCOCO and Visual Genome: left, top, width, height in pixels."""
    x, y, across, down = _four(bbox)
    return from_corners((x, y, x + across, y + down), width, height, label, orientation=orientation)


def to_coco(box: Box, width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, width, height in pixels."""
    x1, y1, x2, y2 = box.to_pixels(width, height)
    return x1, y1, x2 - x1, y2 - y1


def from_shares(
    corners: Sequence[int | float], width: int, height: int, label: str | None = None, *, orientation: int = 1
) -> Box:
    """GRIT and others: left, top, right, bottom as shares of the sides, 0 to 1."""
    x1, y1, x2, y2 = _four(corners)
    shares = (x1 * width, y1 * height, x2 * width, y2 * height)
    return from_corners(shares, width, height, label, orientation=orientation)


def from_yolo(line: str, width: int, height: int, names: Sequence[str] = ()) -> Box:
    """One line of a YOLO label file, in shares of the sides: class, centre x, centre y, width, height (confidence).

    A line of segmentation labels, class and the corners of a polygon, gives the box around it. Raises BadBox.
    """
    cells = line.split()
    try:
        number, shares = _class(cells[0]), [float(cell) for cell in cells[1:]]
    except (ValueError, IndexError):
        raise BadBox("box without four numbers") from None
    if len(shares) in (4, 5):
        x, y, across, down = shares[:4]
        corners = (x - across / 2, y - down / 2, x + across / 2, y + down / 2)
    elif len(shares) >= 6 and len(shares) % 2 == 0:
        corners = _around(shares[::2], shares[1::2])
    else:
        raise BadBox("box without four numbers")
    return from_shares(corners, width, height, names[number] if 0 <= number < len(names) else None)


def _class(cell: str) -> int:
    """The number of a class, which some tools write as `1.0`."""
    number = float(cell)
    if not number.is_integer():
        raise ValueError(cell)
    return int(number)


def _around(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float, float, float]:
    if not all(map(math.isfinite, (*xs, *ys))):
        raise BadBox("box not finite")
    return min(xs), min(ys), max(xs), max(ys)


def to_yolo(box: Box, number: int) -> str:
    """The line of a YOLO label file for this box of class `number`."""
    x1, y1, x2, y2 = box.to_pixels(1, 1)
    return f"{number} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}"


def from_voc(
    xml: str | ElementTree.Element, size: tuple[int, int] | None = None, *, orientation: int = 1
) -> Iterator[Box | BadBox]:
    """Pascal VOC: one XML file per image; pixels count from 1 there, and both corners belong to the box.

    `size`, width and height in pixels: by default what the file says.
    """
    root = parse_xml(xml) if isinstance(xml, str) else xml
    for thing in root.iter("object"):
        yield _attempt(partial(_voc_box, root, thing, thing.findtext("name"), size, orientation))


def _voc_box(
    root: ElementTree.Element,
    thing: ElementTree.Element,
    label: str | None,
    size: tuple[int, int] | None = None,
    orientation: int = 1,
) -> Box:
    left, top, right, bottom = (_number(thing, f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax"))
    width, height = size or (int(_number(root, "size/width")), int(_number(root, "size/height")))
    return from_corners((left - 1, top - 1, right, bottom), width, height, label, orientation=orientation)


def from_labelme(
    annotation: Mapping[str, Any], size: tuple[int, int] | None = None, *, orientation: int = 1
) -> Iterator[Box | BadBox]:
    """LabelMe JSON: shapes in pixels; one that is no rectangle gives the box around it.

    `size`, width and height in pixels: by default what the annotation says.
    """
    frame = Frame(*(size or (int(annotation["imageWidth"]), int(annotation["imageHeight"]))), orientation)
    for shape in annotation["shapes"]:
        yield _attempt(partial(_labelme_box, shape, frame))


def _labelme_box(shape: Any, frame: Frame) -> Box:
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        kind, label = shape.get("shape_type"), shape.get("label")
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        raise BadBox("box without four numbers") from None
    if kind == "circle" and len(points) == 2:  # its centre, and a point on it
        (x, y), (rim_x, rim_y) = points
        radius = math.hypot(rim_x - x, rim_y - y)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    if not points:
        raise BadBox("box without four numbers")
    corners = _around(*zip(*points, strict=True))
    name = str(label) if isinstance(label, str | int | float) and not isinstance(label, bool) else None
    return from_corners(corners, frame.width, frame.height, name, orientation=frame.orientation)


def from_entities(
    xml: str | ElementTree.Element, size: tuple[int, int] | None = None, *, orientation: int = 1
) -> tuple[Mapping[str, list[Box]], list[BadBox]]:
    """Flickr30K Entities, `Annotations/ID.xml`: phrase id -> its boxes, and what was wrong with others.

    Ids without a box are left out. Pixels count from 1 there as in VOC, and a few boxes touch 0.
    """
    root = parse_xml(xml) if isinstance(xml, str) else xml
    boxes: dict[str, list[Box]] = {}
    bad: list[BadBox] = []
    for thing in root.iter("object"):
        if thing.find("bndbox") is None:
            continue
        for edge in ("xmin", "ymin"):
            if (touching := thing.find(f"bndbox/{edge}")) is not None and touching.text == "0":
                touching.text = "1"
        box = _attempt(partial(_voc_box, root, thing, None, size, orientation))
        if isinstance(box, BadBox):
            bad.append(box)
            continue
        for name in thing.findall("name"):
            boxes.setdefault(name.text or "", []).append(box)
    return boxes, bad


def _attempt(make: Callable[[], Box]) -> Box | BadBox:
    try:
        return make()
    except BadBox as bad:
        return bad


_ENTITY = re.compile(r"\[/EN#(\d+)((?:/\w+)+) ([^\]]+)\]")


def entities_of(sentence: str) -> Iterator[tuple[str, str | None]]:
    """Flickr30K Entities, a line of `Sentences/ID.txt`: pieces of the caption, each with its phrase id or None.

    `[/EN#1/people A man] runs` -> ("A man", "1"), (" runs", None).
    """
    done = 0
    for found in _ENTITY.finditer(sentence):
        if found.start() > done:
            yield sentence[done : found.start()], None
        yield found[3], found[1]
        done = found.end()
    if done < len(sentence):
        yield sentence[done:], None


# === Other spellings in a text ===

_REF, _BOX = "<ref>{}</ref>", "<box>({},{}),({},{})</box>"
_QWEN2_REF = re.compile(r"<\|object_ref_start\|>(.*?)<\|object_ref_end\|>", re.DOTALL)
_QWEN2_BOX = re.compile(r"<\|box_start\|>(.*?)<\|box_end\|>", re.DOTALL)
_INTERN_BOX = re.compile(r"<box>\s*\[\s*((?:\[[^\[\]]*\]\s*,?\s*)+)\]\s*</box>")
_INTEGER = re.compile(r"-?\d+")


def from_tags(text: str) -> str:
    """A text with tags of Qwen2-VL (`<|box_start|>(x1,y1),..`) or InternVL (`<box>[[x1, ..]]</box>`), as ours.

    Both count thousandths as ours do; 1000 becomes 999. Raises BadBox for one without four numbers of 0 to 1000.
    """
    text = _QWEN2_REF.sub(lambda found: _REF.format(found[1]), text)
    text = _QWEN2_BOX.sub(lambda found: _spelt(found[1]), text)
    return _INTERN_BOX.sub(lambda found: "".join(map(_spelt, re.findall(r"\[([^\[\]]*)\]", found[1]))), text)


def _spelt(inner: str) -> str:
    found = _INTEGER.findall(inner)
    if len(found) != 4:
        raise BadBox("box without four numbers")
    numbers = [int(number[:9]) for number in found]  # of thousands of digits nine tell enough
    if not all(0 <= number <= GRID for number in numbers):
        raise BadBox("box outside the image")
    return _BOX.format(*(min(number, GRID - 1) for number in numbers))


def from_objects(text: str, objects: Mapping[str, Any], width: int, height: int) -> str:
    """A text of ms-swift with its `<ref-object>` and `<bbox>` filled in from `objects`: `ref`, and `bbox` in pixels.

    Raises BadBox where they are not as many as the text has marks for, over all texts that share them: join those.
    """
    phrases, boxes = iter(objects.get("ref") or ()), iter(objects.get("bbox") or ())

    def fill(mark: re.Match[str]) -> str:
        try:
            if mark[0] == "<ref-object>":
                return _REF.format(next(phrases))
            box = from_corners(next(boxes), width, height)
        except StopIteration:
            raise BadBox("fewer objects than marks") from None
        return _BOX.format(box.x1, box.y1, box.x2, box.y2)

    filled = re.sub("<ref-object>|<bbox>", fill, text)
    if next(boxes, None) is not None:
        raise BadBox("more objects than marks")
    return filled


def quad_from_corners(
    points: Sequence[tuple[int | float, int | float]], width: int, height: int, label: str | None = None
) -> Quad:
    """Four corners in pixels, clockwise from the top left; raises BadBox."""
    if len(points) != 4:
        raise BadBox("quad without four corners")
    _check(points, width, height)
    return Quad.from_pixels(points, width, height, label)


def parse_xml(xml: str) -> ElementTree.Element:
    """The root of an XML text; raises ValueError for one that is none, or declares entities."""
    if "<!ENTITY" in xml:  # a billion laughs: no annotation needs one
        raise ValueError("the XML annotation declares an entity; annotations have none.")
    try:
        return ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ValueError(f"the annotation is no XML ({error}).") from None


def _number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    try:
        number = float(text or "")
    except ValueError:
        raise BadBox("box without four numbers") from None
    if not math.isfinite(number):
        raise BadBox("box not finite")
    return number
