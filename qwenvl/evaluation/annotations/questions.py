"""Open questions about pictures (paper Tables 4 and 5), each in its own format and as the release's JSON lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwenvl.evaluation.annotations.sample import (
    Sample,
    Source,
    checked,
    field,
    is_lines,
    read_json,
    read_lines,
    texts,
)

OCRVQA_TEST = 3
"""The number of the test split in OCR-VQA's dataset.json."""


def converted(source: Source) -> list[Sample]:
    """JSON lines of the release: image, question, question_id and, if public, answer or annotation.

    They carry one answer; where ten people were asked, theirs are in VQA's annotations file (`Source.answers`).
    """
    return checked(_converted(source), source.data)


def _converted(source: Source) -> Iterator[Sample]:
    people = _people(source)
    for number, record in enumerate(read_lines(source.data), start=1):
        where = f"{source.data} line {number}"
        name = record.get("question_id", number)
        if people and name not in people:
            raise ValueError(
                f"{source.answers} has no answer to question {name}; give files of the same split."
            )
        said = people[name]["answers"] if people else record.get("answer", record.get("annotation"))
        yield Sample(
            id=str(name),
            images=(source.image(field(record, "image", where)),),
            text=field(record, "question", where),
            answers=texts(said),
            group=_part(source.data),
        )


def vqa(source: Source) -> list[Sample]:
    """VQAv2 and OKVQA: a questions file and, if public, the file of the ten answers to each (`Source.answers`)."""
    if is_lines(source.data):
        return converted(source)
    return checked(_vqa(source), source.data)


def _vqa(source: Source) -> Iterator[Sample]:
    file = read_json(source.data)
    annotations = _people(source)
    subset = str(file.get("data_subtype", "")) if isinstance(file, dict) else ""
    questions = field(file, "questions", source.data)
    known = {field(record, "question_id", source.data) for record in questions}
    if unknown := set(annotations) - known:
        raise ValueError(
            f"{source.answers} answers {len(unknown)} questions that {source.data} does not ask, such as "
            f"{min(unknown)}; give files of the same split."
        )
    for record in questions:
        number, image = record["question_id"], field(record, "image_id", source.data)
        if annotations and number not in annotations:
            raise ValueError(
                f"{source.answers} has no answer to question {number}; give files of the same split."
            )
        annotation = annotations.get(number, {})
        name = f"{int(image):012d}.jpg"
        yield Sample(
            id=str(number),
            images=(source.image(f"COCO_{subset}_{name}", f"{subset}/COCO_{subset}_{name}", name),),
            text=field(record, "question", source.data),
            answers=texts(annotation.get("answers")),
            group=annotation.get("answer_type", ""),
        )


def _people(source: Source) -> dict[Any, dict[str, Any]]:
    """Annotations by question id, of VQA's annotations file; nothing without one."""
    if source.answers is None:
        return {}
    records = field(read_json(source.answers), "annotations", source.answers)
    return {field(record, "question_id", source.answers): record for record in records}


def vizwiz(source: Source) -> list[Sample]:
    """VizWiz: a list of image, question and, if public, ten answers; the picture's name is the id."""
    if is_lines(source.data):
        return converted(source)
    records = read_json(source.data)
    return checked(
        (
            Sample(
                id=field(record, "image", source.data),
                images=(source.image(record["image"]),),
                text=field(record, "question", source.data),
                answers=texts(record.get("answers")),
                group=record.get("answer_type", ""),
            )
            for record in records
        ),
        source.data,
    )


def textvqa(source: Source) -> list[Sample]:
    """TextVQA 0.5.1: `data` with question_id, image_id, question and answers."""
    if is_lines(source.data):
        return converted(source)
    return checked(
        (
            Sample(
                id=str(field(record, "question_id", source.data)),
                images=(source.image(f"{field(record, 'image_id', source.data)}.jpg"),),
                text=field(record, "question", source.data),
                answers=texts(record.get("answers")),
            )
            for record in field(read_json(source.data), "data", source.data)
        ),
        source.data,
    )


def docvqa(source: Source) -> list[Sample]:
    """DocVQA v1.0: `data` with questionId, image, question and, outside the test split, answers."""
    if is_lines(source.data):
        return converted(source)
    return checked(
        (
            Sample(
                id=str(field(record, "questionId", source.data)),
                images=(source.image(field(record, "image", source.data)),),
                text=field(record, "question", source.data),
                answers=texts(record.get("answers")),
            )
            for record in field(read_json(source.data), "data", source.data)
        ),
        source.data,
    )


def gqa(source: Source) -> list[Sample]:
    """GQA: questions by id, with imageId, question and answer."""
    if is_lines(source.data):
        return converted(source)
    return checked(
        (
            Sample(
                id=str(number),
                images=(source.image(f"{field(record, 'imageId', source.data)}.jpg"),),
                text=field(record, "question", source.data),
                answers=texts(record.get("answer")),
                group=record.get("types", {}).get("structural", ""),
            )
            for number, record in read_json(source.data).items()
        ),
        source.data,
    )


def chartqa(source: Source) -> list[Sample]:
    """ChartQA: imgname, query, label. A folder is read as test_human and test_augmented, the two halves of the test."""
    if not source.data.is_dir():
        return checked(_chartqa(source, source.data), source.data)
    halves = [
        file for part in ("human", "augmented") for file in sorted(source.data.glob(f"test_{part}.json*"))[:1]
    ]
    if len(halves) != 2:
        raise ValueError(
            f"{source.data} has not both test_human.json and test_augmented.json; ChartQA's test is both."
        )
    return checked((sample for file in halves for sample in _chartqa(source, file)), source.data)


def _chartqa(source: Source, file: Path) -> Iterator[Sample]:
    records = read_lines(file) if is_lines(file) else read_json(file)
    for number, record in enumerate(records):
        where, lines = f"{file} entry {number}", is_lines(file)
        name = field(record, "image" if lines else "imgname", where)
        yield Sample(
            id=f"{_part(file)}-{record.get('question_id', number)}",
            images=(source.image(name, f"png/{name}"),),
            text=field(record, "question" if lines else "query", where),
            answers=texts(field(record, "answer" if lines else "label", where)),
            group=_part(file),
        )


def ocrvqa(source: Source) -> list[Sample]:
    """OCR-VQA dataset.json: books by id with parallel lists of questions and answers; only the test split is kept."""
    if is_lines(source.data):
        return converted(source)
    return checked(_ocrvqa(source), source.data)


def _ocrvqa(source: Source) -> Iterator[Sample]:
    for name, book in read_json(source.data).items():
        if field(book, "split", source.data) != OCRVQA_TEST:
            continue
        images = (source.image(*(f"{name}.{ending}" for ending in ("jpg", "png", "gif"))),)
        questions, answers = field(book, "questions", source.data), field(book, "answers", source.data)
        if len(questions) != len(answers):
            raise ValueError(
                f"{source.data}: book {name} has {len(questions)} questions but {len(answers)} answers."
            )
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            yield Sample(id=f"{name}-{number}", images=images, text=question, answers=(str(answer),))


def ai2d(source: Source) -> list[Sample]:
    """AI2D: a folder with one file of questions per picture; the right option's text is the answer."""
    if is_lines(source.data):
        return converted(source)
    return checked(_ai2d(source), source.data)


def _ai2d(source: Source) -> Iterator[Sample]:
    for file in sorted(source.data.glob("*.json")):
        record = read_json(file)
        name = record.get("imageName", file.name.removesuffix(".json"))
        for question, about in field(record, "questions", file).items():
            options = field(about, "answerTexts", file)
            yield Sample(
                id=str(field(about, "questionId", file)),
                images=(source.image(name, f"../images/{name}"),),
                text=question,
                answers=(str(options[field(about, "correctAnswer", file)]),),
            )


def _part(file: Path) -> str:
    return next((part for part in ("human", "augmented") if part in file.stem), "")
