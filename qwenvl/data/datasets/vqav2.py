"""VQAv2 and OKVQA (paper Tables 3 and 4, A.2): a file of questions, and one of the answers of ten people to each."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data.columns import text_of
from qwenvl.data.datasets import released
from qwenvl.data.datasets.annotations import (
    BadEntry,
    expect,
    field,
    is_lines,
    listed,
    load_json,
    texts,
    words,
)
from qwenvl.data.datasets.entries import Found, numbered, questions
from qwenvl.data.datasets.sample import Sample, Source, strictly
from qwenvl.data.records import Skipped

_CONFIDENCE = {"yes": 2, "maybe": 1, "no": 0}


class _Asked(NamedTuple):
    """A question and what people answered, which test splits keep."""

    question: Mapping[str, Any]
    annotation: Mapping[str, Any] | None


def most_confident(answers: Sequence[Mapping[str, Any]]) -> str | None:
    """VQAv2's ten answers to one (A.2: "based on the maximum confidence"); None where nobody answered.

    Of the answers given with the highest confidence that anybody had (yes before maybe before no) the most frequent;
    the paper leaves ties open: among equals the one that more people gave at all, then the one given first.
    """
    said = [(text_of(each.get("answer")) or "").strip() for each in answers]
    sure = [_CONFIDENCE.get(str(each.get("answer_confidence", "no")), 0) for each in answers]
    candidates = [(word, level) for word, level in zip(said, sure, strict=True) if word]
    if not candidates:
        return None
    top = max(level for _, level in candidates)
    surest = Counter(word for word, level in candidates if level == top)
    everybody = Counter(word for word, _ in candidates)
    return max(surest, key=lambda word: (surest[word], everybody[word]))  # max keeps the first of equals


def most_frequent(answers: Iterable[str]) -> str | None:
    """The answer that most people gave, the first of equals; None where nobody answered."""
    counted = Counter(answer.strip() for answer in answers if answer.strip())
    return counted.most_common(1)[0][0] if counted else None


def _entries(source: Source, file: Any, people: Mapping[str, Any]) -> Iterator[tuple[str, _Asked]]:
    for number, question in enumerate(listed(file, source.data, "questions")):
        key = str(question.get("question_id", number)) if isinstance(question, Mapping) else str(number)
        yield key, _Asked(question, people.get(key))


def _subset(file: Any, default: str = "") -> str:
    return str(file.get("data_subtype", default)) if isinstance(file, Mapping) else default


def _sample(source: Source, subset: str, asked: _Asked) -> Sample:
    name = f"{int(field(asked.question, 'image_id', source.data)):012d}.jpg"
    number = field(asked.question, "question_id", source.data)
    if source.answers is not None and asked.annotation is None:
        raise BadEntry(
            "no answer", f"{source.answers} has no answer to question {number}; give files of the same split."
        )
    annotation = asked.annotation or {}
    return Sample(
        id=str(number),
        images=(source.image(f"COCO_{subset}_{name}", f"{subset}/COCO_{subset}_{name}", name),),
        text=words(asked.question, "question", source.data),
        answers=texts(annotation.get("answers")),
        group=str(annotation.get("answer_type", "")),
    )


def records(files: Sequence[Path], images: Path) -> Found:
    """`v2_OpenEnded_mscoco_train2014_questions.json` and `v2_mscoco_train2014_annotations.json`."""
    data, answers = expect(files, 2, "questions and annotations")
    source, file = Source(data, answers, images), load_json(data)
    people: dict[str, Any] = {}
    for key, entry in numbered(answers, listed(load_json(answers), answers, "annotations"), "question_id"):
        try:
            people[str(field(entry, "question_id", answers))] = entry
        except BadEntry as error:
            yield Skipped(key=key, kind=error.kind, detail=str(error), source="VQAv2")

    def answer(asked: _Asked, _: Sample) -> str | None:
        return most_confident((asked.annotation or {}).get("answers", ()))

    read = partial(_sample, source, _subset(file, "train2014"))
    yield from questions(read, _entries(source, file, people), "VQAv2", answer)


def samples(source: Source) -> list[Sample]:
    """A questions file and, if public, the file of the ten answers to each (`Source.answers`)."""
    if is_lines(source.data):
        return released.samples(source)
    file = load_json(source.data)
    people = released.answers_by_question(source)
    asked = list(_entries(source, file, people))
    if unknown := set(people) - {key for key, _ in asked}:
        raise ValueError(
            f"{source.answers} answers {len(unknown)} questions that {source.data} does not ask, such as "
            f"{min(unknown)}; give files of the same split."
        )
    return strictly(partial(_sample, source, _subset(file)), (each for _, each in asked), source.data)
