"""A sample of a shard as a training document: a record (Box B.1), a dialogue (ChatML), or a picture and its caption.

    {"kind": ...}                a record, as `qwenvl data read` and `qwenvl data synth` write it
    {"format": ..., "record": }  a line of a mixture, as `qwenvl data mix` writes it
    {"conversations": ...}       the official fine-tuning JSON
    anything else                a pair: a picture and a text under their usual names; of several texts one an epoch

Its pictures are those of its own tar or parquet row, else files beside the shard. No URL is followed.
"""

import dataclasses
from pathlib import Path
from typing import Any, cast, get_args

from qwenvl.data.clean.characters import HAN
from qwenvl.data.clean.pairs import Source, pairs_of
from qwenvl.data.columns import IMAGE_COLUMNS
from qwenvl.data.conversations import conversation_of, image_path
from qwenvl.data.formats import IGNORE, Example, example
from qwenvl.data.records import Caption, Dialogue, Pair, PlainText, Record, from_values
from qwenvl.data.stream.samples import Sample, Unusable
from qwenvl.data.tasks import Format, example_of, formats_of
from qwenvl.markup import Image, Segment, Turn, render_chat
from qwenvl.tokenizer import Tokenizer


def document_of(
    sample: Sample, tokenizer: Tokenizer, queries: int, *, format: str = "", epoch: int = 0
) -> tuple[str, Example]:
    """The task of a sample (a format of Box B.1, or "dialogue") and the sample as ids and labels.

    `format` tells a record in this format of its kind instead of the first. Pictures come as what `images.open_image`
    or `Located.read` opens. Raises Unusable.
    """
    try:
        task, made = _made(sample, tokenizer, queries, format, epoch)
    except Unusable:
        raise
    except ValueError as error:
        raise Unusable("broken record", str(error)) from None
    if all(label == IGNORE for label in made.labels):
        raise Unusable("nothing learned", "no text of it would be learned")
    return task, made


def _made(sample: Sample, tokenizer: Tokenizer, queries: int, format: str, epoch: int) -> tuple[str, Example]:
    columns = sample.columns
    if "conversations" in columns:
        turns = conversation_of(sample.where, columns, sample.folder).turns
        placed = [Turn(turn.role, tuple(_found(part, sample) for part in turn.content)) for turn in turns]
        return "dialogue", example(render_chat(placed, tokenizer, queries, open_for_answer=False))
    if "record" in columns:
        record, message = from_values(columns["record"]), columns.get("format", "")
    elif "kind" in columns:
        record, message = from_values(columns), format
    else:
        record, message = _caption(sample, epoch), format
    message = message or formats_of(record)[0]
    if message not in get_args(Format):
        raise ValueError(f"the format is {message!r}; expected one of {', '.join(get_args(Format))}.")
    return message, example_of(_with_images(record, sample), tokenizer, queries, message)


def _caption(sample: Sample, epoch: int) -> Caption:
    """Chinese where a character of the text is (as `qwenvl data read clean` has it)."""
    columns: dict[str, Any] = dict(sample.columns)
    named = [columns.pop(name) for name in IMAGE_COLUMNS if isinstance(columns.get(name), str)]
    found = list(pairs_of(sample.where, columns, None, Source(sample.folder, "")))
    pairs = [each for each in found if isinstance(each, Pair)]
    if not pairs:
        raise Unusable(next((each.kind for each in found if not isinstance(each, Pair)), "empty caption"))
    if not sample.images and not named:
        raise Unusable("no picture", "the sample has neither a picture nor the name of one")
    text = pairs[epoch % len(pairs)].text
    image = Image(named[0] if named and not sample.images else next(iter(sample.images)))
    return Caption(image=image, text=text, language="zh" if HAN.search(text) else "en")


def _with_images(record: Record, sample: Sample) -> Record:
    match record:
        case PlainText():
            return record
        case Dialogue():
            turns = [
                Turn(turn.role, tuple(_found(part, sample) for part in turn.content)) for turn in record.turns
            ]
            return dataclasses.replace(record, turns=tuple(turns))
    return dataclasses.replace(record, image=cast(Image, _found(record.image, sample)))


def _found(part: Any, sample: Sample) -> Segment | str | Any:
    """A picture by its name in the sample itself, or as a path; everything else as it is."""
    if not isinstance(part, Image):
        return part
    name = str(part.source)
    if "://" in name:
        raise Unusable("picture at a URL", name)
    if sample.images:
        inside = sample.images.get(name) or next(
            (each for key, each in sample.images.items() if Path(key).name == Path(name).name), None
        )
        if inside is None and len(sample.images) == 1:
            inside = next(iter(sample.images.values()))
        if inside is None:
            raise Unusable("missing picture", f"{name} is none of {', '.join(sample.images)}")
        return Image(inside)
    path = image_path(part, sample.folder)
    if not path.is_file():
        raise Unusable("missing picture", str(path))
    return Image(path)
