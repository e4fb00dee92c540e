"""Whatever training reads as an evaluation: the samples of records, mixtures, pages, cleaned pairs and dialogues.

Each is asked as it would be trained (`data.tasks`), and what training would learn is what is expected. A sample's task
is its format in Box B.1; a dialogue asks once for each answer that is learned, behind the true turns before it. It is
`dialogue-boxes` where that answer points with boxes, else `dialogue`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import cast

from qwenvl.data.conversations import samples
from qwenvl.data.datasets.sample import Sample, Source, StoredImage
from qwenvl.data.faults import Unusable
from qwenvl.data.layouts import TrainingSample, accepted_answers, read
from qwenvl.data.records import Dialogue
from qwenvl.data.stream.samples import Located
from qwenvl.data.tasks import task_of
from qwenvl.markup import Box, Image, Quad, Segment, Text, Turn, segments_of, spell

NO_ANSWER = {
    "text": "a text alone asks nothing",
    "grounded_caption": "a grounded caption without a box",
    "ocr": "a page without a line",
    "dialogue": "a dialogue of which no answer is learned",
    "": "an empty answer",
}
"""What a sample lacks to be asked, by its format."""


@dataclass(frozen=True)
class Asked:
    """The questions of a file or folder."""

    by_task: dict[str, list[Sample]]
    """Name of the task -> its questions, in the order of the file."""
    left_out: Counter[str]
    """Why samples have no expected answer -> how many."""


def of_task(task: str) -> Callable[[Source], list[Sample]]:
    """A reader of the questions of one task."""

    def own(source: Source) -> list[Sample]:
        by_task = asked(source).by_task
        if task not in by_task:
            raise ValueError(f"{source.data} has no sample of the task {task}; it has {', '.join(by_task)}.")
        return by_task[task]

    return own


def asked(source: Source) -> Asked:
    """All questions of a file or folder of samples.

    Raises ValueError for a sample that training could not read, and where no sample has an expected answer.
    """
    by_task: dict[str, list[Sample]] = {}
    left_out: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for where, found in samples(source.data, source.images):
        try:
            if isinstance(found, Unusable):
                raise found
            sample = read(found, strict=False)
            accepted = accepted_answers(found, sample)
        except Unusable as reason:
            raise ValueError(
                f"{where}: {str(reason).rstrip('.')}. Run `qwenvl data check {source.data}` to see all such samples."
            ) from None
        name = where if not seen[where] else f"{where} ({seen[where] + 1})"
        seen[where] += 1
        count = 0
        for task, question in _questions(name, sample, accepted):
            by_task.setdefault(task, []).append(question)
            count += 1
        if not count:
            left_out[NO_ANSWER.get(sample.format, NO_ANSWER[""])] += 1
    if not by_task:
        why = "; ".join(f"{reason}, {count:,} times" for reason, count in left_out.most_common())
        raise ValueError(f"nothing in {source.data} has an expected answer ({why or 'it holds no sample'}).")
    return Asked(by_task, left_out)


def _questions(name: str, sample: TrainingSample, accepted: tuple[str, ...]) -> Iterator[tuple[str, Sample]]:
    """The questions of a sample with their task; none where nothing is expected."""
    if isinstance(sample.record, Dialogue):
        yield from _of_dialogue(name, sample.record)
        return
    if sample.format == "text":
        return
    message = task_of(sample.record, sample.format)
    pointing = sample.format in ("grounded_caption", "refer", "ocr")
    wanted = [part for part in message.answer if isinstance(part, Box | Quad)]
    answers = accepted or (spell(message.answer).strip(),)
    if (pointing and not wanted) or not any(answers):
        return
    yield sample.format.replace("_", "-"), _sample(name, message.prompt, answers)


def _of_dialogue(name: str, dialogue: Dialogue) -> Iterator[tuple[str, Sample]]:
    """An answer that is learned, asked for behind the turns before it."""
    for place, turn in enumerate(dialogue.turns):
        answer = spell(turn.content).strip()
        before = tuple(_stored_turn(each) for each in dialogue.turns[:place])
        if turn.role != "assistant" or not turn.loss or not answer or not before or before[-1].role != "user":
            continue
        sample = _sample(f"{name}, turn {place + 1}", tuple(segments_of(before[-1].content)), (answer,))
        images = tuple(image for said in before for image in _images_in(said.content))
        boxes = any(isinstance(each, Box | Quad) for each in turn.content)
        yield (
            "dialogue-boxes" if boxes else "dialogue",
            replace(
                sample, images=images, history=before[:-1], system=dialogue.system, prompt_format="chatml"
            ),
        )


def _sample(name: str, prompt: tuple[Segment, ...], answers: tuple[str, ...]) -> Sample:
    content = tuple(map(_stored, prompt))
    words = tuple(part for part in content if not isinstance(part, Image))
    return Sample(
        id=name,
        images=_images_in(content),
        text=spell(words),
        content=content,
        answers=answers,
    )


def _images_in(content: Iterable[Segment | str]) -> tuple[StoredImage, ...]:
    return tuple(cast(StoredImage, part.source) for part in content if isinstance(part, Image))


def _stored_turn(turn: Turn) -> Turn:
    return replace(turn, content=tuple(map(_stored, turn.content)))


def _stored(part: Segment | str) -> Segment:
    """Images by a path that is a text, or by their place in a shard."""
    if isinstance(part, Image):
        source: StoredImage = part.source if isinstance(part.source, Located) else str(part.source)
        return Image(source)
    return Text(part) if isinstance(part, str) else part
