"""The training view: entries one by one, each a record or counted with the reason why it is none."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias, TypeVar

from qwenvl.data.boxes import BadBox
from qwenvl.data.datasets.annotations import BadEntry
from qwenvl.data.datasets.images import seen
from qwenvl.data.datasets.sample import Sample, StoredImage
from qwenvl.data.records import Pair, Question, Record, Skipped
from qwenvl.data.stream.samples import Located
from qwenvl.markup import Image

Found: TypeAlias = Iterator[Record | Skipped]
"""What readers of annotations yield: records, and what could not become one with its reason."""

FoundPairs: TypeAlias = Iterator[Pair | Skipped]
"""What readers of raw pairs yield: they still have to be cleaned."""

T = TypeVar("T")


def one_by_one(
    read: Callable[[T], Iterable[Record | Skipped]], entries: Iterable[tuple[object, T]], source: str
) -> Found:
    """What `read` makes of each entry (a key and its value); an entry that cannot be read costs no other."""
    for key, entry in entries:
        try:
            yield from read(entry)
        except (BadEntry, BadBox) as error:
            kind = error.kind if isinstance(error, BadEntry) else str(error)
            yield Skipped(key=str(key), kind=kind, detail=str(error), source=source)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, OverflowError) as error:
            detail = f"{type(error).__name__}: {error}"
            yield Skipped(key=str(key), kind="broken entry", detail=detail[:200], source=source)


def questions(
    read: Callable[[T], Sample],
    entries: Iterable[tuple[object, T]],
    source: str,
    answer: Callable[[T, Sample], str | None] | None = None,
) -> Found:
    """A question record for each entry; `answer` chooses among several answers, by default the first is taken."""

    def record(entry: T) -> Iterator[Record]:
        sample = read(entry)
        chosen = answer(entry, sample) if answer is not None else next(iter(sample.answers), None)
        yield question(sample, chosen, source)

    return one_by_one(record, entries, source)


def question(sample: Sample, answer: str | None, source: str) -> Question:
    """The record of a question about an image that is there. Raises BadEntry."""
    words, reply = sample.text.strip(), (answer or "").strip()
    if not words or not reply:
        raise BadEntry("no answer" if words else "no question")
    return Question(image=image(sample.images[0]), question=words, answer=reply, source=source)


def image(stored: StoredImage | Path) -> Image:
    """An image that is there and whole. Raises BadEntry."""
    if isinstance(stored, Located):
        stored = stored.read()
    seen(stored if isinstance(stored, bytes) else Path(stored))
    return Image(stored if isinstance(stored, bytes) else str(stored))


def numbered(path: Path, entries: Iterable[T], name: str = "") -> Iterator[tuple[str, T]]:
    """Entries of a list with a key each: their field `name`, else `FILE-3` for the fourth."""
    for number, entry in enumerate(entries):
        known = entry.get(name) if isinstance(entry, Mapping) else None
        yield str(known) if isinstance(known, str | int) else f"{path.stem}-{number}", entry
