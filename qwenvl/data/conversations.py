"""A fine-tuning file as a whole: every sample in its order, by the reader that training has (`data.layouts`).

    [{"id": "0", "conversations": [
        {"from": "user",      "value": "Picture 1: <img>a.jpg</img>\\nWhere is the cat?"},
        {"from": "assistant", "value": "<ref>the cat</ref><box>(10,20),(300,400)</box>"}]}]

The official form, a list or JSON lines, is one of many.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwenvl.data.faults import Unusable
from qwenvl.data.formats import Example
from qwenvl.data.layouts import TrainingSample, read
from qwenvl.data.records import Dialogue, spell_with_paths
from qwenvl.data.shards import find_shards, kind_of
from qwenvl.data.stream.index import sample_index
from qwenvl.data.stream.samples import Located, Sample, read_sample
from qwenvl.markup import Image, number_images
from qwenvl.tokenizer import Tokenizer


def samples(source: Path, root: Path | None = None) -> Iterator[tuple[str, Sample | Unusable]]:
    """Where each sample of a shard (or of a folder of shards) stands, in order, and the sample or why there is none.

    Images may also lie below `root`. Raises ValueError when there is no shard, or one that is wholly unreadable.
    """
    for shard in find_shards(source):
        lines = _Lines(shard) if _holds_lines(shard) else None
        for number, (first, second) in enumerate(sample_index(shard).tolist()):
            where = f"{shard.name}:{number}" if lines is None else f"{shard.name}, line {lines.at(first)}"
            try:
                sample = read_sample(shard, first, second)
            except Unusable as reason:
                yield where, reason
                continue
            name = sample.columns.get("id")
            where = sample.where if kind_of(shard) in ("tar", "folder") else where
            where += f" (id {name})" if isinstance(name, str | int) else ""
            yield where, replace(sample, where=where, root=root)


def read_conversations(source: Path, root: Path | None = None) -> list[TrainingSample]:
    """Every sample of a file, whether its images are there or not. Raises ValueError that names a broken one."""
    found = []
    for where, sample in samples(source, root):
        try:
            if isinstance(sample, Unusable):
                raise sample
            found.append(read(sample, strict=False))
        except Unusable as reason:
            raise ValueError(
                f"{where}: {str(reason).rstrip('.')}. Run `qwenvl data check {source}` to see all of them."
            ) from None
    if not found:
        raise ValueError(f"{source} holds no sample; expected a list of dialogues, or a sample a line.")
    return found


def _holds_lines(shard: Path) -> bool:
    """Whether lines are samples: by its name, or a .json that is no list."""
    if kind_of(shard) != "list":
        return kind_of(shard) == "lines"
    with shard.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] != b"["


class _Lines:
    """Numbers of lines, from 1, by the byte where they begin; asked in order."""

    def __init__(self, shard: Path) -> None:
        self._file, self._line = shard.open("rb"), 1

    def at(self, byte: int) -> int:
        passed = self._file.read(byte - self._file.tell())
        self._line += passed.count(b"\n")
        return self._line

    def __del__(self) -> None:
        self._file.close()


def example_of(sample: TrainingSample, tokenizer: Tokenizer, queries: int) -> Example:
    """The sample as ids and labels, with images that `images.open_image` opens."""
    made = sample.example(tokenizer, queries)
    sources = [
        each.source.read() if isinstance(each.source, Located) else each.source for each in made.images
    ]
    return replace(made, images=tuple(map(Image, sources)))


def sample_of(dialogue: Dialogue, name: str) -> dict[str, Any]:
    """A dialogue as a sample of the official JSON, images numbered: what `qwenvl finetune` and its script read.

    Raises ValueError for an image in memory, and for a text that spells a tag and would come back as markup.
    """
    said = [
        {"from": turn.role, "value": spell_with_paths(turn.content), **({} if turn.loss else {"loss": False})}
        for turn in number_images(dialogue.turns)
    ]
    system = {"system": dialogue.system} if dialogue.system else {}
    return {"id": name, **system, "conversations": said}
