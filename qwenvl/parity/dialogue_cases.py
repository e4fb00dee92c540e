"""Checks of the recorded dialogues: prompts in a window, replies, fine-tuning rows with their labels."""

from collections.abc import Sequence

from qwenvl import markup
from qwenvl.markup import Turn
from qwenvl.parity import official
from qwenvl.parity.text_cases import Case, recorded_error, typed_text
from qwenvl.tokenizer import Tokenizer


def make_context(case: Case) -> None:
    """The prompt of a dialogue, cut to the window; also by `fit_window` and `render_chat`."""
    tokenizer, query, system, history = case.tokenizer, case["query"], case["system"], case["history"]
    window, chat_format = case["max_window_size"], case["chat_format"]
    recorded = recorded_error(case) if "error" in case else {"ok": (case["raw_text"], case["context_tokens"])}
    same = case.outcome(
        "context",
        lambda: official.make_context(tokenizer, query, history, system, window, chat_format),
        recorded,
    )
    texts = [query, *(text for exchange in history or [] for text in exchange)]
    typed = [None if text is None else typed_text(text, tokenizer) for text in texts]
    stray = None in typed or any(tag in system for tag in official.IMAGE_TAGS)
    if not same or "error" in case or chat_format != "chatml" or stray:
        return
    roles = ["user", *("user", "assistant") * len(history or [])]
    question, *earlier = (Turn(role, tuple(part or ())) for role, part in zip(roles, typed, strict=True))
    kept = markup.fit_window([*earlier, question], tokenizer, official.SLOTS, system, window)
    rendered = markup.render_chat(kept, tokenizer, official.SLOTS, system=system)
    case.equal("render_chat", official.official_ids(rendered, tokenizer), case["context_tokens"])


def decode_tokens(case: Case) -> None:
    """The reply read from generated ids; ours is what `chat` gives: the text up to the first stop symbol."""
    tokenizer, generated, chat_format = case.tokenizer, case["generated"], case["chat_format"]

    def prompt() -> tuple[str, list[int]]:
        return official.make_context(
            tokenizer, case["query"], case["history"], case["system"], chat_format=chat_format
        )

    recorded = recorded_error(case) if "error" in case else {"ok": (case["response"], case["end_reason"])}
    same = case.outcome(
        "reply", lambda: official.decode_tokens(tokenizer, *prompt(), generated, chat_format), recorded
    )
    if not same or chat_format == "raw":
        return
    try:
        raw_text, context = prompt()
    except ValueError:  # refused for the sake of the prompt
        return
    stops = [
        place for place, token in enumerate(generated) if token in (tokenizer.im_start, tokenizer.im_end)
    ]
    said = generated[: stops[0] if stops else None]
    if min(generated, default=0) < 0 or tokenizer.endoftext in (said if stops else said[:-1]):
        case.notes.append("never generated: a negative id, or anything behind <|endoftext|>")
        return
    ours = tokenizer.decode(said).removesuffix("<|endoftext|>").strip()
    if "error" in case:
        case.defects.append("reply raises")
        return
    if ours == case["response"]:
        return
    prompt_text = official.decode(context, tokenizer)
    dropped = not stops and bool(generated)
    with_defects = (prompt_text + official.decode(said[:-1] if dropped else said, tokenizer))[
        len(raw_text) :
    ].strip()
    if case.equal("reply with the known defects", with_defects, case["response"]):
        case.defects += ["slice"] * (len(prompt_text) != len(raw_text)) + ["dropped"] * dropped
    if not case.defects:
        case.equal("reply", ours, case["response"])


def sft_preprocess(case: Case) -> None:
    """Ids and labels of a dialogue to learn from; also by `render_chat`."""
    tokenizer, length, conversation = case.tokenizer, case["max_len"], case["conversations"]
    if "error" in case:
        case.outcome(
            "ids", lambda: official.sft_preprocess(conversation, tokenizer, length), recorded_error(case)
        )
        return
    ids, labels = official.sft_preprocess(conversation, tokenizer, length)
    same = case.equal("ids", ids, case["input_ids"]) & case.equal("labels", labels, case["labels"])
    mask = [int(token != tokenizer.endoftext) for token in ids]
    if not same or not case.equal("mask", mask, case["attention_mask"]):
        return
    turns = conversation[0 if conversation[0]["from"] == "user" else 1 :]
    values = [turn["value"] for turn in turns]
    injected = any(
        official.encode(value, tokenizer) != official.encode(value, tokenizer, official.IMAGE_TAGS)
        for value in values
    )
    whole, whole_labels = official.sft_preprocess(conversation, tokenizer, None, allowed=official.IMAGE_TAGS)
    case.defects += ["injected"] * injected + ["cut"] * _inside_image(ids, whole, tokenizer)
    typed = [typed_text(value, tokenizer) for value in values]
    if None in typed:
        return
    rendered = markup.render_chat(
        [Turn(turn["from"], tuple(part or ())) for turn, part in zip(turns, typed, strict=True)],
        tokenizer,
        official.SLOTS,
        open_for_answer=False,
    )
    ours = official.official_ids(rendered, tokenizer)
    our_labels = [
        token if learn else official.IGNORE for token, learn in zip(ours, rendered.loss_mask, strict=True)
    ]
    if case.equal("render_chat", ours, whole) and our_labels != whole_labels:
        for start in rendered.image_starts:
            span = slice(start - 1, start + official.SLOTS + 1)
            whole_labels[span] = our_labels[span]
        case.defects.append("path")
    case.equal("learned", our_labels, whole_labels)


def _inside_image(ids: Sequence[int], whole: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether `ids` end between `<img>` and `</img>`, though the whole dialogue goes on."""
    marks = [token for token in ids if token in (tokenizer.img, tokenizer.img_end)]
    return len(ids) < len(whole) and marks[-1:] == [tokenizer.img]
