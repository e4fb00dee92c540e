"""Raw image-text pairs with planted defects: what cleaning is shown on, because here the truth is known.

Every pair has one defect or none, and says which rule must catch it. Pair number `index` is a pure function of (seed,
index); texts and images of sound pairs are all different.
"""

import io
import json
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image as pillow

from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.parquet import write_parquet
from qwenvl.data.shards import dump, write_json_lines
from qwenvl.data.tars import TarWriter, write_tar
from qwenvl.files import atomic
from qwenvl.images import open_image
from qwenvl.parsing import json_lines

KEPT = "kept"


def _words(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(separator))


_NOUNS = _words(
    "dog cat horse bicycle bridge river kitchen garden tower violin lantern basket ladder harbour meadow candle "
    "teapot jacket window statue lighthouse orchard balcony piano carriage pumpkin market station cottage umbrella"
)
_KINDS = _words(
    "small old bright wooden quiet red blue tall narrow broken golden round empty crowded painted rusty silver frozen "
    "sunny grey striped huge elegant plain dusty green"
)
_DEEDS = _words(
    "stands beside,rests under,is seen behind,leans against,is carried past,was built near,shines above", ","
)
_PLACES = _words(
    "at sunset,in the rain,on a summer morning,in early spring,after the storm,before dawn,in deep snow", ","
)

_ZH_KINDS = _words(
    "红色的 蓝色的 古老的 明亮的 小小的 安静的 破旧的 金色的 圆圆的 高大的 木头的 绿色的 雪白的 空空的"
)
_ZH_NOUNS = _words(
    "小狗 花猫 自行车 石桥 厨房 花园 灯塔 提琴 灯笼 篮子 梯子 港口 草地 蜡烛 茶壶 外套 窗户 雕像 雨伞 市场"
)
_ZH_DEEDS = _words("站在 靠在 放在 停在 躲在 落在")
_ZH_ENDS = _words("旁边 后面 前面 下面 上面 附近")


@dataclass(kw_only=True)
class Planted:
    """One raw sample as its files will be, and what must become of it."""

    key: str
    expected: str = KEPT
    """KEPT, a rule of the funnel, or the kind of a failure."""
    defect: str = "none"
    """What was planted, finer than the rule."""
    text: str = ""
    clean_text: str = ""
    """What the text must be once it is cleaned."""
    image: bytes = b""
    columns: dict[str, Any] = field(default_factory=dict)
    raw_json: bytes | None = None
    """Written instead of the columns."""


def caption(rng: random.Random, chinese: bool = False) -> str:
    """A sentence that no rule objects to."""
    if chinese:
        return (
            f"{rng.choice(_ZH_KINDS)}{rng.choice(_ZH_NOUNS)}{rng.choice(_ZH_DEEDS)}{rng.choice(_ZH_KINDS)}"
            f"{rng.choice(_ZH_NOUNS)}和{rng.choice(_ZH_KINDS)}{rng.choice(_ZH_NOUNS)}{rng.choice(_ZH_ENDS)}"
        )
    return (
        f"A {rng.choice(_KINDS)} {rng.choice(_NOUNS)} {rng.choice(_DEEDS)} the {rng.choice(_KINDS)} "
        f"{rng.choice(_KINDS)} {rng.choice(_NOUNS)} {rng.choice(_PLACES)} "
        f"with {rng.choice(_KINDS)} {rng.choice(_NOUNS)}s"
    )


def image(rng: random.Random, width: int = 320, height: int = 240, quality: int = 60) -> bytes:
    """A JPEG of soft coloured patches, unlike any other."""
    return encoded(patches(rng).resize((width, height), pillow.Resampling.BILINEAR), quality)


def patches(rng: random.Random) -> pillow.Image:
    """Nine by eight colours: what a perceptual hash sees of an image."""
    noise = np.frombuffer(rng.randbytes(8 * 9 * 3), np.uint8).reshape(8, 9, 3)
    return pillow.fromarray(noise)


def encoded(shown: pillow.Image, quality: int = 60) -> bytes:
    """JPEG bytes."""
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


# === Defects: each takes a sound pair and spoils it ===

Spoil = Callable[[Planted, random.Random], None]


def _text(make: Callable[[str, random.Random], str], *, cleaned: bool = False) -> Spoil:
    def spoil(pair: Planted, rng: random.Random) -> None:
        pair.text = make(pair.text, rng)
        if not cleaned:
            pair.clean_text = pair.text

    return spoil


def _column(**columns: Any) -> Spoil:
    return lambda pair, rng: pair.columns.update(columns)


def _size(width: int, height: int) -> Spoil:
    def spoil(pair: Planted, rng: random.Random) -> None:
        pair.image = image(rng, width, height)

    return spoil


def _bytes(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(pair: Planted, rng: random.Random) -> None:
        pair.image = change(pair.image)

    return spoil


def _frame_header(data: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its header."""
    place = data.index(b"\xff\xc0")
    return data[: place + 5] + struct.pack(">HH", height, width) + data[place + 9 :]


def _raw(make: Callable[[bytes], bytes]) -> Spoil:
    def spoil(pair: Planted, rng: random.Random) -> None:
        pair.raw_json = make(dump({"text": pair.text, **pair.columns}))

    return spoil


def _repeats(pair: Planted, rng: random.Random) -> None:
    pair.text, pair.clean_text = pair.text + " sale" * 5, pair.text + " sale"


def _nan(pair: Planted, rng: random.Random) -> None:
    pair.raw_json = json.dumps({"text": pair.text, **pair.columns, "clip_score": float("nan")}).encode()


def _tag_soup(text: str, rng: random.Random) -> str:
    return ", ".join(f"{rng.choice(_KINDS)} {rng.choice(_NOUNS)}" for _ in range(12))


def _german(text: str, rng: random.Random) -> str:
    return f"Das ist ein {rng.choice(_NOUNS)} auf dem Weg zu der Stadt {rng.random():.5f}"


def _spanish(text: str, rng: random.Random) -> str:
    return f"Una {rng.choice(_NOUNS)} en el jardín con los perros {rng.random():.5f}"


def _numbers(text: str, rng: random.Random) -> str:
    return f"{rng.randint(1, 10**6)} 23x45 / $19.99 (4.5) 12:30 model {rng.randint(1, 999)}"


def _identifier(text: str, rng: random.Random) -> str:
    return f"product {rng.randbytes(14).hex()} front view"


DEFECTS: Mapping[str, tuple[str, Spoil]] = MappingProxyType(
    {
        "elongated": ("aspect ratio", _size(1200, 220)),
        "tall": ("aspect ratio", _size(210, 900)),
        "thumbnail": ("small image", _size(120, 100)),
        "low score": ("clip score", _column(clip_score=0.11)),
        "Russian": ("language", _text(lambda t, r: t + " красивый вид")),
        "Japanese": ("language", _text(lambda t, r: t + " きれいなもの")),
        "Korean": ("language", _text(lambda t, r: "아름다운 " + t)),
        "Thai": ("language", _text(lambda t, r: "สวยงาม " + t)),
        "German": ("language", _text(_german)),
        "Spanish": ("language", _text(_spanish)),
        "smiley": ("emoji", _text(lambda t, r: t + " \U0001f600")),
        "flag": ("emoji", _text(lambda t, r: "\U0001f1eb\U0001f1f7 " + t)),
        "star": ("emoji", _text(lambda t, r: "\u2b50 " + t)),
        "one word": ("length", _text(lambda t, r: r.choice(_NOUNS))),
        "an essay": ("length", _text(lambda t, r: " ".join(caption(r) for _ in range(12)))),
        "a megabyte": ("length", _text(lambda t, r: (t + " ") * (1_000_000 // len(t)))),
        "mojibake": ("mojibake", _text(lambda t, r: t.replace("A ", "CafÃ© ") + " â€œnewâ€\u009d")),
        "identifier": ("irregular", _text(_identifier)),
        "numbers": ("irregular", _text(_numbers)),
        "tag soup": ("irregular", _text(_tag_soup)),
        "person tag": ("special tags", _text(lambda t, r: t + " by <PERSON>")),
        "unsafe": ("unsafe", _column(punsafe=0.97)),
        "watermark": ("watermark", _column(pwatermark=0.99)),
        "tags": (KEPT, _text(lambda t, r: f"<p class='x'>{t}</p><br/>", cleaned=True)),
        "entities": (KEPT, _text(lambda t, r: t.replace(" ", "&nbsp;", 2) + "&lt;br&gt;", cleaned=True)),
        "url": (KEPT, _text(lambda t, r: f"{t} http://example.com/p?id={r.randint(1, 999)}", cleaned=True)),
        "file name": (KEPT, _text(lambda t, r: f"IMG_{r.randint(1000, 9999)}.JPG - {t}", cleaned=True)),
        "boilerplate": (KEPT, _text(lambda t, r: f"{t} | Royalty-Free Stock Photo", cleaned=True)),
        "repeats": (KEPT, _repeats),
        "control characters": (KEPT, _text(lambda t, r: "\ufeff" + t.replace(" ", "\u200b \t", 1), cleaned=True)),
        "truncated": ("truncated image", _bytes(lambda data: data[: len(data) // 2])),
        "false size": ("image lies about its size", _bytes(lambda data: _frame_header(data, 1200, 1200))),
        "bomb": ("decompression bomb", _bytes(lambda data: _frame_header(data, 60000, 60000))),
        "not an image": ("no image", _bytes(lambda data: b"<html>404 Not Found</html>")),
        "broken UTF-8": ("broken UTF-8", _raw(lambda line: line.replace(b'":"', b'":"\xff\xfe', 1))),
        "broken JSON": ("broken JSON", _raw(lambda line: line[:-8])),
        "empty caption": ("empty caption", _text(lambda t, r: "  ")),
        "NaN score": ("score is not finite", _nan),
    }
)  # fmt: skip
"""Name of a defect -> what must catch it, and how it is planted."""

COPIES = (
    "exact copy",
    "shorter text",
    "same text",
    "almost same text",
    "almost same image",
    "benchmark text",
)
"""Defects that take something from another pair; they follow it."""

_COPY_RULES = (
    "exact duplicates", "longest text", "duplicate text", "near texts", "near images", "benchmark"
)  # fmt: skip


def planted(count: int, seed: int = 0, share: float = 0.5) -> list[Planted]:
    """`count` raw pairs, `share` of them (rounded down) with a defect, every kind of defect as often as the others.

    The others are sound; every fifth pair is in Chinese.
    """
    kinds = [*DEFECTS, *COPIES]
    pairs: list[Planted] = []
    sound: list[Planted] = []
    defects = 0
    seen: set[str] = set()
    for index in range(count):
        rng = random.Random(f"raw pairs {seed} {index}")
        pair = _sound(index, rng, seen)
        if int((index + 1) * share) > int(index * share):
            name = kinds[defects % len(kinds)]
            defects += 1
            if name in DEFECTS:
                pair.defect, pair.expected = name, DEFECTS[name][0]
                DEFECTS[name][1](pair, rng)
            else:
                _copy(pair, name, sound, rng)
        else:
            sound.append(pair)
        pairs.append(pair)
    return pairs


def _sound(index: int, rng: random.Random, seen: set[str]) -> Planted:
    kind = index % 5 == 0
    text = caption(rng, kind)
    while text in seen:
        text = caption(rng, kind)
    seen.add(text)
    columns = {"clip_score": round(rng.uniform(0.3, 0.45), 4), "punsafe": 0.01, "pwatermark": 0.1}
    return Planted(key=f"{index:08d}", text=text, clean_text=text, image=image(rng), columns=columns)


def _copy(pair: Planted, name: str, sound: list[Planted], rng: random.Random) -> None:
    """Take text or image of a sound pair that nobody has taken from yet."""
    pair.defect, pair.expected = name, _COPY_RULES[COPIES.index(name)]
    if name == "benchmark text":
        pair.text = f"{benchmark_texts()[rng.randrange(3)]} number {rng.randrange(10**6)}"
        return
    model = next((each for each in sound if len(each.text) > 60), None)
    if model is None:
        pair.defect, pair.expected = "none", KEPT
        return
    sound.remove(model)
    if name in ("exact copy", "shorter text"):
        pair.image = model.image
        pair.text = model.text if name == "exact copy" else model.text.rpartition(" with ")[0]
    elif name == "same text":
        pair.text = model.text.upper() + "!"
    elif name == "almost same text":
        pair.text = model.text[:-1]
    else:
        shown = open_image(model.image)
        pair.image = encoded(shown.resize((300, 225), pillow.Resampling.BICUBIC), 50)


def benchmark_texts() -> list[str]:
    """Three captions that a benchmark is said to hold."""
    rng = random.Random("benchmark")
    return [f"Benchmark says that {caption(rng).lower()} for everybody" for _ in range(3)]


# === On disk, as crawlers leave it ===


def write_raw(pairs: Sequence[Planted], folder: Path, *, shards: int = 8, cut: bool = True) -> None:
    """The pairs in `shards` shards: tars, but the last two are parquet and JSON lines with image files.

    What parquet cannot hold (broken bytes) goes to tars. With `cut`, one more tar holds a sample and breaks off in the
    second: exactly one "cut tar".
    """
    folder.mkdir(parents=True, exist_ok=True)
    tars = max(1, shards - 2)
    rows: list[list[Planted]] = [[] for _ in range(shards)]
    for number, pair in enumerate(pairs):
        place = number * shards // len(pairs)
        rows[place if place < tars or pair.raw_json is None else number % tars].append(pair)
    for number, members in enumerate(rows):
        name = f"raw-{number:03d}"
        if number < tars:
            with write_tar(folder / f"{name}.tar") as tar:
                for pair in members:
                    _add(tar, pair)
        elif number == tars:
            write_parquet(
                folder / f"{name}.parquet",
                [
                    {"key": p.key, "TEXT": p.text, "image": {"bytes": p.image, "path": None}, **p.columns}
                    for p in members
                ],
            )
        else:
            _write_lines(members, folder / f"{name}.jsonl")
    if cut:
        write_cut_tar(folder / f"raw-{shards:03d}.tar")


def _add(tar: TarWriter, pair: Planted) -> None:
    tar.add(f"{pair.key}.jpg", pair.image)
    tar.add(f"{pair.key}.json", pair.raw_json or dump({"text": pair.text, **pair.columns}))


def _write_lines(pairs: Sequence[Planted], path: Path) -> None:
    (path.parent / "images").mkdir(exist_ok=True)
    with write_json_lines(path) as write:
        for pair in pairs:
            (path.parent / "images" / f"{pair.key}.jpg").write_bytes(pair.image)
            write({"key": pair.key, "image": f"images/{pair.key}.jpg", "text": pair.text, **pair.columns})


def write_cut_tar(path: Path) -> None:
    """A tar of one sound sample that ends in the middle of the image of a second."""
    buffer = io.BytesIO()
    tar = TarWriter(buffer)
    seen: set[str] = set()
    for index in (99_999_990, 99_999_991):
        _add(tar, _sound(index, random.Random(f"cut {index}"), seen))
    data = buffer.getvalue()
    with atomic(path) as file:
        file.write(data[: len(data) * 7 // 10])


def strict() -> Thresholds:
    """Thresholds with every rule on, so that every planted defect meets its own."""
    return Thresholds(
        languages=("en", "zh"),
        clip_score=0.28,
        special_tags=r"<[A-Z_]{2,}>",
        exact_duplicates=True,
        longest_text=True,
        duplicate_text=True,
        near_texts=0.85,
        near_images=3,
        unsafe=0.5,
        watermark=0.8,
    )


def became(out: Path) -> dict[str, str]:
    """Key -> rule or kind of failure, for every sample that a cleaning run into `out` did not keep."""
    fates: dict[str, str] = {}
    for path in sorted((out / "aside").glob("*.jsonl")):
        for _, entry in json_lines(path):
            fates[entry["key"]] = entry["reason"] if entry["rule"] == "failed" else entry["rule"]
    return fates
