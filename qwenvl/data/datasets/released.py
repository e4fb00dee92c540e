"""JSON lines into which the release converted the files of the benchmarks: image, question, question_id, answer."""

from collections.abc import Iterator

from qwenvl.data.datasets.annotations import BadEntry, field, listed, load_json, load_lines, texts, words
from qwenvl.data.datasets.sample import Sample, Source, checked


def samples(source: Source) -> list[Sample]:
    """Questions of the release's JSON lines, with their answers or annotation where these are public.

    They carry one answer; where ten people were asked, theirs are in VQA's annotations file (`Source.answers`).
    """
    return checked(_samples(source), source.data)


def _samples(source: Source) -> Iterator[Sample]:
    people = answers_by_question(source)
    for number, record in enumerate(load_lines(source.data), start=1):
        where = f"{source.data} line {number}"
        name = record.get("question_id", number)
        if people and str(name) not in people:
            raise BadEntry(
                "no answer",
                f"{source.answers} has no answer to question {name}; give files of the same split.",
            )
        said = people[str(name)]["answers"] if people else record.get("answer", record.get("annotation"))
        yield Sample(
            id=str(name),
            images=(source.image(field(record, "image", where)),),
            text=words(record, "question", where),
            answers=texts(said),
        )


def answers_by_question(source: Source) -> dict[str, dict[str, object]]:
    """VQA's annotations by the id of their question; nothing where they are not public."""
    if source.answers is None:
        return {}
    records = listed(load_json(source.answers), source.answers, "annotations")
    return {str(field(record, "question_id", source.answers)): record for record in records}
