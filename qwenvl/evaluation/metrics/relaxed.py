"""Relaxed accuracy (paper Table 5: ChartQA): numbers may be 5 % off, other answers must be equal up to case.

The rule is documented as relative to the annotated value, but the release calls it with the two sides exchanged:
the tolerance is relative to the *model's* value, and a model value of 0 is compared as text. `official=True` does so.
"""

from collections.abc import Sequence

TOLERANCE = 0.05


def to_number(text: str) -> float | None:
    """The value of `3.5`, `1e3`, `5%` (0.05) or anything else float() reads, else None."""
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def is_correct(target: str, prediction: str, tolerance: float = TOLERANCE) -> bool:
    """Whether the prediction is within `tolerance` of the target, relative to the target; as text if that is 0."""
    wanted, said = to_number(target), to_number(prediction)
    if said is not None and wanted:
        return abs(said - wanted) / abs(wanted) <= tolerance
    return prediction.lower() == target.lower()


def score(answer: str, annotation: str | Sequence[str], *, official: bool = True) -> float:
    """1.0 if the answer is correct for any annotation, else 0.0. Only the answer is stripped of white space."""
    wanted = [annotation] if isinstance(annotation, str) else annotation
    if not wanted:
        raise ValueError(
            "a question has an empty list of annotations; expected at least one accepted answer."
        )
    said = answer.strip()
    return float(any(is_correct(said, other) if official else is_correct(other, said) for other in wanted))
