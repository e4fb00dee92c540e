import math
import random
import re

import pytest
import torch

from qwenvl.config import AdapterConfig, LLMConfig, ModelConfig, VisionConfig
from qwenvl.generate.engine import Prompt, Settings, generate
from qwenvl.generate.grammar import Grammar, State, fewest_tokens, with_scores
from qwenvl.generate.sampling import SamplingConfig
from qwenvl.markup import Box, Quad, Ref, Text, parse, spell
from qwenvl.model.vlm import QwenVL
from qwenvl.parity.tokenizer import find_vocabulary
from qwenvl.tokenizer import Tokenizer

PADDED = 7
"""Rows of the head beyond the vocabulary."""

MALICIOUS = (
    *(b"),", b"),(", b"((", b",(", b"))", b",1", b"12", b"(7", b"99)", b"0,", b"1000", b"(1,2)", b"3),(4"),
    *(b"<b", b"<box", b"ox>", b"<ref>", b"x<box>", b"</", b"quad>", b">", b"><", b"1)</box>", b"\xe4\xb8"),
)
"""Tokens that cross the symbols of the grammar, or spell a tag in letters."""

TAG = re.compile("</?(ref|box|quad)>")
NUMBER = "(0|[1-9][0-9]{0,2})"
POINT = rf"\({NUMBER},{NUMBER}\)"
CLOSED = re.compile(
    rf"(?:(?!</?(?:ref|box|quad)>).|<ref>(?:(?!</?(?:ref|box|quad)>).)+</ref>"
    rf"|<box>{POINT},{POINT}</box>|<quad>{POINT}(?:,{POINT}){{3}}</quad>)*",
    re.DOTALL,
)
"""Text with whole, properly spelled markup and nothing else that looks like a tag."""


def tiny() -> Tokenizer:
    tokens = [bytes([value]) for value in range(256)]
    return Tokenizer({token: rank for rank, token in enumerate(dict.fromkeys([*tokens, *MALICIOUS]))})


def official() -> Tokenizer:
    return Tokenizer.load(find_vocabulary())


VOCABULARIES = {"tiny": tiny, "official": official}


@pytest.fixture(scope="module", params=VOCABULARIES)
def grammar(request: pytest.FixtureRequest) -> Grammar:
    tokenizer = VOCABULARIES[request.param]()
    return Grammar(tokenizer, tokenizer.n_vocab + PADDED)


def allowed(grammar: Grammar, state: State, max_remaining: int) -> set[int]:
    choice = grammar.choice(state, max_remaining)
    if choice.only is not None:
        return set(choice.only)
    return set(range(grammar.tokenizer.n_vocab + PADDED)) - set(choice.never)


def wander(
    grammar: Grammar, max_remaining: int, chance: random.Random, state: State
) -> tuple[list[int], State]:
    """A random answer of `max_remaining` tokens, as broken as the grammar allows."""
    tokenizer = grammar.tokenizer
    tempting = [
        *(
            tokenizer.ref,
            tokenizer.ref_end,
            tokenizer.box,
            tokenizer.box_end,
            tokenizer.quad,
            tokenizer.quad_end,
        ),
        *(token for piece in "<box></ref>(1,2)999" for token in tokenizer.encode(piece)),
        *(token for piece in MALICIOUS for token in tokenizer.encode(piece.decode(errors="ignore"))),
    ]
    ids: list[int] = []
    while len(ids) < max_remaining:
        choice = grammar.choice(state, max_remaining - len(ids))
        if choice.only is not None:
            assert choice.only, f"nothing may follow {state}"
            token = chance.choice(choice.only)
        else:
            never = set(choice.never)
            often = [token for token in tempting if token not in never]
            token = (
                chance.choice(often)
                if often and chance.random() < 0.8
                else chance.randrange(tokenizer.n_vocab)
            )
            if token in never:
                continue
        ids.append(token)
        state = grammar.advance(state, token)
    return ids, state


def test_no_random_answer_is_malformed(grammar: Grammar):
    chance = random.Random(0)
    seen = {Ref: 0, Box: 0, Quad: 0}
    for round_number in range(300):
        max_remaining = chance.randint(1, 60)
        ids, state = wander(grammar, max_remaining, chance, State())
        text = grammar.tokenizer.decode(ids)
        assert not state.is_open, text
        assert CLOSED.fullmatch(text), text
        segments = parse(text)
        assert not any(TAG.search(s.text) for s in segments if isinstance(s, Text | Ref)), text
        for segment in segments:
            if isinstance(segment, Box):
                assert segment.x1 <= segment.x2 and segment.y1 <= segment.y2, text
            if type(segment) in seen:
                seen[type(segment)] += 1
        assert spell(segments) == text, round_number
        logprobs = [math.log(chance.uniform(1e-9, 1)) for _ in ids]
        for segment in with_scores(segments, ids, logprobs, grammar.tokenizer):
            if isinstance(segment, Box | Quad):
                assert segment.score is not None and 0 < segment.score <= 1
    assert min(seen.values()) > 15, seen


def test_every_proper_spelling_can_be_written(grammar: Grammar):
    """Also those in which one token holds several symbols of the grammar."""
    tokenizer = grammar.tokenizer
    for text in ("(0,0),(0,0)", "(7,42),(999,42)", "(10,20),(300,400)", "(1,2),(3,4)"):
        state = grammar.advance(State(), tokenizer.box)
        for token in tokenizer.encode(text):
            assert token in allowed(grammar, state, 40), (text, state)
            state = grammar.advance(state, token)
        assert allowed(grammar, state, 1) == {tokenizer.box_end}
        assert grammar.advance(state, tokenizer.box_end) == State()


@pytest.mark.parametrize(
    "text",
    [
        "(1,2),(3,4",
        "(1000,",
        "(01,",
        "(,",
        "()",
        "1",
        "(5,5),(4",
        "(5,5),(6,4",
        "(-1",
        "(1, 2",
        "(1,2)(",
        "(1,2),(3,4),",
    ],
)
def test_what_is_no_box_cannot_be_written(text: str):
    grammar = Grammar(tiny(), tiny().n_vocab)
    state: State | None = State("box")
    for byte in text.encode():
        assert state is not None
        after = grammar._after(state, byte)
        if after is None:
            assert byte not in allowed(grammar, state, 40)
            return
        assert byte in allowed(grammar, state, 40)
        state = after
    assert state is not None
    assert grammar.tokenizer.box_end not in allowed(grammar, state, 40)
    assert text in ("(1,2),(3,4", "(5,5),(4", "(5,5),(6,4")  # too few: "(5,5),(4" may become 40
    assert (text == "(1,2),(3,4") == (ord(")") in allowed(grammar, state, 40))


def test_nothing_but_its_own_end_closes_a_tag(grammar: Grammar):
    tokenizer = grammar.tokenizer
    inside = State("ref", begun=True)
    permitted = allowed(grammar, inside, 9) & set(range(tokenizer.n_ranks, tokenizer.n_vocab + PADDED))
    assert permitted == {tokenizer.ref_end}  # no <|im_end|>, no <|endoftext|>, no <box>
    assert tokenizer.ref_end not in allowed(grammar, State("ref"), 9)  # an empty phrase
    outside = allowed(grammar, State(), 30)
    assert {tokenizer.im_end, tokenizer.endoftext, tokenizer.ref, tokenizer.box, tokenizer.quad} <= outside
    assert not outside & {
        tokenizer.ref_end,
        tokenizer.box_end,
        tokenizer.img,
        tokenizer.img_end,
        tokenizer.imgpad,
    }
    assert max(outside) < tokenizer.n_vocab


def test_letters_cannot_spell_a_tag():
    grammar = Grammar(tiny(), tiny().n_vocab)
    state = State()
    for letter in b"a <bo":
        state = grammar.advance(state, letter)
    assert state.tail == b"<bo"
    state = grammar.advance(state, ord("x"))
    assert ord(">") not in allowed(grammar, state, 9)
    assert ord(">") in allowed(grammar, grammar.advance(state, ord(" ")), 9)


def test_tags_open_only_while_they_can_be_closed(grammar: Grammar):
    tokenizer = grammar.tokenizer
    shortest = {
        tokenizer.ref: 3,
        tokenizer.box: len("(0,0),(0,0)") + 2,
        tokenizer.quad: len("(0,0),(0,0),(0,0),(0,0)") + 2,
    }
    for token, needed in shortest.items():
        assert token in allowed(grammar, State(), needed) and token not in allowed(
            grammar, State(), needed - 1
        )
    state = State("box", place=len("(#,#),("), numbers=(950, 8))
    assert fewest_tokens(state) == len("950,8)") + 1


def test_a_prompt_may_leave_a_tag_open(grammar: Grammar):
    tokenizer = grammar.tokenizer
    ref = [tokenizer.ref, *tokenizer.encode("a dog"), tokenizer.ref_end]
    assert grammar.start([5, *ref]) == State()
    assert grammar.start([5, *ref, tokenizer.box]) == State("box")
    begun = grammar.start([*ref, tokenizer.box, *tokenizer.encode("(12,3")])
    assert begun.numbers == (12,) and begun.digits == "3"
    assert grammar.start([*ref, tokenizer.box, *tokenizer.encode("nonsense")]) == State()
    chance = random.Random(1)
    for _ in range(20):
        ids, _ = wander(grammar, 14, chance, State("box"))
        assert CLOSED.fullmatch("<box>" + tokenizer.decode(ids))


# === Through the engine ===


def random_model(tokenizer: Tokenizer) -> QwenVL:
    torch.manual_seed(0)
    config = ModelConfig(
        vision=VisionConfig(width=16, layers=1, heads=1, mlp_width=16, image_size=28),
        adapter=AdapterConfig(queries=4, heads=1),
        llm=LLMConfig(vocab_size=tokenizer.n_vocab + PADDED, hidden=16, layers=1, heads=2, mlp_width=16),
        imgpad_id=tokenizer.imgpad,
    )
    model = QwenVL(config).eval()
    with torch.no_grad():
        model.llm.head.weight.normal_()
    return model


def test_random_logits_give_whole_markup():
    tokenizer = tiny()
    model = random_model(tokenizer)
    grammar = Grammar(tokenizer, model.config.llm.vocab_size)
    prompts = [
        Prompt(ids=(i + 1, tokenizer.ref, 97, tokenizer.ref_end, tokenizer.box), seed=i) for i in range(24)
    ]
    settings = Settings(
        max_new_tokens=40,
        min_new_tokens=10,
        sampling=SamplingConfig(greedy=False, temperature=1.5),
        stop=((tokenizer.im_end,), tuple(b"1,")),
    )
    for prompt, answer in zip(prompts, generate(model, prompts, settings, grammar), strict=True):
        text = tokenizer.decode([*prompt.ids, *answer.ids])
        assert CLOSED.fullmatch(text), text
        (box, *_), scored = [s for s in parse(text) if isinstance(s, Box)], answer.logprobs
        assert box.label == "a" and all(logprob <= 0 for logprob in scored)


def test_a_score_is_the_geometric_mean_of_the_digits():
    tokenizer = tiny()
    ids = [tokenizer.box, *b"(12,3),(45,6)", tokenizer.box_end]
    digits = {49: 0.5, 50: 0.9, 51: 0.8, 52: 1.0, 53: 0.25, 54: 0.7}
    logprobs = [math.log(digits.get(token, 0.001)) for token in ids]
    (box,) = with_scores(parse(tokenizer.decode(ids)), ids, logprobs, tokenizer)
    assert isinstance(box, Box)
    assert box.score == pytest.approx(math.prod(digits.values()) ** (1 / 6))


def test_scores_find_their_boxes():
    """A box in plain letters has no score; a broken one is passed over."""
    tokenizer = tiny()
    spelled = list(b"<bo") + list(b"x>(1,1),(2,2)</box>")
    broken = [tokenizer.box, *b"(1,2)", tokenizer.box_end]
    real = [tokenizer.box, *b"(1,1),(2,2)", tokenizer.box_end]
    again = [tokenizer.box, *b"(3,3),(4,4)", tokenizer.box_end]
    ids = [*spelled, *broken, *real, *again]
    logprobs = [math.log(0.5)] * (len(ids) - len(again)) + [math.log(0.25)] * len(again)
    boxes = [
        s for s in with_scores(parse(tokenizer.decode(ids)), ids, logprobs, tokenizer) if isinstance(s, Box)
    ]
    assert [box.score for box in boxes if box.x1 == 3] == [pytest.approx(0.25)]
    assert sum(box.score is not None for box in boxes) == 2
