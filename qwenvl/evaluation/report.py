"""The score card as a page: one self-contained HTML file, and the same table in Markdown.

Value with its 95 % interval, the paper's value, the difference, questions answered, seconds, parse failures; a radar
image; right and wrong answers with their images and boxes. Several runs stand side by side.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as pillow

from qwenvl import html as pages
from qwenvl.drawing import draw_boxes
from qwenvl.evaluation.benchmarks import TOY_TABLE
from qwenvl.evaluation.card import EMBEDDED, Card, Record
from qwenvl.evaluation.predictions import write_whole
from qwenvl.evaluation.radar import radar
from qwenvl.evaluation.scoring import CIDER, FROM, TO
from qwenvl.html import Html, element
from qwenvl.images import open_image, rgb
from qwenvl.markup import Box, Quad, parse

SHOWN = 8
"""Right and wrong answers of each benchmark in the gallery."""
THUMBNAIL = 300
"""Pixels of the longer side of an image in the gallery."""

COLUMNS = (
    "Benchmark", "Model", "Score", "95 % interval", "Paper", "Difference", "Best rival", "n", "Unreadable", "Seconds"
)  # fmt: skip

TITLE = "Score card"
INTERVALS = "Intervals are 95 % (bootstrap over questions; Wilson in the four figures of toyworld)."

STYLE = """
table { width: 100% } td.rival { white-space: normal }
.radar { display: block; max-width: 760px; margin: 1rem auto; font-size: 13px }
.ring, .ray { fill: none; stroke: var(--line) }
"""


@dataclass(frozen=True)
class Run:
    """What a run's folder holds."""

    cards: Sequence[Card]
    records: Sequence[Record]


def markdown(cards: Sequence[Card], title: str = TITLE) -> str:
    """The table of all cards, one line per benchmark and model, and the parts of those that have some."""
    cards = _sorted(cards)
    header, rows = _filled(cards)
    lines = [
        f"# {pages.markdown(title)}",
        "",
        f"{INTERVALS} Of each benchmark the questions that its column n counts.",
        "",
    ]
    lines += [_line(header), "|---|---|" + "--:|" * (len(header) - 2), *map(_line, rows)]
    for card in cards:
        if card.score.groups:
            parts = [f"{name or 'other'} {value:.1f} ({n})" for name, (value, n) in card.score.groups.items()]
            lines += ["", pages.markdown(f"{card.title}, {card.model}, by part: {', '.join(parts)}.")]
        if card.score.notes:
            notes = [f"{name} {value:.1f}" for name, value in card.score.notes.items()]
            lines += ["", pages.markdown(f"{card.title}, {card.model}, also: {', '.join(notes)}.")]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(pages.markdown, cells)) + " |"


def _filled(cards: Sequence[Card]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, without the columns that are empty for every card."""
    table = [_cells(card) for card in cards]
    kept = [k for k in range(len(COLUMNS)) if any(cells[k] for cells in table)]
    return [COLUMNS[k] for k in kept], [[cells[k] for k in kept] for cells in table]


def html(runs: Sequence[Run], title: str = TITLE) -> str:
    """The whole page. Images that are gone are left out, and said so."""
    cards = _sorted([card for run in runs for card in run.cards])
    if not cards:
        raise ValueError("there is nothing to report; give folders that `qwenvl eval run` wrote.")
    models = list(dict.fromkeys(card.model for card in cards))
    parts = [
        _table(cards),
        _radar(cards, models),
        *(_parts(card) for card in cards if len(card.score.groups) > 1),
        *(_notes(card) for card in cards if card.score.notes),
    ]
    for run in runs:
        if run.cards and run.records:
            names = ", ".join(dict.fromkeys(card.title for card in run.cards))
            parts.append(element("h2", f"{names}: answers of {run.cards[0].model}"))
            parts.append(_gallery(run.records, ranked=run.cards[0].metric == CIDER.name))
    lead = f"{', '.join(models)}. {INTERVALS} Paper: arXiv 2308.12966."
    return pages.page(title, *parts, lead=lead, style=STYLE)


# === Tables ===


def _sorted(cards: Sequence[Card]) -> list[Card]:
    """Models of one benchmark beside each other, benchmarks in the order of first appearance."""
    order = list(dict.fromkeys((card.benchmark, card.shots) for card in cards))
    return sorted(cards, key=lambda card: order.index((card.benchmark, card.shots)))


def _cells(card: Card) -> list[str]:
    score, rival = card.score, card.published.best
    return [
        card.title,
        card.model,
        f"{score.value:.2f}",
        f"{score.low:.2f} .. {score.high:.2f}",
        "" if card.paper is None else f"{card.paper:g}",
        "" if card.difference is None else f"{card.difference:+.2f}",
        "" if rival is None else f"{rival:g} ({card.published.best_name})",
        f"{score.n}" if score.complete else f"{score.n} of {score.expected}",
        str(score.failures),
        f"{card.seconds:.0f}",
    ]


def _table(cards: Sequence[Card]) -> Html:
    header, table = _filled(cards)
    rows = []
    for card, cells in zip(cards, table, strict=True):
        marks = {
            "Model": "text",
            "Score": "value",
            "Best rival": "rival",
            "n": "" if card.score.complete else "bad",
        }
        if card.difference is not None:
            marks["Difference"] = "good" if card.difference >= 0 else "bad"
        named = zip(header, cells, strict=True)
        rows.append([element("td", cell, class_=marks.get(name, "")) for name, cell in named])
    return pages.table(header, rows, ["", "text"])


def _radar(cards: Sequence[Card], models: Sequence[str]) -> Html:
    rays = list(dict.fromkeys(card.title for card in cards))
    value = {(card.title, card.model): card.score.value for card in cards}
    series: dict[str, list[float | None]] = {
        model: [value.get((ray, model)) for ray in rays] for model in models
    }
    first = {card.title: card for card in reversed(cards)}
    for name, find in (("the paper", lambda c: c.paper), ("best rival", lambda c: c.published.best)):
        known = [find(first[ray]) for ray in rays]
        if any(known):
            shared = {c.published.best_name for c in cards}
            series[shared.pop() if name == "best rival" and len(shared) == 1 else name] = known
    return radar(rays, series, [_top(first[ray]) for ray in rays])


def _top(card: Card) -> float | None:
    """Where a ray of the toy world ends, which has no rivals to end it: at the best that can be."""
    if card.table != TOY_TABLE:
        return None
    return 1000.0 if card.metric == CIDER.name else 100.0


def _parts(card: Card) -> Html:
    rows = [[name or "other", f"{value:.2f}", f"{n}"] for name, (value, n) in card.score.groups.items()]
    summary = element("summary", f"{card.title}, {card.model}: parts")
    return element("details", summary, pages.table(["Part", "Score", "n"], rows, ["", "value"]))


def _notes(card: Card) -> Html:
    """What stands beside a score, with its interval where that is known."""
    notes = card.score.notes
    rows = []
    for name, value in notes.items():
        if name.endswith((FROM, TO)):
            continue
        ends = [notes[f"{name}{end}"] for end in (FROM, TO) if f"{name}{end}" in notes]
        rows.append([name, f"{value:.2f}", " .. ".join(f"{end:.2f}" for end in ends)])
    summary = element("summary", f"{card.title}, {card.model}: beside it")
    return element("details", summary, pages.table(["Beside", "Value", "95 % interval"], rows, ["", "value"]))


# === Galleries ===


def _gallery(records: Sequence[Record], ranked: bool) -> Html:
    """Right and wrong answers; of captions, which are neither, those of the lowest and the highest score."""
    if ranked:
        ordered = sorted(records, key=lambda record: float(record["score"]))
        half = min(SHOWN, (len(ordered) + 1) // 2)
        ends = {"Lowest scores": ordered[:half], "Highest scores": ordered[: -half - 1 : -1]}
        return pages.join(_figures(name, chosen) for name, chosen in ends.items())
    parts = []
    for name, wanted in (("Wrong", False), ("Right", True)):
        chosen = _evenly_chosen([record for record in records if record.get("right") is wanted])
        if chosen:
            total = sum(record.get("right") is wanted for record in records)
            parts.append(_figures(f"{name}: {len(chosen)} of {total}", chosen))
    return pages.join(parts)


def _figures(heading: str, chosen: Sequence[Record]) -> Html:
    return pages.join([element("h3", heading), element("div", *map(_figure, chosen), class_="grid")])


def _evenly_chosen(records: Sequence[Record]) -> list[Record]:
    """Group after group, so that every kind is seen, and each a little further on, so that images differ."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.get("group", ""), []).append(record)
    turned = [own[k % len(own) :] + own[: k % len(own)] for k, own in enumerate(groups.values())]
    return [own[k] for k in range(SHOWN) for own in turned if k < len(own)][: max(SHOWN, len(groups))]


def _figure(record: Record) -> Html:
    said = record["raw"] or "(nothing)"
    names = record["images"]
    shown = [_image(name, record, last=k == len(names) - 1) for k, name in enumerate(names)]
    group = f" ({record['group']})" if record.get("group") else ""
    asked = record["prompt"].replace("<img></img>", "[image] ")
    verdict = element("b", "Right" if record["right"] else "Wrong")
    caption = [
        pages.join([verdict, f"{group}, {float(record['score']):.3g}"]),
        asked[-300:],
        element("b", said[:400]),
        element("span", f"truth: {record['truth'][:300]}", class_="soft"),
    ]
    return pages.figure(shown, [pages.join(caption, pages.BR)], bool(record["right"]))


def _image(name: str, record: Record, last: bool) -> Html:
    try:
        image = image_of(name, record)
    except ValueError:
        return element("p", "(image not found)", class_="soft")
    boxes: list[Box | Quad] = []
    if last:
        boxes = [part for part in parse(record["raw"]) if isinstance(part, Box | Quad)]
        boxes += _truth(record)
    shown = sized(image, THUMBNAIL)
    return pages.image(draw_boxes(shown, boxes) if boxes else shown, THUMBNAIL)


def image_of(name: str, record: Record) -> pillow.Image:
    """An image of a line of scored.jsonl, as the model saw it. Raises ValueError where there is none."""
    source = base64.b64decode(name.removeprefix(EMBEDDED)) if name.startswith(EMBEDDED) else name
    return open_image(source, ground=rgb(record.get("ground")))


def _truth(record: Record) -> list[Box | Quad]:
    """The true box, where the answer was wrong."""
    if record["right"]:
        return []
    if record.get("box") and record.get("size"):
        (left, top, right, bottom), (width, height) = record["box"], record["size"]
        return [Box.from_pixels(left, top, right, bottom, width, height, label="truth")]
    wanted = [part for part in parse(record["truth"]) if isinstance(part, Box)]
    return [Box(box.x1, box.y1, box.x2, box.y2, label="truth") for box in wanted]


def sized(image: pillow.Image, side: int) -> pillow.Image:
    """The image with `side` pixels along its longer side."""
    factor = side / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, pillow.Resampling.LANCZOS).convert("RGB")


def write(runs: Sequence[Run], out: Path, title: str = TITLE) -> None:
    """`out` as HTML and its neighbour `.md` as Markdown. Raises ValueError if nothing can be written there."""
    pages: Mapping[Path, str] = {
        out: html(runs, title),
        out.with_suffix(".md"): markdown([card for run in runs for card in run.cards], title),
    }
    for path, text in pages.items():
        try:
            write_whole(path, text)
        except OSError as error:
            raise ValueError(
                f"cannot write {path} ({error.strerror}); give --out in a folder that you may write."
            ) from None
