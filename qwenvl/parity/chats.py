"""Recorded dialogues of the official chat model (`chat`, `chat_stream`), against our renderer, engine and Assistant.

Every turn is checked from the history that the official code had at that point, so that one difference does not spread
over the rest of the dialogue.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwenvl import markup
from qwenvl.chat import Assistant
from qwenvl.generate import engine
from qwenvl.options import Options, PromptFormat
from qwenvl.parity import official
from qwenvl.parity.answers import check_answer, check_margins, step_logits
from qwenvl.parity.certificate import Result
from qwenvl.parity.fixture import UNREADABLE, Case, Fixture
from qwenvl.parsing import read_json

LAST_TOKEN = "the last token of an answer without a stop symbol is dropped (official.md 8.7); ours keeps it"
CUT_BY_CHARACTERS = (
    "the prompt is cut off by its length before NFC (official.md 8.7); ours decodes the answer alone"
)
TAGS_FROM_DATA = (
    "tags that stand alone in a text become control symbols (official.md 8.11); in ours they stay text"
)

History = Sequence[Sequence[str]]


def certify_dialogue(name: str, fixture: Fixture, values: Mapping[str, Any]) -> Iterator[Result]:
    """A result for every turn of a `chat` case; what is recorded of the whole dialogue is checked with each."""
    turns = values.get("turns")
    if not isinstance(turns, list) or not turns:
        yield Result(name, "FAIL", None, None, "case not understood: no turns")
        return
    history: History = values.get("history") or []
    for number, turn in enumerate(turns, start=1):
        turn_name = f"{name} turn {number}"
        try:
            case = Case(turn_name, {**values, **turn}, fixture.path)
            case.describes("turns", "note", "history")
            _chat(fixture, case, history)
            yield case.result()
            history = turn["history_after"]
        except UNREADABLE as error:
            yield Result(
                turn_name, "FAIL", None, None, f"case not understood: {type(error).__name__}: {error}"
            )
            return


def certify_streams(fixture: Fixture, file: Path) -> Iterator[Result]:
    """A result for every case of `chat_stream.json`."""
    recorded = read_json(file)
    name = f"{fixture.path.name} chat_stream"
    if not isinstance(recorded, dict) or set(recorded) - {"note", "cases"} or not recorded.get("cases"):
        yield Result(name, "FAIL", None, None, "case not understood: expected a note and a list of cases")
        return
    for number, values in enumerate(recorded["cases"], start=1):
        try:
            case = Case(f"{name} {number}", values, fixture.path)
            _stream(fixture, case)
            yield case.result()
        except UNREADABLE as error:
            note = f"case not understood: {type(error).__name__}: {error}"
            yield Result(f"{name} {number}", "FAIL", None, None, note)


# === One turn ===


def _chat(fixture: Fixture, case: Case, history: History) -> None:
    """Prompt as text and as ids, greedy answer, its text, the history behind it."""
    system, window, max_remaining = case["system"], case["max_window_size"], case["max_new_tokens"]
    query, context, response = case["query"], case["context_ids"], case["response"]
    ids, keys = fixture.split_paths(context)
    case.equal("paths in the context", keys, [*map(official.composed, case["image_keys"])])
    case.check_images(fixture, case["image_keys"], case["images"])
    raw_text, expected = official_context(fixture, query, history, system, window)
    case.equal("raw_text", raw_text, case["raw_text"])
    case.equal("context_ids", fixture.split_paths(expected, official.SLOTS), (ids, keys))

    dialogue = turns_of(query, history)
    _check_context(fixture, case, ids, dialogue, system, window)
    stop_words = case["stop_words_ids"]
    text = _check_reply(
        fixture, case, ids, keys, context, raw_text, case["generated"], max_remaining, response, stop_words
    )
    case.equal("history_after", [*map(list, history), [query, response]], case["history_after"])
    if {*map(tuple, stop_words)} == {(fixture.tokenizer.im_end,), (fixture.tokenizer.im_start,)}:
        prompt_format = PromptFormat(max_new_tokens=max_remaining, max_window=window)
        _check_front_door(fixture, case, ids, dialogue, text, prompt_format, system)


def _stream(fixture: Fixture, case: Case) -> None:
    """The same tokens, what is shown after each of them, and the text of the whole.

    At every step the official stream spells all new ids, without control symbols and half characters; ours yields
    the pieces of the reply. Both are checked to follow from the same ids.
    """
    history, query, generated = case["history"] or [], case["query"], case["generated"]
    raw_text, context = official_context(fixture, query, history, markup.SYSTEM, PromptFormat().max_window)
    ids, keys = fixture.split_paths(context, official.SLOTS)
    dialogue = turns_of(query, history)
    _check_context(fixture, case, ids, dialogue, markup.SYSTEM, PromptFormat().max_window)
    stops = [[fixture.tokenizer.im_end], [fixture.tokenizer.im_start]]
    max_remaining, response = len(generated), case["final_chat_response"]
    text = _check_reply(
        fixture, case, ids, keys, context, raw_text, generated, max_remaining, response, stops
    )
    shown = [
        official.decode(
            generated[:count], fixture.tokenizer, skip_special=True, keep_image_special=True, errors="ignore"
        )
        for count in range(1, max_remaining + 1)
    ]
    case.equal("yields", shown, case["yields"])
    _check_front_door(
        fixture, case, ids, dialogue, text, PromptFormat(max_new_tokens=max_remaining), markup.SYSTEM
    )


def official_context(
    fixture: Fixture, query: str, history: History, system: str, window: int
) -> tuple[str, list[int]]:
    """Prompt as text and in ids with the released number of slots; the window counts this model's own slots."""
    tokenizer = fixture.tokenizer
    max_remaining = (
        window - 2 - len(fixture.encode(system, official.IMAGE_TAGS)) - len(tokenizer.encode("system"))
    )
    max_remaining -= len(tokenizer.encode("\n"))

    def context(kept: int) -> tuple[str, list[int], int]:
        pairs = history[len(history) - kept :]
        text, ids = official.make_context(tokenizer, query, pairs, system, max_window=2**62)
        return text, ids, len(fixture.split_paths(ids, official.SLOTS)[0])

    text, ids, length = context(0)
    alone = length
    for kept in range(1, len(history) + 1):
        longer = context(kept)
        if longer[2] - alone >= max_remaining:
            break
        text, ids, length = longer
    return text, ids


def turns_of(query: str, history: History) -> list[markup.Turn]:
    """A recorded dialogue as objects: questions are trusted to hold images, answers are what a model wrote."""
    turns = []
    for question, answer in history:
        turns += [_question(question), markup.Turn("assistant", tuple(markup.parse(answer)))]
    return [*turns, _question(query)]


def _question(text: str) -> markup.Turn:
    """With its images as objects; in a question with a broken tag, all other tags that stand alone are text."""
    try:
        return markup.Turn("user", tuple(markup.parse_trusted(text)))
    except ValueError:
        parts = re.split("<img>(.+?)</img>", text, flags=re.DOTALL)
        pieces = [[markup.Image(p)] if k % 2 else markup.parse(p) for k, p in enumerate(parts)]
        return markup.Turn("user", tuple(segment for piece in pieces for segment in piece))


def _check_context(
    fixture: Fixture, case: Case, ids: list[int], dialogue: list[markup.Turn], system: str, window: int
) -> None:
    """Our prompt is the recorded one, unless a text spells a tag that our renderer leaves a text."""
    tokenizer, queries = fixture.tokenizer, fixture.queries
    kept = markup.fit_window(dialogue, tokenizer, queries, system, window)
    ours = list(markup.render_chat(kept, tokenizer, queries, system=system).ids)
    texts = [
        part.text for turn in dialogue for part in turn.content if isinstance(part, markup.Text | markup.Ref)
    ]
    if ours != ids and any(tag in text for tag in official.IMAGE_TAGS for text in [system, *texts]):
        case.fixed(TAGS_FROM_DATA)
    else:
        case.equal("our prompt", ours, ids)


def _check_reply(
    fixture: Fixture,
    case: Case,
    ids: list[int],
    keys: Sequence[str],
    context: Sequence[int],
    raw_text: str,
    generated: list[int],
    max_remaining: int,
    response: str,
    stop_words: Sequence[Sequence[int]],
) -> str:
    """Our answer to the recorded prompt: its ids and its text, which is returned."""
    tokenizer = fixture.tokenizer
    prompt = engine.Prompt(ids=tuple(ids), pixels=fixture.arrays([fixture.source(key) for key in keys]))
    ours = check_answer(fixture, case, prompt, context, generated, max_remaining, stop_words)
    if "min_top2_margin" in case:
        check_margins(case, step_logits(fixture.model, prompt, generated)[:-1])
    stops = (tokenizer.im_end, tokenizer.im_start, tokenizer.endoftext)
    text = tokenizer.decode(ours[:-1] if ours[-1] in stops else ours).strip()

    cut, _ = official.decode_tokens(tokenizer, raw_text, context, generated)
    case.equal("response, cut from our ids as the official code does", cut, response)
    if text == response:
        return text
    if not {tokenizer.im_end, tokenizer.im_start} & {*generated} and ours[-1] != tokenizer.endoftext:
        case.fixed(LAST_TOKEN)
    elif official.decode(context, tokenizer) != raw_text:
        case.fixed(CUT_BY_CHARACTERS)
    else:
        case.equal("response", text, response)
    return text


def _check_front_door(
    fixture: Fixture,
    case: Case,
    ids: list[int],
    dialogue: Sequence[markup.Turn],
    text: str,
    prompt_format: PromptFormat,
    system: str,
) -> None:
    """The Assistant gives the same text, whole and in pieces, where it makes the same prompt.

    It numbers the images itself, so a recorded question without numbers is no prompt of its.
    """
    assistant = Assistant(fixture.model, fixture.tokenizer, prompt_format)
    turns, options = _unnumbered(fixture, dialogue), Options(system=system)
    if list(assistant.render(turns, options).ids) == ids:
        case.equal("Assistant.reply", assistant.reply([turns], options)[0].text, text)
        case.equal("Assistant.stream", "".join(assistant.stream_turns(turns, options)), text)


def _unnumbered(fixture: Fixture, dialogue: Sequence[markup.Turn]) -> list[markup.Turn]:
    """The turns without the `Picture k: ` and the newline that the Assistant puts around an image itself."""
    count = 0
    turns = []
    for turn in dialogue:
        content = list(turn.content)
        for place, segment in enumerate(content):
            if isinstance(segment, markup.Image):
                count += 1
                content[place] = markup.Image(str(fixture.source(str(segment.source))))
                before, behind = (content[i : i + 1] for i in (place - 1, place + 1))
                if place and isinstance(before[0], markup.Text):
                    content[place - 1] = markup.Text(before[0].text.removesuffix(f"Picture {count}: "))
                if behind and isinstance(behind[0], markup.Text):
                    content[place + 1] = markup.Text(behind[0].text.removeprefix("\n"))
        turns.append(replace(turn, content=tuple(content)))
    return turns
