"""`qwenvl ask`: one question about images."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from qwenvl.cli.answering import DEFAULTS, Answering, format_of, save_image

if TYPE_CHECKING:
    from qwenvl.chat import Reply


def ask(
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CKPT IMAGE... QUESTION")],
    /,
    *,
    out: Path | None = None,
    json: bool = False,
    n: int = 1,
    top_logprobs: int = 0,
    answer: Annotated[Answering, tyro.conf.arg(name="")] = DEFAULTS,
) -> None:
    """Ask a model one question about one or more images (or none) and print its answer.

    The question is text, whatever it spells; images are files.

        qwenvl ask tiny photo.jpg "Where is the red circle?" --out boxes.png

    Args:
        words: The model (a folder, a hub id or `tiny`), image files, and last the question in quotes.
        out: Draw the boxes of the answer on the last image and write it here.
        json: Print one JSON object: text, boxes and quads with pixels and score, seconds, tokens.
        n: Answers to write, 1 to 8, each drawn differently; with --sample, or --temperature.
        top_logprobs: With --json: the log-probability of each token, and of so many of the likeliest (1 to 20).
    """
    import sys

    checkpoint, images, question = _told_apart(words)
    if out is not None and not images:
        raise ValueError(f"--out {out} needs an image to draw on; name one before the question.")
    if out is not None:
        format_of(out)
    if top_logprobs and not json:
        raise ValueError(f"--top-logprobs {top_logprobs} is printed by --json alone; add it.")
    from time import perf_counter

    from qwenvl.terminal import printable, printable_json

    options = answer.options(n=n, top_logprobs=top_logprobs)
    assistant, opened = answer.load(checkpoint, images)
    start = perf_counter()
    reply = assistant.ask(opened, question, options)
    seconds = perf_counter() - start
    if out is not None:
        print(printable(save_image(reply, out)), file=sys.stderr)
    if json:
        written = sum(each.tokens for each in (reply, *reply.alternatives))
        facts = {**_told(reply, top_logprobs), "seconds": round(seconds, 3), "tokens": written}
        if n > 1:
            facts["alternatives"] = [_told(each, top_logprobs) for each in reply.alternatives]
        print(printable_json(facts))
    else:
        print("\n\n".join(printable(each.text, lines=True) for each in (reply, *reply.alternatives)))


def _told(reply: "Reply", top_logprobs: int) -> dict[str, Any]:
    """What `--json` says of one answer."""
    facts = facts_of(reply)
    if top_logprobs:
        facts["logprobs"] = [
            {
                **{"id": token.id, "token": token.text, "logprob": token.logprob},
                "top": [{"id": t.id, "token": t.text, "logprob": t.logprob} for t in token.top],
            }
            for token in reply.logprobs
        ]
    return facts


def _told_apart(words: tuple[str, ...]) -> tuple[str, tuple[str, ...], str]:
    """Model, images and question. Raises ValueError where the question was forgotten."""
    usage = '`qwenvl ask tiny photo.jpg "What is this?"`'
    if len(words) < 2:
        raise ValueError(f"give a model and a question at least: {usage}")
    checkpoint, *images, question = words
    if not Path(checkpoint).is_dir() and _is_image(checkpoint):
        raise ValueError(f"the first word, {checkpoint}, is an image file and no model: {usage}")
    if _is_image(question):
        raise ValueError(
            f"the last word, {question}, is an image file and no question; ask behind it: {usage}"
        )
    if not question.strip():
        raise ValueError(f"the question is empty; ask something: {usage}")
    return checkpoint, tuple(images), question


def _is_image(word: str) -> bool:
    from qwenvl.images import open_image

    if re.fullmatch(r"(?i)\S+\.(?:jpe?g|png|webp|gif|bmp|tiff?)", word):
        return True  # though there may be no such file: a name mistyped is no question either
    try:
        return Path(word).is_file() and open_image(word) is not None
    except (ValueError, OSError):  # no image, or no name that a file could have
        return False


def facts_of(reply: "Reply") -> dict[str, Any]:
    """Text, boxes and quads of a reply in plain values; pixels are those of its last image."""
    from qwenvl.images import open_image

    size = open_image(reply.images[-1].source).size if reply.images else None  # type: ignore[arg-type]
    boxes = [
        {
            **{"label": box.label, "x1": box.x1, "y1": box.y1, "x2": box.x2, "y2": box.y2},
            "pixels": [round(v, 2) for v in box.to_pixels(*size)] if size else None,
            "score": box.score,
        }
        for box in reply.boxes
    ]
    quads = [
        {
            "label": quad.label,
            "points": [list(point) for point in quad.points],
            "pixels": [[round(v, 2) for v in point] for point in quad.to_pixels(*size)] if size else None,
            "score": quad.score,
        }
        for quad in reply.quads
    ]
    return {"text": reply.text, "boxes": boxes, "quads": quads}
