"""ANLS (paper Table 5: DocVQA): average normalised Levenshtein similarity, zero below one half.

Two details of the reference decide single items: the distance is taken between texts with case and white space
normalised, but divided by the length of the *raw* texts in capitals (so spaces count, and the sharp s counts twice);
and a similarity of exactly one half is kept.
"""

from collections.abc import Iterable, Sequence

from rapidfuzz.distance.Levenshtein import distance

THRESHOLD = 0.5


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def score(prediction: str, answers: Sequence[str], *, threshold: float = THRESHOLD) -> float:
    """Best similarity in 0..1 of the prediction to any accepted answer; 0.0 below the threshold."""
    if not answers:
        raise ValueError("a question has an empty list of answers; expected at least one accepted answer.")
    said, raw_length = _normal(prediction), len(prediction.upper())
    nearest = 1.0
    for answer in answers:
        length = max(raw_length, len(answer.upper()))
        nearest = min(nearest, distance(said, _normal(answer)) / length if length else 0.0)
    similarity = 1 - nearest
    return similarity if similarity >= threshold else 0.0


def scores(
    predictions: Iterable[str], answers: Iterable[Sequence[str]], *, threshold: float = THRESHOLD
) -> list[float]:
    """`score` for each question."""
    return [score(said, own, threshold=threshold) for said, own in zip(predictions, answers, strict=True)]
