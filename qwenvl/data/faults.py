"""What can be wrong with a training sample: kinds that are counted, each with what to do about it."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from qwenvl.markup import GRID

_LAYOUTS = (
    "docs/DATA.md lists the layouts: {'conversations': [{'from': 'user', 'value': ...}, ...]} and others."
)

FIXES: Mapping[str, str] = MappingProxyType(
    {
        "form": _LAYOUTS,
        "broken JSON": "write a JSON object per sample; `python -m json.tool FILE` shows where a list breaks off.",
        "broken record": "write records as `qwenvl.data.records.to_json` does.",
        "broken markup": "close every tag: <img>path</img>, <ref>phrase</ref>, <box>(x1,y1),(x2,y2)</box>, <quad>.",
        "boxes in pixels": "write thousandths, 0 to 999: markup.Box.from_pixels(x1, y1, x2, y2, width, height).",
        "boxes as fractions": "boxes are integers from 0 to 999: multiply by 1000 and round, at most 999.",
        "boxes reach 1000": "the grid has 1000 cells, 0 to 999: write 999 for the right and lower border.",
        "swapped corners": "write the top left corner first: <box>(left,top),(right,bottom)</box>.",
        "boxes of another format": "boxes.from_tags rewrites tags of Qwen2-VL and InternVL, boxes.from_objects the "
        "`objects` of ms-swift; write those of others as <ref>phrase</ref><box>(x1,y1),(x2,y2)</box>.",
        "image marks of another format": "write <image> where an image stands and name its file under `images`.",
        "image count": "give as many images as the text has <image> marks, or name each in it: <img>path</img>.",
        "image numbers": "number images 1, 2, 3 ... through all turns: 'Picture 1: <img>a.jpg</img>\\n'.",
        "image at a URL": "download it and name the file; images are never fetched while training.",
        "missing image": "a relative path starts at the data file's folder, or at --images FOLDER.",
        "path outside the folder": "name the folder that holds the images: --images FOLDER.",
        "no image": "name the image's file under `image`, or leave the sample to a set of texts.",
        "damaged image": "the file is truncated or no image; copy it again from its source.",
        "turned image": "boxes were drawn on the turned image, the model sees it as stored: save the files upright "
        "(images.upright), or drop their EXIF if the boxes are those of the stored image.",
        "unused content": "training reads texts and images only: remove the sample, or the key if it means nothing.",
        "leading answer": "begin with the user's turn; the official script drops such an answer without a word.",
        "cut image": "the official script would cut an image in two here; raise --sequence-length or split it.",
        "over-long": "split the dialogue or raise --sequence-length; the sample is left out of training, never cut.",
        "nothing learned": "answers are empty or missing, all labels are masked; give the assistant something to say.",
        "empty caption": "give each image a text, or remove it.",
        "image as base64": "decode it to a file and name that, or write it to parquet as bytes.",
        "broken UTF-8": "save the text as UTF-8.",
        "failed download": "download it again, or leave it: it is left out of training.",
        **dict.fromkeys(
            ("cell too large", "line too long", "file too large"),
            "64 MiB are read of a line, a cell or a file of a tar: keep images as files and name them.",
        ),
        **dict.fromkeys(
            ("damaged parquet", "damaged archive", "cut tar", "damaged tar header"),
            "get a fresh copy of the shard.",
        ),
        **dict.fromkeys(
            (
                "score is no number",
                "score is not finite",
                "size is no number",
                "size is not positive",
                "size is no number of pixels",
            ),
            "write a number there, or leave the column out.",
        ),
    }
)
"""Kind of fault -> what to do."""


class Unusable(ValueError):
    """A sample that cannot be trained on: `kind` is counted, the detail is for the person who looks."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.detail = kind, detail

    def __reduce__(self) -> tuple[type["Unusable"], tuple[str, str]]:
        return Unusable, (self.kind, self.detail)


_MARKED = re.compile(r"<(box|quad)>(.{0,300}?)</\1>", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_OTHER_BOXES = re.compile(
    r"<\|(?:box|quad|object_ref)_(?:start|end)\|>|<ref-object>|<bbox>|<box>\s*\[|<loc_?\d+>|<patch_index_\d+>|"
    r"<\|/?(?:ref|det|grounding)\|>|</ref>\s*\[\[|(?:<\d{1,4}>\s*){4}|\[\[\d{3}(?:,\d{3}){3}|<points?\s+[xy]\d*=|"
    r"<(?!box>|ref>|quad>)(?i:box|ref|quad)>"
)
_OTHER_IMAGES = re.compile(
    r"<\|(?:vision_start|vision_end|image_pad|image(?:_\d+)?|video(?:_pad)?)\|>|<ImageHere>|<IMG_CONTEXT>|"
    r"<image[-_ ]?placeholder>|<image_soft_token>|<start_of_image>|<fake_token_around_image>|<image[-_ ]?\d+>|"
    r"<(?:imgpad|image_pad|im_patch)>|<(?!image>|img>)(?i:image|img)>"
)


def box_fault(text: str) -> Unusable | None:
    """The first box of a text that is not on the grid; broken markup is for `markup.parse_trusted` to tell."""
    for marked in _MARKED.finditer(text):
        numbers = [float(number) for number in _NUMBER.findall(marked[2])]
        if len(numbers) != (4 if marked[1] == "box" else 8):
            continue
        if all(0 <= number <= 1 for number in numbers) and "." in marked[2]:
            return Unusable("boxes as fractions", f"has {marked[0]}.")
        if not all(0 <= number <= GRID for number in numbers):
            return Unusable("boxes in pixels", f"has {marked[0]}, which reaches {max(numbers, key=abs):g}.")
        if max(numbers) == GRID:
            return Unusable("boxes reach 1000", f"has {marked[0]}.")
    return None


def foreign_marks(text: str, role: str) -> Unusable | None:
    """The first mark of a text that another project's format gives a meaning, and ours would learn letter by letter."""
    if found := _OTHER_BOXES.search(text):
        return Unusable("boxes of another format", f"has {found[0]}.")
    if found := _OTHER_IMAGES.search(text):
        return Unusable("image marks of another format", f"has {found[0]}.")
    if role == "user" and (found := re.search(r"<(?:video|audio)>", text)):
        return Unusable("unused content", f"has {found[0]}.")
    return None
