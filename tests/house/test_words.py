"""One language: names are the field's words (docs/DESIGN.md, "Words"); the house's old ones do not come back."""

import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("qwenvl", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

OLD = {
    "Surroundings": "AttentionContext", "surroundings": "context", "weigh": "sdpa", "Reading": "ForwardKwargs",
    "SpreadConfig": "ParallelConfig", "spread_": "parallelize_", "Team": "ParallelDims", "Crew": "WorkerGroup",
    "crew": "group", "crews": "groups", "run_crews": "launch", "anywhere": "any_rank",
    "from_first": "on_rank0", "recompute": "activation_checkpointing", "sum_last": "reduce_once_per_step",
    "look_nearby_": "init_local_cross_attention_", "look_back_": "init_previous_token_heads_", "Ahead": "Prefetcher",
    "Manner": "PromptFormat", "manner": "prompt_format", "room": "max_remaining", "told": "message",
    "learned": "loss_mask", "companions": "sidecars", "COMPANIONS": "SIDECARS", "samplebook": "sample_viewer",
    "Exam": "EvalPoint", "exam_pictures": "eval_images", "aim": "objective", "opening_steps": "curriculum",
    "Toys": "toy sources", "toy_weight": "weight",
}  # fmt: skip
"""Old name -> the field's."""

ALLOWED = {
    "tests/house/test_words.py",
    "tests/cli/test_command_line.py",
}  # the list itself; an invented command


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_are_the_fields(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    used = {token.string for token in tokens if token.type == tokenize.NAME}
    assert name in ALLOWED or not used & OLD.keys(), {old: OLD[old] for old in used & OLD.keys()}
    pictures = {each for each in used if "picture" in each.lower() and not each.startswith("test_")}
    assert name in ALLOWED or not pictures, f"{name}: say image: {sorted(pictures)}"
