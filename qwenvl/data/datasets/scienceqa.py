"""ScienceQA (paper Table 4): problems of a question, choices, the number of the right one, a hint and an image."""

from functools import partial
from typing import Any

from qwenvl.data.datasets.annotations import by_name, field, is_lines, load_json, load_lines, words
from qwenvl.data.datasets.sample import Sample, Source, choice, letter_of, options_of, strictly


def samples(source: Source) -> list[Sample]:
    """`problems.json` (questions of the test split with an image), or the release's JSON lines."""
    if is_lines(source.data):
        lines = enumerate(load_lines(source.data), start=1)
        return strictly(partial(_line, source), lines, source.data)
    problems = by_name(load_json(source.data), source.data).items()
    asked = (
        each for each in problems if field(each[1], "split", source.data) == "test" and each[1].get("image")
    )
    return strictly(partial(_problem, source), asked, source.data)


def _problem(source: Source, entry: tuple[str, Any]) -> Sample:
    name, problem = entry
    image = words(problem, "image", source.data)
    return _sample(name, source.image(f"{name}/{image}", f"test/{name}/{image}"), problem, source.data)


def _line(source: Source, entry: tuple[int, Any]) -> Sample:
    number, record = entry
    where = f"{source.data} line {number}"
    image = source.image(field(record, "image", where))
    return _sample(str(record.get("question_id", number)), image, record, where)


def _sample(name: str, image: str, record: Any, where: object) -> Sample:
    sample = Sample(
        id=name,
        images=(image,),
        text=words(record, "question", where),
        context=str(record.get("hint") or ""),
        options=options_of(field(record, "choices", where), where),
        answers=(letter_of(field(record, "answer", where), where),),
        group=str(record.get("subject", "")),
    )
    return choice(sample, where)
