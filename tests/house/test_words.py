"""One language: names are the field's words (docs/DESIGN.md, "Words"); the house's old ones do not come back."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("qwenvl", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "*.toml",
        "Makefile",
        "docs/*.md",
        "qwenvl/**/*.md",
        "recipes/**/*.toml",
        "qwenvl/**/*.html",
    )
    for path in ROOT.glob(pattern)
)

OLD = {
    "Surroundings": "AttentionContext", "surroundings": "context", "weigh": "sdpa", "Reading": "ForwardKwargs",
    "SpreadConfig": "ParallelConfig", "spread_": "parallelize_", "Team": "ParallelDims", "Crew": "WorkerGroup",
    "crew": "group", "crews": "groups", "run_crews": "launch", "anywhere": "any_rank",
    "from_first": "on_rank0", "recompute": "activation_checkpointing", "sum_last": "reduce_once_per_step",
    "look_nearby_": "init_local_cross_attention_", "look_back_": "init_previous_token_heads_", "Ahead": "Prefetcher",
    "Manner": "PromptFormat", "manner": "prompt_format", "room": "max_remaining", "told": "message",
    "learned": "loss_mask", "companions": "sidecars", "COMPANIONS": "SIDECARS", "samplebook": "sample_viewer",
    "Exam": "EvalPoint", "exam_pictures": "eval_images", "aim": "objective", "opening_steps": "curriculum",
    "Toys": "toy sources", "toy_weight": "weight", "Exams": "EvalPoints",
    "samplebooks": "sample_viewer", "look_nearby": "init_local_cross_attention",
    "look_back": "attend_to_cache",
}  # fmt: skip
"""Old name -> the field's. `tell`, `wait`, `places`, `keep`, `judge`, `reading` and `opening` went too (broadcast,
barrier, index, writer, score_items, data, curriculum), but are the field's words for other things: for a file's
position, a future, decimal places, a model that judges. `GONE` holds the rooms and functions that had them."""

UNMISTAKABLE = re.compile(
    r"""\b(?:Surroundings|SpreadConfig|run_crews|from_first|sum_last|look_(?:nearby|back)_?|[Ss]amplebooks?|
    exam_pictures|toy_weight|opening_steps|COMPANIONS|Manner|Crews?)\b""",
    re.VERBOSE,
)
"""Old names that no sentence means otherwise: they stand in no text either, nor in a comment or an option."""

GONE = (
    "qwenvl/train/reading", "qwenvl/train/reading.py", "qwenvl/evaluation/toyworld.py", "qwenvl/evaluation/annotations",
    "qwenvl/data/readers", "qwenvl/data/samplebook.py", "docs/DECISIONS.md",
)  # fmt: skip
"""Rooms under old names."""

ALLOWED = {
    "tests/house/test_words.py",
    "tests/cli/test_command_line.py",
}  # the list itself; an invented command


PICTURES = re.compile(
    r"""Picture[ ](?:\d|k\b|\{|\(\\d)|(?i:picture\)?\\s)  # what the official code writes before each image of a chat
    |latest_picture                                 # an official method, and its fixture
    |(?i:which[ ]picture|(?:in|of)[ ](?:this|the)[ ]pictures?[?])  # people's questions, as prompts""",
    re.VERBOSE,
)
"""Pictures that stay pictures anywhere."""
SPOKEN = {
    "CHANGELOG.md": ("--pictures", "`pictures", "-pictures`", " pictures`", "picture`"),
    "docs/DESIGN.md": ("never a picture: that word",),
    "docs/MIGRATION.md": ("Are the two pictures the same?",),
    "qwenvl/data/clean/edits.py": ("image|photo|picture|version",),
    "qwenvl/data/columns.py": ('"picture"', '"pictures"'),
    "qwenvl/data/dialogues.py": (
        "in the picture.", "about a picture that", "sees the picture", "several pictures {seed}",
    ),
    "qwenvl/data/layouts.py": ("image|img|picture|photo",),
    "qwenvl/data/synth/pages/text.py": ("method number picture problem",),
    "qwenvl/data/toy/chats.py": (
        "Ask me about a picture.", "looks at pictures.", "in a picture and", "of the picture is", "the two pictures?",
        "Which picture has",
    ),
    "qwenvl/data/drawings/telling.py": ("in the picture?", "Which picture shows", "in this picture?"),
    "benchmarks/drawings_vocabulary.py": ("in the picture?", "Which picture shows"),
    "tests/data/drawings/test_scenes.py": ('removeprefix("Picture ")',),
    "qwenvl/data/toy/items.py": ("of the picture is",),
    "qwenvl/data/toy/streams.py": ('Dice("pictures",',),
    "qwenvl/demo/asking.py": ("Which picture has", "the two pictures?"),
    "tests/data/test_dialogues.py": ('"picture" in',),
    "tests/data/test_one_rule.py": ('"picture": "blue.png"',),
    "tests/data/toy/test_tasks.py": ("[picture]", "Which picture has", "the two pictures?", "of the picture is"),
}  # fmt: skip
"""What people, columns of data sets, prompts and seeds say, by file."""


def test_it_is_called_an_image() -> None:
    found = []
    for path in [*FILES, *TEXTS]:
        name = str(path.relative_to(ROOT))
        if name in ALLOWED:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            rest = PICTURES.sub("", line)
            for phrase in SPOKEN.get(name, ()):
                rest = rest.replace(phrase, "")
            if "picture" in rest.lower():
                found.append(f"{name}:{number}: {line.strip()[:80]}")
    assert not found, "say image:\n" + "\n".join(found)


def test_old_names_stand_in_no_text_and_no_room_has_one() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in [*FILES, *TEXTS]
        if str(path.relative_to(ROOT)) not in {*ALLOWED, "CHANGELOG.md"}  # which lists what was renamed
        for match in UNMISTAKABLE.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found, found
    assert not [name for name in GONE if (ROOT / name).exists()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_the_fields(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    used = {token.string for token in tokens if token.type == tokenize.NAME}
    assert name in ALLOWED or not used & OLD.keys(), {old: OLD[old] for old in used & OLD.keys()}
