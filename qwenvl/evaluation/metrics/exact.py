"""Exact match (paper Tables 4 and 5: GQA, OCR-VQA, AI2D): equal up to case and surrounding white space."""

from collections.abc import Sequence


def score(answer: str, annotation: str | Sequence[str]) -> float:
    """1.0 if the answer equals any annotation, else 0.0. ValueError if there is no annotation to compare with."""
    wanted = [annotation] if isinstance(annotation, str) else annotation
    if not wanted:
        raise ValueError(
            "a question has an empty list of annotations; expected at least one accepted answer."
        )
    said = answer.strip().lower()
    return float(any(said == other.strip().lower() for other in wanted))
