"""A page that shows formatted samples as the model will learn them: ids, what is learned, boxes, the packed rows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from qwenvl import html
from qwenvl.data.clean.gallery import thumbnail
from qwenvl.data.formats import IGNORE, Example
from qwenvl.data.packing import DOCUMENT, fit, pack
from qwenvl.data.records import Record, from_json, images, kind_of
from qwenvl.data.shards import read_lines
from qwenvl.data.tasks import Format, example_of, formats_of
from qwenvl.html import Html, element
from qwenvl.images import draw_boxes, open_image
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
"""Boxes beyond which their names would hide the picture: it is shown larger, without them."""


def read_mixture(path: Path, limit: int) -> Iterator[tuple[Format, Record]]:
    """Records of JSON lines, plain or as `qwenvl data mix` writes them, with the format they are told in."""
    import json

    for _, line in read_lines(path):
        if limit == 0:
            return
        text = line.decode("utf-8", "replace")
        if text.startswith('{"format"'):
            line = json.loads(text)
            yield line["format"], from_json(json.dumps(line["record"]))
        else:
            record = from_json(text)
            yield formats_of(record)[0], record
        limit -= 1


def page(
    samples: Sequence[tuple[Format, Record]],
    tokenizer: Tokenizer,
    queries: int,
    row_length: int,
    packing: str,
) -> str:
    """The book of samples as one HTML file: each with its picture, ids and learned part, then how they pack."""
    examples = [example_of(record, tokenizer, queries, format) for format, record in samples]
    legend = (("yes", "learned"), ("no", "not learned"), ("img", "picture"))
    parts = [element("p", *(_token(kind, name, "id") for kind, name in legend), class_="ids")]
    for number, ((format, record), made) in enumerate(zip(samples, examples, strict=True)):
        kind = kind_of(record)
        title = format if format == kind else f"{format}, from a record of {kind}"
        parts.append(element("h2", f"{number}: {title} ({record.source or 'no source'})"))
        shown, ids = element("div", _images(record, made, tokenizer)), element("div", _ids(made, tokenizer))
        parts.append(element("div", shown, ids, class_="sample"))
    fitting = [number for number, made in enumerate(examples) if len(made) <= row_length]
    if fitting:
        names = [f"{number}: {samples[number][0]}" for number in fitting]
        parts.append(element("h2", f"packed into rows of {row_length} ({packing})"))
        parts.append(_rows([examples[number] for number in fitting], names, row_length, packing))
        if left_out := [str(number) for number in range(len(examples)) if number not in fitting]:
            told = f"too long for a row, never cut: {', '.join(left_out)}"
            parts.append(element("div", told, class_="bad"))
    return html.page("Formatted samples", *parts, style=STYLE)


def _token(kind: str, text: str, ids: str) -> Html:
    return element("span", text, element("small", ids), class_=kind)


def _images(record: Record, made: Example, tokenizer: Tokenizer) -> Html:
    """The pictures; where there is one, with all boxes of the sample drawn on it."""
    found = images(record)
    marks = [part for part in parse(tokenizer.decode(list(made.ids))) if isinstance(part, Box | Quad)]
    crowded = len(marks) > CROWDED
    if crowded:
        marks = [replace(mark, label=None) for mark in marks]
    shown = []
    for each in found:
        try:
            image = open_image(each.source)  # type: ignore[arg-type]
        except ValueError as error:
            shown.append(element("div", str(error)[:160], class_="bad"))
            continue
        if marks and len(found) == 1:
            image = draw_boxes(image, marks)
        shown.append(thumbnail(image, 640 if crowded else 320))
    if marks and len(found) > 1:
        shown.append(element("small", "boxes not drawn: several pictures"))
    return html.join(shown)


def _ids(made: Example, tokenizer: Tokenizer) -> Html:
    """Token by token, text above id; a label stands one place before the token that it teaches.

    Tokens that are parts of one character stand together; placeholders of a picture are told once, with their number.
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
    learned = sum(loss_mask)
    count = element("small", f"{len(made)} tokens, {learned} learned{rest}")
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
