"""`qwenvl ask`: one question about pictures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from qwenvl.chat import Assistant, Reply


def ask(
    words: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CKPT PICTURE... QUESTION")],
    /,
    *,
    out: Path | None = None,
    json: bool = False,
    grounded: bool = False,
    sample: bool = False,
    seed: int = 0,
    max_new_tokens: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Ask a model one question about one or more pictures (or none) and print its answer.

    The question is text, whatever it spells; pictures are files.

        qwenvl ask tiny photo.jpg "Where is the red circle?" --out boxes.png

    Args:
        words: The model (a folder, a hub id or `tiny`), picture files, and last the question in quotes.
        out: Draw the boxes of the answer on the last picture and write it here.
        json: Print one JSON object: text, boxes and quads with pixels and score, seconds, tokens.
        grounded: Let no broken <ref>, <box> or <quad> be written.
        sample: Draw from the model's probabilities, as its generation_config.json says, instead of the likeliest.
        seed: Of the draws.
        max_new_tokens: Longest answer; by default what the checkpoint says.
        device: auto, cpu, cuda or mps.
        dtype: auto, float32, bfloat16 or float16.
    """
    if len(words) < 2:
        raise ValueError('give a model and a question at least: `qwenvl ask tiny photo.jpg "What is this?"`')
    checkpoint, *images, question = words
    if out is not None and not images:
        raise ValueError(f"--out {out} needs a picture to draw on; name one before the question.")
    from time import perf_counter

    from qwenvl.images import open_image

    opened = [open_image(image) for image in images]  # a bad picture is told before a model is loaded
    assistant = load_assistant(checkpoint, device=device, dtype=dtype, seed=seed)
    start = perf_counter()
    reply = assistant.ask(
        opened, question, grounded=grounded, sample=sample, seed=seed, max_new_tokens=max_new_tokens
    )
    seconds = perf_counter() - start
    if out is not None:
        save_image(reply, out)
    if json:
        from json import dumps

        print(
            dumps({**facts(reply), "seconds": round(seconds, 3), "tokens": reply.tokens}, ensure_ascii=False)
        )
    else:
        print(reply.text)


def load_assistant(checkpoint: str, *, device: str, dtype: str, seed: int) -> "Assistant":
    """The model; whoever watches sees that it is being read, which takes a while at 7B."""
    from rich.console import Console

    with Console(stderr=True).status(f"reading {checkpoint}"):
        from qwenvl.chat import Assistant
        from qwenvl.runtime import Runtime

        return Assistant.load(checkpoint, Runtime.detect(device=device, dtype=dtype, seed=seed))


def facts(reply: "Reply") -> dict[str, Any]:
    """Text, boxes and quads of a reply in plain values; pixels are those of its last picture."""
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


def save_image(reply: "Reply", target: Path) -> None:
    """Draw the reply's boxes and write the picture; `target` is whole or untouched.

    Raises ValueError for an ending that names no picture format or a place that cannot be written.
    """
    import os
    import tempfile

    from PIL import Image as pillow

    kind = pillow.registered_extensions().get(target.suffix.lower())
    if kind is None or kind not in pillow.SAVE:
        raise ValueError(f"{target} has no ending of a picture format; write .png or .jpg, for example.")
    drawn = reply.draw()
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise ValueError(
            f"cannot write {target} ({error.strerror}); name a file in a folder you may write to."
        ) from None
    unfinished = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            drawn.save(file, format=kind)
        unfinished.chmod(0o644)
        unfinished.replace(target)
    except OSError as error:
        raise ValueError(
            f"could not write {target} ({error.strerror or error}); nothing was left there."
        ) from None
    finally:
        unfinished.unlink(missing_ok=True)
