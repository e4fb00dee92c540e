"""Captions: the tokeniser's rules and hand-computed CIDEr-D, BLEU and ROUGE-L."""

import math

import numpy as np
import pytest

from qwenvl.evaluation.metrics import bleu, captions, cider, ptb, rouge


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man, isn't he?", "a man is n't he"),
        ("y'all cannot say it's 5%...", "y' all can not say it 's 5 %"),
        ("Mr. Smith met the U.S. team at 10 a.m.", "mr. smith met the u.s. team at 10 a.m."),
        ("approx. 3 dogs; approx., two", "approx 3 dogs approx. two"),
        ("(a) [b] {c}", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb-"),
        ("£5 €5 5¢ ½ 1¾", "# 5 $ 5 5 cents 1/2 1 3/4"),
        ("😀 red… “cat” — café\u00adteria", "red cat caféteria"),
        ("me@example.com www.a.com http://a.com/b?c=1.", "me@example.com www.a.com http://a.com/b?c=1"),
        ("hm ?! ! a -- b - c ----- d", "hm ?! a b c ----- d"),
        ("line\nbreak", "line break"),
        ("", ""),
    ],
)
def test_tokeniser(caption, words):
    assert ptb.tokenise([caption, "next"])[0] == words


def test_the_tokeniser_looks_at_the_next_caption():
    assert ptb.tokenise(["route a.", "The dog", "x"])[0] == "route a"
    assert ptb.tokenise(["route a.", "the dog", "x"])[0] == "route a."
    assert ptb.tokenise_groups([["route a."], [], ["The dog", "x"]]) == [["route a"], [], ["the dog", "x"]]


def test_cider_by_hand():
    """Two images, idf log 2 for every word: unigram cosine 1/2 (one of two words), no bigram in common."""
    scores = cider.scores(["red cat", "big dog"], [["red car"], ["big dog"]])
    assert scores == pytest.approx([10 * 0.5 / 4, 10 * 2 / 4])


def test_cider_counts_length_in_bigrams_and_clips():
    scores = cider.scores(["a a a", "z"], [["a b"], ["q"]])
    # caption: a three times, norm 3; reference: a and b, norm sqrt 2; clipped product 1; 2 against 1 bigrams
    assert scores[0] == pytest.approx(10 / 4 / (3 * math.sqrt(2)) * math.exp(-1 / 72))
    assert scores[1] == 0.0


def test_cider_of_nothing_and_of_one_image():
    assert cider.scores([], []).tolist() == []
    assert cider.scores(["a b"], [["a b"]]).tolist() == [0.0]  # every idf is log 1
    assert cider.scores(["", "a"], [["", "b"], ["a"]]).tolist() == pytest.approx([0.0, 2.5])
    with pytest.raises(ValueError, match="no references"):
        cider.scores(["a"], [[]])


def test_bleu_by_hand():
    counts = bleu.overlap("the the cat", ["the cat sat on", "a cat"])
    assert counts == bleu.Overlap(3, 2, (3, 2, 1, 0), (2, 1, 0, 0))
    assert counts.scores[:2] == pytest.approx((2 / 3, math.sqrt(2 / 3 / 2)), abs=1e-6)
    short = bleu.overlap("a", ["a b c"])
    assert short.scores[0] == pytest.approx(math.exp(-2), abs=1e-6)
    assert (counts + short).length == 4


def test_rouge_by_hand():
    precision, recall = 2 / 3, 2 / 4
    expected = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert rouge.score("a b c", ["a x b y"]) == pytest.approx(expected)
    assert rouge.score("", [""]) == 1.0  # one empty word each
    assert rouge.score("a", ["b"]) == 0.0


def test_a_corpus_has_every_score_of_the_kit():
    found = captions.score(["A red car.", "Two dogs."], [["a red car", "a car"], ["two dogs!"]])
    assert list(found.corpus) == ["CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"]
    assert found.corpus["ROUGE_L"] == 1.0
    assert np.isfinite(list(found.corpus.values())).all()
    with pytest.raises(ValueError, match="no captions"):
        _ = captions.score([], []).corpus
