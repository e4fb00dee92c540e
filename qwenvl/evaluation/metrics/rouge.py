"""ROUGE-L of captions as pycocoevalcap 1.2 computes it: an F-score (beta 1.2) of the longest common subsequence.

Precision and recall are each the best over the references, not taken from the same one.
"""

from collections.abc import Sequence

from rapidfuzz.distance.LCSseq import similarity as common_length

BETA = 1.2


def score(caption: str, references: Sequence[str]) -> float:
    """ROUGE-L in 0..1 of one tokenised caption. Split at single spaces: an empty text is one empty word."""
    if not references:
        raise ValueError("a caption has no references; expected at least one (five in COCO, Flickr30K).")
    words = caption.split(" ")
    precision = recall = 0.0
    for reference in references:
        others = reference.split(" ")
        common = common_length(words, others)
        precision = max(precision, common / len(words))
        recall = max(recall, common / len(others))
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
