"""Speed of the metrics against reference programs, on made-up answers of the size of the real benchmarks.

    python benchmarks/metrics.py [--part 1.0] [--json]

CIDEr-D: 40,504 images x 5 references (COCO val), already tokenised, against pycocoevalcap's own scorer where it is
installed (no Java is started), else against the same thing written out below. VQA accuracy: 214,000 questions
(VQAv2 val), against the rule written out question by question. ANLS: against the textbook edit distance, on a part.
Both sides get the same data in one process and must give the same scores. A line each: items, seconds of the reference
and of ours (processor time, so that other work on the machine does not count), their ratio.
"""

import argparse
import json
import math
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from qwenvl.evaluation.metrics import anls, cider, vqa

try:
    from pycocoevalcap.cider.cider_scorer import CiderScorer
except ImportError:
    CiderScorer = None


def vocabulary(words: int, rng: random.Random) -> tuple[list[str], list[float]]:
    """Made-up words and their cumulative Zipf weights."""
    letters = "etaoinshrdlu"
    names = sorted({"".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(words)})
    rng.shuffle(names)
    total, sums = 0.0, []
    for rank in range(len(names)):
        total += 1 / (rank + 2)
        sums.append(total)
    return names, sums


def captions(images: int) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(0)
    names, sums = vocabulary(12_000, rng)
    groups = []
    for _ in range(images):
        topic = rng.choices(names, cum_weights=sums, k=9)
        groups.append(
            [" ".join(rng.choices(topic, k=6) + rng.choices(names, cum_weights=sums, k=4)) for _ in range(6)]
        )
    return [group[0] for group in groups], [group[1:] for group in groups]


def questions(count: int) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(1)
    names, sums = vocabulary(3_000, rng)
    names = [
        f"{name}." if i % 9 == 0 else f"a {name}" if i % 7 == 0 else name for i, name in enumerate(names)
    ]
    names[:6] = ["yes", "no", "2", "two", "1,000", "isn't it"]
    said, people = [], []
    for _ in range(count):
        common = rng.choices(names, cum_weights=sums, k=3)
        people.append(rng.choices(common, (8, 2, 1), k=10))
        said.append(rng.choice(common))
    return said, people


def lines(count: int) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(2)
    names, sums = vocabulary(5_000, rng)
    answers = [
        [
            " ".join(rng.choices(names, cum_weights=sums, k=rng.randint(1, 4)))
            for _ in range(rng.randint(1, 3))
        ]
        for _ in range(count)
    ]
    return [rng.choice(own).replace("e", rng.choice("ea")).title() for own in answers], answers


# === Reference programs: the rules, written out plainly ===


def cider_reference(said: list[str], references: list[list[str]]) -> list[float]:
    if CiderScorer is not None:
        scorer = CiderScorer(n=4, sigma=6.0)
        for own, others in zip(said, references, strict=True):
            scorer += (own, others)
        return list(scorer.compute_score()[1])

    def count(sentence: str) -> dict[tuple[str, ...], int]:
        words = sentence.split()
        counts: dict[tuple[str, ...], int] = defaultdict(int)
        for n in range(1, 5):
            for i in range(len(words) - n + 1):
                counts[tuple(words[i : i + n])] += 1
        return counts

    cooked = [
        (count(own), [count(other) for other in others]) for own, others in zip(said, references, strict=True)
    ]
    frequency: dict[tuple[str, ...], float] = defaultdict(float)
    for _, counted in cooked:
        for ngram in {ngram for each in counted for ngram in each}:
            frequency[ngram] += 1

    def vector(
        counts: dict[tuple[str, ...], int],
    ) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        weights: list[dict[tuple[str, ...], float]] = [defaultdict(float) for _ in range(4)]
        norms, length = [0.0] * 4, 0
        for ngram, times in counts.items():
            n = len(ngram) - 1
            weights[n][ngram] = times * (math.log(len(cooked)) - math.log(max(1.0, frequency[ngram])))
            norms[n] += weights[n][ngram] ** 2
            length += times if n == 1 else 0
        return weights, [math.sqrt(norm) for norm in norms], length

    scores = []
    for mine, theirs in cooked:
        weights, norms, length = vector(mine)
        total = 0.0
        for their_weights, their_norms, their_length in map(vector, theirs):
            for n in range(4):
                value = 0.0
                for ngram in weights[n]:
                    value += min(weights[n][ngram], their_weights[n][ngram]) * their_weights[n][ngram]
                if norms[n] and their_norms[n]:
                    value /= norms[n] * their_norms[n]
                total += value * math.exp(-((length - their_length) ** 2) / (2 * 6.0**2))
        scores.append(10 * total / 4 / len(others))
    return scores


def vqa_reference(said: list[str], people: list[list[str]]) -> list[float]:
    period, comma = re.compile(r"\.(?!\d)"), re.compile(r"(\d)(,)(\d)")

    def punctuation(text: str) -> str:
        out = text
        for mark in vqa.MARKS:
            if mark + " " in text or " " + mark in text or re.search(comma, text) is not None:
                out = out.replace(mark, "")
            else:
                out = out.replace(mark, " ")
        return period.sub("", out, count=32)

    def words(text: str) -> str:
        kept = []
        for word in text.lower().split():
            word = vqa.NUMBERS.get(word, word)
            if word not in vqa.ARTICLES:
                kept.append(word)
        return " ".join(vqa.CONTRACTIONS.get(word, word) for word in kept)

    scores = []
    for own, answers in zip(said, people, strict=True):
        own = words(punctuation(own.replace("\n", " ").replace("\t", " ").strip()))
        if len(set(answers)) > 1:
            answers = [punctuation(answer) for answer in answers]
        agreements = []
        for i in range(len(answers)):
            others = [answer for j, answer in enumerate(answers) if j != i]
            agreements.append(min(1.0, len([answer for answer in others if answer == own]) / 3))
        scores.append(sum(agreements) / len(agreements))
    return scores


def anls_reference(said: list[str], answers: list[list[str]]) -> list[float]:
    def distance(one: str, two: str) -> int:
        row = list(range(len(two) + 1))
        for i, a in enumerate(one):
            last, row[0] = row[0], i + 1
            for j, b in enumerate(two):
                last, row[j + 1] = row[j + 1], min(last + (a != b), row[j] + 1, row[j + 1] + 1)
        return row[-1]

    scores = []
    for own, others in zip(said, answers, strict=True):
        left = " ".join(own.strip().lower().split())
        parts = []
        for other in others:
            length = max(len(own.upper()), len(other.upper()))
            parts.append(distance(left, " ".join(other.strip().lower().split())) / length if length else 0.0)
        similarity = 1 - min(parts)
        scores.append(similarity if similarity >= 0.5 else 0.0)
    return scores


def compare(
    name: str, ours: Callable[..., Any], theirs: Callable[..., Any], data: Any, part: int
) -> dict[str, Any]:
    """Time both sides (the reference on the first `part` items) and check that the scores agree."""
    start = process_time()
    own = list(ours(*data))
    own_seconds = process_time() - start
    start = process_time()
    other = theirs(*(column[:part] for column in data))
    other_seconds = (process_time() - start) * len(own) / part
    worst = max(abs(a - b) for a, b in zip(own, other, strict=False))
    assert worst < 1e-9, f"{name}: scores differ by {worst}"
    ratio = other_seconds / own_seconds
    print(
        f"{name:<6} {len(own):>7} items   reference {other_seconds:8.2f} s   ours {own_seconds:7.3f} s"
        f"   {ratio:6.1f}x   {len(own) / own_seconds:>9,.0f}/s   largest difference {worst:.1e}",
        file=sys.stderr,
    )
    return {
        "metric": name,
        "items": len(own),
        "reference_seconds": other_seconds,
        "seconds": own_seconds,
        "ratio": ratio,
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--part", type=float, default=1.0, help="share of the full size, 0 .. 1")
    options.add_argument("--json", action="store_true", help="print the numbers as JSON on standard output")
    given = options.parse_args()
    images, asked, read = (int(size * given.part) for size in (40_504, 214_000, 200_000))
    print(f"CIDEr reference: {'pycocoevalcap' if CiderScorer else 'written out here'}", file=sys.stderr)
    results = [
        compare("CIDEr", cider.scores, cider_reference, captions(images), images),
        compare("VQA", vqa.scores, vqa_reference, questions(asked), asked),
        compare("ANLS", anls.scores, anls_reference, lines(read), max(1, read // 50)),
    ]
    if given.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
