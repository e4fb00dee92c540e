"""VQA accuracy (paper Tables 4 and 5: VQAv2, OKVQA, VizWiz, TextVQA) as the released evaluation computes it.

An answer earns min(1, agreeing people / 3), averaged over the ten ways to leave one of the ten people out.
Before that the prediction is normalised; the people's answers only lose their punctuation, and only if they disagree.

`official=True` keeps two slips of the reference that every published number contains: its look-behind for "a period
between digits" is misspelt and does nothing, so that *any* period not followed by a digit goes; and a flag lands in
the argument for the number of replacements, so that only the first 32 such periods of a string go.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from qwenvl.evaluation.metrics.tally import Tally, tally

MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COUNTED = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(i) for i, word in enumerate(_COUNTED.split())}
NUMBERS["none"] = "0"
ARTICLES = frozenset({"a", "an", "the"})

# Each is reached from every spelling that lacks exactly one of its apostrophes: hadnt've, hadn'tve -> hadn't've.
# The reference also lists Im, Ive, Id've and I'dve; words are lower-cased first, so those can never match.
SPELT = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
    mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't
    shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've
    they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
    wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word for word in SPELT.split() for i, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # this one runs the wrong way in the reference

_MARK = re.compile("[" + re.escape(MARKS) + "]")
_DIGITS_COMMA = re.compile(r"\d,\d")
_PERIOD_OFFICIAL = re.compile(r"\.(?!\d)")
_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
_CACHED = 1 << 16


@lru_cache(_CACHED)
def process_punctuation(text: str, official: bool = True) -> str:
    """Marks vanish where one of them touches a space (or `1,000` stands anywhere in the text), else become a space."""
    out = text
    if marks := set(_MARK.findall(text)):
        all_vanish = _DIGITS_COMMA.search(text) is not None
        for mark in marks:
            vanishes = all_vanish or f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if vanishes else " ")
    if "." not in out:
        return out
    return _PERIOD_OFFICIAL.sub("", out, count=32) if official else _PERIOD.sub("", out)


@lru_cache(_CACHED)
def process_words(text: str) -> str:
    """Lower case; none, zero .. ten as digits; no articles; apostrophes restored (dont -> don't)."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(_CACHED)
def process_prediction(text: str, official: bool = True) -> str:
    """A model's answer as it is compared: newlines and tabs become spaces, then punctuation, then words."""
    flat = text.replace("\n", " ").replace("\t", " ").strip()
    return process_words(process_punctuation(flat, official))


def score(prediction: str, answers: Sequence[str], *, official: bool = True) -> float:
    """Agreement in 0..1 of one prediction with the people's answers (ten in every benchmark of the paper)."""
    if not answers:
        raise ValueError(
            "a VQA question has no reference answers; the annotation file should list ten for each."
        )
    said = process_prediction(prediction, official)
    if answers.count(answers[0]) != len(answers):
        answers = [process_punctuation(answer, official) for answer in answers]
    agreeing = answers.count(said)
    if not agreeing:
        return 0.0
    if agreeing > 3:
        return 1.0
    return _leave_one_out(tuple([answer == said for answer in answers]))


@lru_cache(_CACHED)
def _leave_one_out(agrees: tuple[bool, ...]) -> float:
    """Mean over people of min(1, agreeing others / 3), added in the people's order as the reference adds it."""
    return tally(min(1.0, (sum(agrees) - own) / 3) for own in agrees).mean


def scores(
    predictions: Iterable[str], answers: Iterable[Sequence[str]], *, official: bool = True
) -> list[float]:
    """`score` for each question."""
    return [score(said, own, official=official) for said, own in zip(predictions, answers, strict=True)]


def percent(total: Tally, digits: int = 2) -> float:
    """100 x mean, rounded as the reference reports it."""
    return round(total.mean_times(100), digits)
