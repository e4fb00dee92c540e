"""Training documents of the toy world: document number `index` is a pure function of (source, seed, index).

lookups    the things of a scene in words, and questions that name them         the language model's own pre-training
text       a scene in words, and tasks about it that each see the words only   the same
described  a dialogue in ChatML about a scene in words                         the same
captions   an image and its caption                                          stage 1
tasks      an image and some of the formats of Appendix B, one branch each   stage 2
chats      a dialogue in ChatML about no, one or two images                   stage 3
exchanges  an image and beginnings of dialogues about it, one branch each    the same
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qwenvl.data.formats import Example, example, task
from qwenvl.data.toy.chats import chat, described_chat, exchanges
from qwenvl.data.toy.paint import render as paint
from qwenvl.data.toy.tasks import KINDS, QUESTION_KINDS, scene_text, tasks, things_text
from qwenvl.data.toy.worlds import Dice, Scene, scene
from qwenvl.markup import SYSTEM, Image, Rendered, Segment, Turn, number_images, render, render_chat, spell
from qwenvl.tokenizer import Tokenizer

TASKS_PER_IMAGE, TASKS_PER_TEXT = 12, 9
"""Tasks asked about one image or one scene in words: more share its cost, fewer show more of them."""

DOCUMENT_TOKENS = 224
"""A document of tasks, or a dialogue in words, is no longer than this: what would go beyond it is left out."""

DIALOGUE_TOKENS = 384
"""The same for a dialogue about images."""

TEXT_KINDS = (*KINDS, "refer", "describe", "read", "read", "ocr", "relation", "place", "arithmetic")
"""Kinds that scenes in words are asked for; what is hard to learn stands twice or more."""

LOOKUP_KINDS = (*("color", "shape", "size", "exist") * 2, "count")
"""Kinds that things in words are asked for: all that needs no place."""

IMAGE_KINDS = (*KINDS, *QUESTION_KINDS, "refer", "describe", "read", "ocr")
"""Kinds that images are asked for: short answers stand twice, for a loss per token counts them little."""

CHAT_KINDS = (
    *("color", "size", "count", "exist", "relation", "arithmetic") * 2,
    *("shape", "place", "read", "count", "count", "relation"),
)
"""Kinds that dialogues about one image ask for; what a chat learned last stands up to four times."""


EXCHANGE_KINDS = (
    *("color", "shape", "size", "read", "place"),
    *("arithmetic", "count") * 2,
    *("exist", "relation") * 4,
)
"""Kinds that beginnings of dialogues ask for; where the answer stands far from what it names, two or four times."""

EXCHANGES, EXCHANGE_TOKENS = 16, 448
"""Dialogues begun about one image, as far as they fit into so many tokens."""


@dataclass(frozen=True)
class Vocabulary:
    """What rendering needs to know: the tokenizer, the visual tokens per image and the seed of the world."""

    tokenizer: Tokenizer
    queries: int
    seed: int


def lookup_document(world: Vocabulary, index: int) -> Example:
    """The things of a scene in words as trunk, short questions about them as branches."""
    shown = scene(world.seed, index)
    trunk = render(things_text(shown), world.tokenizer, world.queries)
    return example(trunk, _branches(world, shown, LOOKUP_KINDS, TASKS_PER_TEXT, DOCUMENT_TOKENS - len(trunk)))


def text_document(world: Vocabulary, index: int) -> Example:
    """A scene in words as trunk, tasks about it as branches; only answers are learned: scenes are drawn by chance."""
    shown = scene(world.seed, index)
    trunk = render(scene_text(shown, world.seed), world.tokenizer, world.queries)
    return example(trunk, _branches(world, shown, TEXT_KINDS, TASKS_PER_TEXT, DOCUMENT_TOKENS - len(trunk)))


def caption_document(world: Vocabulary, index: int) -> Example:
    """An image and its caption (format 1), what stage 1 learns from."""
    return _image_document(world, index, ("caption",), 1)


def task_document(world: Vocabulary, index: int) -> Example:
    """An image as trunk and several of the seven formats as branches."""
    return _image_document(world, index, IMAGE_KINDS, TASKS_PER_IMAGE)


def chat_document(world: Vocabulary, index: int) -> Example:
    """A dialogue: one image in six of ten, two in three of ten, none in one of ten."""
    images = (1, 1, 1, 1, 1, 1, 2, 2, 2, 0)[Dice("pictures", world.seed, index).below(10)]
    shown = [scene(world.seed, 2 * index + k) for k in range(images)]
    turns = number_images(chat(shown, world.seed + index * (not images), kinds=CHAT_KINDS))
    return _dialogue(world, turns, DIALOGUE_TOKENS)


def described_document(world: Vocabulary, index: int) -> Example:
    """A dialogue about one scene in words."""
    return _dialogue(world, described_chat(scene(world.seed, index), world.seed), DOCUMENT_TOKENS)


def exchange_document(world: Vocabulary, index: int) -> Example:
    """An image as trunk, and behind it as branches what a dialogue about it may begin with, and the answers.

    In a dialogue of many exchanges a question can be answered from what was said before; here only from the image.
    """
    shown = scene(world.seed, index)
    image = Image(paint(shown))
    dialogues = [
        _rendered(world, number_images([Turn("user", (image, *asked)), Turn("assistant", answer)]))
        for asked, answer in exchanges(shown, world.seed, kinds=EXCHANGE_KINDS, limit=EXCHANGES)
    ]
    cut = dialogues[0].image_starts[0] + world.queries + 1  # behind </img>; up to there they are equal
    branches = (Rendered(ids=each.ids[cut:], loss_mask=each.loss_mask[cut:]) for each in dialogues)
    trunk = replace(dialogues[0], ids=dialogues[0].ids[:cut], loss_mask=dialogues[0].loss_mask[:cut])
    return example(trunk, _fitting(branches, EXCHANGE_TOKENS - cut))


def _rendered(world: Vocabulary, turns: Sequence[Turn]) -> Rendered:
    return render_chat(turns, world.tokenizer, world.queries, open_for_answer=False)


def _dialogue(world: Vocabulary, turns: Sequence[Turn], limit: int) -> Example:
    """As many exchanges as fit into so many tokens; only answers are learned."""
    while True:
        dialogue = _rendered(world, turns)
        if len(dialogue) <= limit:
            return example(dialogue)
        turns = turns[:-2]  # the last exchange


def _image_document(world: Vocabulary, index: int, kinds: tuple[str, ...], limit: int) -> Example:
    shown = scene(world.seed, index)
    trunk = render(Image(paint(shown)), world.tokenizer, world.queries)
    return example(trunk, _branches(world, shown, kinds, limit, DOCUMENT_TOKENS - len(trunk)))


def _branches(
    world: Vocabulary, shown: Scene, kinds: tuple[str, ...], limit: int, max_remaining: int
) -> list[Rendered]:
    asked = tasks(shown, world.seed, kinds=kinds, limit=limit)
    return _fitting((task(t.prompt, t.answer, world.tokenizer, world.queries) for t in asked), max_remaining)


def _fitting(branches: Iterable[Rendered], max_remaining: int) -> list[Rendered]:
    """Those that fit into so many tokens, in order; one too long makes way for those behind it."""
    kept = []
    for branch in branches:
        if len(branch) <= max_remaining:
            kept.append(branch)
            max_remaining -= len(branch)
    return kept


SOURCES: Mapping[str, Callable[[Vocabulary, int], Example]] = {
    "lookups": lookup_document,
    "text": text_document,
    "described": described_document,
    "captions": caption_document,
    "tasks": task_document,
    "chats": chat_document,
    "exchanges": exchange_document,
}


FRAME = f"system\n{SYSTEM}\nuser\nPicture 1: \nassistant\n"
"""What surrounds every dialogue."""

_TAGS, _WORDS = re.compile(r"</?\w+>"), re.compile(r"[A-Z]{2,}")


def vocabulary_texts(count: int = 3000, seed: int = 0) -> Iterator[str]:
    """Texts to train the tokenizer on: every template without the words of signs, so that their letters stay single."""
    for index in range(count):
        shown = scene(seed, index)
        segments: list[Segment | str] = [part for t in tasks(shown, seed) for part in (*t.prompt, *t.answer)]
        for others in ([], [shown], [shown, scene(seed + 1, index)]):
            segments += [part for turn in chat(others, seed + index) for part in turn.content]
        yield from (_WORDS.sub("", _TAGS.sub("", spell(part))) for part in segments)
        yield FRAME
