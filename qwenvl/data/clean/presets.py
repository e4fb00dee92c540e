"""Thresholds of every rule, and a preset for each row of Table 2.

The paper publishes the rules and what remained, not the numbers. These are starting points chosen so that an image
survives the squash to 224 px and a text fits stage 1 (512 tokens, 258 of them the image); `qwenvl data calibrate`
moves them until the share that Table 2 reports remains of *your* copy of the source.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from qwenvl.data.clean.rules import Detector
from qwenvl.parsing import parse_json, read_json


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """All that cleaning can be told; None switches a rule off."""

    aspect_ratio: int | float | None = 3.0
    """Long side over short side at most (rule 1)."""
    short_side: int | None = 200
    """Pixels at least (rule 2)."""
    clip_score: int | float | None = None
    """Cosine at least (rule 3)."""
    clip_score_at_most: int | float = 1.0
    """Cosine at most: drops images of the caption's own text."""
    languages: tuple[str, ...] | None = ("en",)
    """Languages whose letters may stand in a text (rule 4)."""
    detector: Detector = "words"
    """What looks at Latin text after the scripts: words (no library), cld2, or scripts (nothing)."""
    han_share: int | float = 0.0
    """Share of Chinese among the letters of a text at least."""
    emoji: bool = True
    """Drop texts with emoji (rule 5)."""
    words: tuple[int, int] | None = (3, 150)
    """Words, or Chinese characters, at least and at most (rule 6)."""
    characters: int = 1000
    """Characters at most (rule 6)."""
    html: bool = True
    """Clean entities and tags (rule 7)."""
    patterns: bool = True
    """Cut out URLs, file names, boilerplate, repeats (rule 8)."""
    letters: int | float | None = 0.5
    """Share of letters at least, else the text is no sentence (rule 8); with it go mojibake, identifiers, tag soup."""
    tags: int = 8
    """Short items in a list from which on it is tag soup."""
    special_tags: str | None = None
    """Expression of tags that academic sets put in place of names."""
    ground: tuple[int, int, int] | None = None
    """Not in the paper: red, green and blue of what stands behind transparency from then on; None leaves it."""
    template_titles: int | None = None
    """Not in the paper: pairs of one source from which on a title, figures aside, is a template, and none is kept."""
    longest_text: bool = False
    """Of several texts of one image keep the longest (academic sets)."""
    exact_duplicates: bool = False
    """Not in the paper: keep the first of equal pairs (same text and same image)."""
    duplicate_text: bool = False
    """Not in the paper: keep the first pair of equal texts, case and signs aside."""
    near_images: int | None = None
    """Not in the paper: bits of 64 by which perceptual hashes of near duplicates may differ, 0 to 7."""
    near_texts: int | float | None = None
    """Not in the paper: estimated Jaccard similarity from which on texts are near duplicates."""
    unsafe: int | float | None = None
    """Not in the paper: `punsafe` at most."""
    watermark: int | float | None = None
    """Not in the paper: `pwatermark` at most."""

    def __post_init__(self) -> None:
        if self.aspect_ratio is not None and self.aspect_ratio < 1:
            raise ValueError(
                f"aspect_ratio is {self.aspect_ratio}; it is long side over short side, 1 at least."
            )
        if self.words is not None and not 0 <= self.words[0] <= self.words[1]:
            raise ValueError(f"words is {self.words}; expected (least, most) with least <= most.")
        if self.special_tags is not None:
            try:
                re.compile(self.special_tags)
            except re.error as error:
                raise ValueError(f"special_tags is {self.special_tags!r}, no expression ({error}).") from None
        if self.ground is not None and not all(0 <= level <= 255 for level in self.ground):
            raise ValueError(f"ground is {self.ground}; expected levels of red, green and blue, 0 to 255.")
        if self.template_titles is not None and self.template_titles < 2:
            raise ValueError(f"template_titles is {self.template_titles}; expected 2 pairs or more.")
        if self.near_images is not None and not 0 <= self.near_images <= 7:
            raise ValueError(f"near_images is {self.near_images}; expected 0 to 7 of the 64 bits.")
        if self.near_texts is not None and not 0.5 <= self.near_texts <= 1:
            raise ValueError(f"near_texts is {self.near_texts}; expected a similarity of 0.5 to 1.")

    @classmethod
    def read(cls, path: Path) -> "Thresholds":
        """Thresholds from JSON as `qwenvl data calibrate --out` writes them; raises ValueError for unknown names."""
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds a {type(values).__name__}; expected an object of thresholds.")
        return cls().changed(values)

    def changed(self, values: Mapping[str, object]) -> "Thresholds":
        """These thresholds with some replaced by name."""
        known = [f.name for f in dataclasses.fields(self)]
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"there is no threshold {unknown[0]!r}; known: {', '.join(known)}.")
        hints = get_type_hints(type(self))
        for name, value in values.items():
            if not _fits(value, hints[name]):
                expected = str(hints[name]).replace("<class '", "").replace("'>", "").replace("typing.", "")
                raise ValueError(f"the threshold {name} is {value!r}; expected {expected}.")
        lists = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return dataclasses.replace(self, **lists)  # type: ignore[arg-type]


def _fits(value: object, expected: Any) -> bool:
    """Whether a value of JSON is of the type that an annotation names; NaN and infinities are none."""
    of = get_args(expected)
    if get_origin(expected) is UnionType:
        return any(_fits(value, each) for each in of)
    if get_origin(expected) is Literal:
        return isinstance(value, str) and value in of
    if get_origin(expected) is tuple:
        kinds = of[:1] * len(value) if isinstance(value, list | tuple) and of[-1] is ... else of
        return isinstance(value, list | tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One row of Table 2: what the paper reports, and our thresholds for it."""

    name: str
    dataset: str
    language: str
    original: int | float
    """Millions of pairs before cleaning."""
    cleaned: int | float
    """Millions of pairs after it."""
    remaining: int
    """Per cent, as printed."""
    thresholds: Thresholds


_ENGLISH = Thresholds()
_CHINESE = Thresholds(languages=("zh",), han_share=0.3, words=(4, 150), clip_score=None)
_ACADEMIC = Thresholds(longest_text=True, special_tags=r"<[A-Z_]{2,}>", letters=None, patterns=False)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        row.name: row
        for row in (
            Preset(name="laion-en", dataset="LAION-en", language="en", original=2000, cleaned=280, remaining=14,
                   thresholds=_ENGLISH.changed({"clip_score": 0.32, "short_side": 224, "aspect_ratio": 2.5})),
            Preset(name="laion-coco", dataset="LAION-COCO", language="en", original=600, cleaned=300, remaining=50,
                   thresholds=_ENGLISH.changed({"clip_score": 0.30})),
            Preset(name="datacomp", dataset="DataComp", language="en", original=1400, cleaned=300, remaining=21,
                   thresholds=_ENGLISH.changed({"clip_score": 0.28, "short_side": 224, "aspect_ratio": 2.5})),
            Preset(name="coyo", dataset="Coyo", language="en", original=700, cleaned=200, remaining=28,
                   thresholds=_ENGLISH.changed({"clip_score": 0.30})),
            Preset(name="cc12m", dataset="CC12M", language="en", original=12, cleaned=8, remaining=66,
                   thresholds=_ACADEMIC),
            Preset(name="cc3m", dataset="CC3M", language="en", original=3, cleaned=3, remaining=100,
                   thresholds=_ACADEMIC.changed({"aspect_ratio": None, "short_side": None, "words": [1, 150],
                                                 "languages": None, "emoji": False, "special_tags": None})),
            Preset(name="sbu", dataset="SBU", language="en", original=1, cleaned=0.8, remaining=80,
                   thresholds=_ACADEMIC),
            Preset(name="coco-caption", dataset="COCO Caption", language="en", original=0.6, cleaned=0.6,
                   remaining=100,
                   thresholds=_ACADEMIC.changed({"aspect_ratio": None, "short_side": None, "words": [1, 150],
                                                 "languages": None, "emoji": False, "special_tags": None,
                                                 "longest_text": False})),
            Preset(name="laion-zh", dataset="LAION-zh", language="zh", original=108, cleaned=105, remaining=97,
                   thresholds=_CHINESE.changed({"short_side": 100, "aspect_ratio": 5.0})),
            Preset(name="in-house-zh", dataset="In-house Data", language="zh", original=220, cleaned=220,
                   remaining=100,
                   thresholds=_CHINESE.changed({"aspect_ratio": None, "short_side": None, "words": [1, 300],
                                                "han_share": 0.0, "languages": ["en", "zh"], "letters": None})),
        )
    }
)  # fmt: skip
"""`--preset` -> row of Table 2. COCO keeps all its captions: the table says 0.6M of 0.6M, five of each image."""

NAMED = Preset(
    name="named", dataset="Named images", language="en", original=0, cleaned=0, remaining=100,
    thresholds=Thresholds(
        languages=("en", "zh"), detector="scripts", words=(1, 60), short_side=16, aspect_ratio=5.0,
        ground=(255, 255, 255), template_titles=20, exact_duplicates=True, near_images=2,
    ),
)  # fmt: skip
"""No row of Table 2: images that people named rather than described, such as `qwenvl data fetch drawings` brings.

A name may be one word or one Chinese character, and says too little for a detector of languages.
"""

KNOWN: Mapping[str, Preset] = MappingProxyType({**PRESETS, NAMED.name: NAMED})
"""Everything that `--preset` may name."""


def chosen(preset: str, thresholds: Path | None, changes: Sequence[str]) -> tuple[Preset, Thresholds]:
    """A row of Table 2, and its thresholds after a file of them and changes `NAME=VALUE` (the value is JSON).

    Raises ValueError for an unknown preset, name or value.
    """
    row = KNOWN.get(preset)
    if row is None:
        raise ValueError(f"there is no preset {preset!r}; known: {', '.join(KNOWN)}.")
    limits = row.thresholds if thresholds is None else Thresholds.read(thresholds)
    wanted: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or name in wanted:
            raise ValueError(
                f"--change {change!r} {'names a threshold again' if equals else 'has no value'}; give NAME=VALUE once."
            )
        wanted[name] = _value(value)
    return row, limits.changed(wanted)


def _value(text: str) -> Any:
    """What stands behind `--change NAME=`: JSON, else a word."""
    try:
        return parse_json(text, "the value")
    except ValueError:
        return text
