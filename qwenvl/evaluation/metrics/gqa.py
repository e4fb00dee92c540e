"""GQA (paper Table 4): the short answer is cut out of the sentence by the release's substring rules, then matched."""

from collections.abc import Sequence

from qwenvl.evaluation.metrics import exact

LEADS = ("is ", "are ", "a ", "an ", "the ")


def extract_answer(raw: object) -> str:
    """The answer inside a sentence, by the release's rules: `The cat is on a mat of hay.` gives `mat`.

    The rules look for letters, not words, and take the piece between the first and the second hit: `pizza x` gives
    `x`, and `this is a dog` gives the empty string. ValueError if the answer is no text.
    """
    if not isinstance(raw, str):
        raise ValueError(f"a GQA answer must be text, got {raw!r}; give the decoded string of the model.")
    answer = raw.strip().split(".")[0].split(",")[0].split("!")[0].lower()
    for lead in LEADS:
        if lead in answer:
            answer = answer.split(lead)[1]
    return answer.split(" of")[0].strip()


def score(raw: object, annotation: str | Sequence[str]) -> float:
    """1.0 if the extracted answer matches an annotation exactly, else 0.0."""
    return exact.score(extract_answer(raw), annotation)
