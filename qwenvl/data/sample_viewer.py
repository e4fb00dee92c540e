"""A page that shows formatted samples as the model will learn them: ids, what is learned, boxes, the packed rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from qwenvl import html
from qwenvl.data.clean.gallery import thumbnail
from qwenvl.data.conversations import samples
from qwenvl.data.faults import Unusable
from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.layouts import read
from qwenvl.data.packing import DOCUMENT, fit, pack
from qwenvl.data.records import Record, images, kind_of
from qwenvl.data.shards import find_shards
from qwenvl.data.stream.index import sample_index
from qwenvl.data.stream.samples import Located
from qwenvl.drawing import draw_boxes
from qwenvl.html import Html, element
from qwenvl.images import open_image
from qwenvl.markup import Box, Quad, parse
from qwenvl.tokenizer import Tokenizer

STYLE = """
.ids{font:12px/1.25 ui-monospace,monospace;border:1px solid var(--line);border-radius:6px;padding:6px}
.ids span{display:inline-block;border-radius:3px;padding:1px 2px;margin:1px 0;white-space:pre;vertical-align:top}
.ids small{display:block;font-size:9px;opacity:.7}
.yes{background:#d3e5ff;color:#0b3d91}.no{background:#f3f4f6;color:#5b6168}.img{background:#fde9c8;color:#7a4a00}
.sample{display:flex;gap:14px;margin:10px 0}.sample>div:last-child{flex:1;min-width:0}
.sample img{display:block;margin-bottom:6px}
.row{display:flex;height:26px;margin:3px 0;background:#eceff2;border-radius:3px;overflow:hidden}
.row div{border-right:2px solid #fff;font-size:11px;color:#fff;text-align:center;line-height:26px;overflow:hidden;
white-space:nowrap}
"""

COLOURS = ("#4363d8", "#3c8d40", "#b8562b", "#8e3ba8", "#17868b", "#a8324a")

LONGEST = 600
"""Tokens of one sample that are shown."""

CROWDED = 8
"""Boxes beyond which their names would hide the image: it is shown larger, without them."""


class Page(NamedTuple):
    """The page, and how much of the data it shows."""

    text: str
    shown: int
    usable: int
    total: int


def page(
    source: Path,
    tokenizer: Tokenizer,
    *,
    queries: int,
    row_length: int,
    packing: str,
    count: int,
    root: Path | None = None,
) -> Page:
    """The first `count` samples of whatever training reads as one HTML file, and how they pack.

    Each has its images, its ids and what is learned of them; one that cannot be used has the reason. Raises ValueError
    where there is no sample.
    """
    total = sum(len(sample_index(shard)) for shard in find_shards(source))
    if not total:
        raise ValueError(f"{source} holds no sample; there is nothing to show.")
    shown = list(islice(samples(source, root), count))
    legend = (("yes", "learned"), ("no", "not learned"), ("img", "image"))
    parts = [
        element("p", f"{len(shown):,} of {total:,} samples of {source.name}"),
        element("p", *(_token(kind, name, "id") for kind, name in legend), class_="ids"),
    ]
    made: dict[str, Example] = {}
    usable = 0
    for number, (where, sample) in enumerate(shown):
        try:
            if isinstance(sample, Unusable):
                raise sample
            found = read(sample, strict=False)
            example = found.example(tokenizer, queries)
        except Unusable as reason:
            parts += [
                element("h2", f"{number}: {where}"),
                element("div", f"cannot be used: {reason}", class_="bad"),
            ]
            continue
        made[f"{number}: {found.format}"] = example
        kind = kind_of(found.record)
        title = found.format if found.format == kind else f"{found.format}, from a record of {kind}"
        parts.append(element("h2", f"{number}: {title} ({found.record.source or 'no source'})"))
        seen, whole = _images(found.record, example, tokenizer)
        usable += whole
        sides = element("div", seen), element("div", _ids(example, tokenizer))
        parts.append(element("div", *sides, class_="sample"))
    parts += _packed(made, row_length, packing)
    return Page(html.page("Formatted samples", *parts, style=STYLE), len(shown), usable, total)


def _packed(made: Mapping[str, Example], row_length: int, packing: str) -> list[Html]:
    """How the examples share rows, and those that are too long for one by their numbers."""
    if not made:
        return []
    fitting = {name: example for name, example in made.items() if len(example) <= row_length}
    parts = [element("h2", f"packed into rows of {row_length} ({packing})")]
    if fitting:
        parts.append(_rows(list(fitting.values()), list(fitting), row_length, packing))
    if too_long := [name.partition(":")[0] for name in made if name not in fitting]:
        parts.append(element("div", f"too long for a row, never cut: {', '.join(too_long)}", class_="bad"))
    return parts


def _token(kind: str, text: str, ids: str) -> Html:
    return element("span", text, element("small", ids), class_=kind)


def _images(record: Record, made: Example, tokenizer: Tokenizer) -> tuple[Html, bool]:
    """The images, where there is one with all boxes of the sample drawn on it; and whether all could be opened."""
    found = images(record)
    marks = [part for part in parse(tokenizer.decode(list(made.ids))) if isinstance(part, Box | Quad)]
    crowded = len(marks) > CROWDED
    if crowded:
        marks = [replace(mark, label=None) for mark in marks]
    shown, whole = [], True
    for each in found:
        try:
            given = each.source.read() if isinstance(each.source, Located) else each.source
            image = open_image(given)  # type: ignore[arg-type]
        except (ValueError, OSError) as error:
            shown.append(element("div", str(error)[:160], class_="bad"))
            whole = False
            continue
        if marks and len(found) == 1:
            image = draw_boxes(image, marks)
        shown.append(thumbnail(image, 640 if crowded else 320))
    if marks and len(found) > 1:
        shown.append(element("small", "boxes not drawn: several images"))
    return html.join(shown), whole


def _ids(made: Example, tokenizer: Tokenizer) -> Html:
    """Token by token, text above id; a label stands one place before the token that it teaches.

    Tokens that are parts of one character stand together; placeholders of an image are told once, with their number.
    """
    loss_mask = [False, *(label != IGNORE for label in made.labels[:-1])]
    spans: list[Html] = []
    place = 0
    while place < min(len(made), LONGEST):
        token, stop = made.ids[place], place + 1
        kind = "img" if token == tokenizer.imgpad else "yes" if loss_mask[place] else "no"
        if kind == "img":
            while stop < len(made) and made.ids[stop] == token:
                stop += 1
            text, ids = f"{stop - place} × imgpad", str(token)
        else:
            while "\ufffd" in tokenizer.decode(list(made.ids[place:stop])) and stop < min(
                len(made), place + 4
            ):
                stop += 1
            text = tokenizer.decode(list(made.ids[place:stop])).replace("\n", "↵")
            ids = " ".join(map(str, made.ids[place:stop]))
        spans.append(_token(kind, text, ids))
        place = stop
    rest = f", {len(made) - place} more" if place < len(made) else ""
    supervised = sum(loss_mask)
    count = element("small", f"{len(made)} tokens, {supervised} learned{rest}")
    return html.join([element("div", *spans, class_="ids"), count])


def _rows(examples: Sequence[Example], names: Sequence[str], row_length: int, packing: str) -> Html:
    """A bar per row: a piece per document, as long as it is, in the colour of its segment."""
    lengths = [len(made) for made in examples]
    rows = pack(examples, row_length, packing=packing, pad_id=0)
    drawn = []
    for segments, members in zip(rows.segments, fit(lengths, row_length), strict=True):
        start, pieces = 0, []
        for member in members:
            colour = COLOURS[(int(segments[start]) // DOCUMENT - 1) % len(COLOURS)]
            look = f"width:{100 * lengths[member] / row_length:.3f}%;background:{colour}"
            title = f"{names[member]}, {lengths[member]} tokens, segment {int(segments[start])}"
            pieces.append(element("div", names[member], style=look, title=title))
            start += lengths[member]
        drawn.append(element("div", *pieces, class_="row"))
    legend = (
        f"{len(rows.ids)} rows, {rows.fill:.0%} filled; one colour in a row is one segment, grey is padding"
    )
    return html.join([*drawn, element("small", legend)])
