"""Captioning (paper 4.1, Table 4: Flickr30K and NoCaps by CIDEr): from raw captions to every score of the COCO kit.

METEOR and SPICE are not in the paper and left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwenvl.evaluation.metrics import bleu, cider, ptb, rouge


@dataclass(frozen=True)
class CaptionScores:
    """Scores of each caption, and of the corpus."""

    cider: NDArray[np.float64]
    """CIDEr-D of each caption, 0 .. 10 (the paper prints 100 x the mean)."""
    overlaps: tuple[bleu.Overlap, ...]
    rouge_l: NDArray[np.float64]

    @property
    def corpus(self) -> dict[str, float]:
        """Corpus values under the names of the COCO kit: CIDEr, Bleu_1 .. Bleu_4, ROUGE_L."""
        if not len(self.cider):
            raise ValueError("no captions were scored, so there is no corpus score.")
        bleus = sum(self.overlaps, bleu.Overlap()).scores
        return {
            "CIDEr": float(np.mean(self.cider)),
            **{f"Bleu_{n}": value for n, value in enumerate(bleus, start=1)},
            "ROUGE_L": float(np.mean(self.rouge_l)),
        }


def score(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score raw captions against raw references, image by image.

    The order matters in the last digits: the tokeniser sees whether the *next* caption starts like a new sentence.
    """
    return score_tokenised(ptb.tokenise(captions), ptb.tokenise_groups(references))


def score_tokenised(captions: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """The same for captions and references that are tokenised already."""
    pairs = list(zip(captions, references, strict=True))
    return CaptionScores(
        cider=cider.scores(captions, references),
        overlaps=tuple(bleu.overlap(caption, others) for caption, others in pairs),
        rouge_l=np.asarray([rouge.score(caption, others) for caption, others in pairs], np.float64),
    )
