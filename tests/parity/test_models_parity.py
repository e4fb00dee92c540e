"""The official model, recorded: a part of the fixtures, and proof that their reader can fail."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenvl.parity import models
from qwenvl.parity.answers import PADDING_COUNTED, STOP_IN_PROMPT
from qwenvl.parity.chats import CUT_BY_CHARACTERS, LAST_TOKEN, TAGS_FROM_DATA
from qwenvl.parity.fixture import Case, Fixture

GOLDEN = Path(__file__).parents[1] / "golden" / "models"


def results(path: Path) -> dict:
    return {result.case: result for result in models.certify(path)}


@pytest.fixture(scope="module")
def good() -> dict:
    return results(GOLDEN)


def test_the_recorded_runs_follow(good):
    found = [result.status for result in good.values()]
    assert (found.count("PASS"), found.count("FIXED"), found.count("FAIL")) == (20, 4, 0)
    assert {result.note for result in good.values() if result.status == "FIXED"} == {LAST_TOKEN}
    assert max(result.largest for result in good.values() if result.largest is not None) < 5e-5


@pytest.fixture()
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN / "tiny_q4", tmp_path / "copy"))


def only(folder: Path, *cases: str) -> list[dict]:
    """Keep these cases of a folder; returns them."""
    kept = [case for case in json.loads((folder / "cases.json").read_text()) if case["id"] in cases]
    (folder / "cases.json").write_text(json.dumps(kept))
    (folder / "chat_stream.json").unlink(missing_ok=True)
    return kept


def write(folder: Path, cases: list) -> dict:
    (folder / "cases.json").write_text(json.dumps(cases))
    return results(folder)


@pytest.mark.parametrize(
    ("tensor", "failing"),
    [
        ("transformer.h.1.mlp.w2.weight", {"batch_left", "gen_two_images", "train_image", "train_text"}),
        ("transformer.visual.transformer.resblocks.1.attn.in_proj.weight", {"vision_two", "train_image"}),
        ("transformer.visual.attn_pool.attn.in_proj_bias", {"vision_two", "train_image"}),
    ],
)
def test_another_weight_fails(folder, tensor, failing):
    only(folder, "vision_two", "batch_left", "gen_two_images", "train_image", "train_text")
    weights = load_file(folder / "model.safetensors")
    weights[tensor].flatten()[0] += 0.5
    save_file(weights, folder / "model.safetensors")
    failed = {name.split()[1] for name, result in results(folder).items() if result.status == "FAIL"}
    assert failed >= failing


@pytest.mark.parametrize(
    ("case", "tensor", "share"),
    [
        ("vision_one", "vit_embed", 2e-4),
        ("vision_two", "resampler_out", 2e-4),
        ("batch_left", "logits.2", 2e-4),
        ("batch_left", "last_hidden.0", 2e-4),
        ("gen_two_images", "step_logits", 2e-4),
        ("train_image", "grad:transformer.ln_f.weight", 2e-4),
        ("train_image", "grad:transformer.visual.attn_pool.query", 2e-4),
    ],
)
def test_a_number_moved_by_twice_the_tolerance_fails(folder, case, tensor, share):
    (kept,) = only(folder, case)
    tensors = load_file(folder / kept["tensors"])
    tensors[tensor].flatten()[3] += share * tensors[tensor].std()
    save_file(tensors, folder / kept["tensors"])
    result = results(folder)[f"copy {case}"]
    assert result.status == "FAIL" and result.note == f"largest difference in {tensor}"
    assert result.largest == pytest.approx(share, rel=0.5)


def at(*path, change):
    """A change of one recorded value, as a function of the case."""

    def apply(case: dict) -> None:
        place = case
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = change(place[path[-1]]) if callable(change) else change

    return apply


@pytest.mark.parametrize(
    ("case", "change", "note"),
    [
        ("gen_two_images", at("generated", 5, change=lambda t: t + 1), "generated"),
        ("gen_two_images", at("generated", change=lambda ids: ids[:-1]), "generated"),
        ("gen_two_images", at("text", change=lambda t: t + " "), "text"),
        ("gen_two_images", at("text_skip_special", change=""), "text_skip_special"),
        ("gen_two_images", at("margins", 2, change=lambda m: m + 1e-2), "margins"),
        ("gen_two_images", at("min_top2_margin", change=lambda m: m + 1e-2), "min_top2_margin"),
        ("gen_two_images", at("prompt", change="another"), "ids of the prompt"),
        ("gen_two_images", at("images", change=lambda i: i[::-1]), "images behind the paths"),
        ("gen_two_images", at("ntk_alpha", change=3.0), "ntk_alpha"),
        ("gen_two_images", at("input_ids", 1, change=98), "paths in the slots"),
        ("gen_two_images", at("input_ids", change=lambda ids: ids[:2] + ids[3:]), "3 slots in an image"),
        ("gen_stop_words", at("stop_words_ids", change=[[9, 9, 9, 9]]), "generated"),
        ("batch_left_generate", at("generated", 1, 2, change=7), "generated"),
        ("batch_left_generate", at("padding_side", change="right"), "not padded on the right"),
        ("batch_left", at("attention_mask", 0, 12, change=0), "not padded on the left"),
        ("vision_two", at("stats", "vit_out", "std", change=lambda s: s * 1.001), "std of vit_out"),
        ("vision_two", at("stats", "vit_out", change=lambda s: {**s, "max": 9.0}), "statistics ['max'"),
        ("train_text", at("loss", change=lambda x: x * 1.0002), "largest difference in loss"),
        ("train_text", at("grad_norms", "lm_head.weight", change=lambda x: x * 1.0002), "lm_head.weight"),
        ("train_text", at("grad_norms", "transformer.visual.proj", change=1e-9), "visual.proj"),
        ("train_text", at("grad_norms", "transformer.visual.proj", change=None), "tensors with gradients"),
        ("chat_maxlen", at("turns", 0, "generated", 1, change=7), "generated"),
        ("chat_maxlen", at("turns", 0, "response", change="something else"), "response, cut from our ids"),
        ("chat_maxlen", at("turns", 0, "raw_text", change=lambda t: t + " "), "raw_text"),
        ("chat_maxlen", at("turns", 0, "context_ids", 3, change=7), "context_ids"),
        ("chat_maxlen", at("turns", 0, "history_after", change=[]), "history_after"),
        ("chat_maxlen", at("turns", 0, "stop_words_ids", change=[[421]]), "generated"),
        ("chat_maxlen", at("system", change="Be rude."), "raw_text"),
        ("chat_maxlen", at("turns", change=[]), "no turns"),
        ("train_text", at("kind", change="dream"), "unknown kind 'dream'"),
    ],
)
def test_another_value_fails(folder, case, change, note):
    (kept,) = only(folder, case)
    change(kept)
    failed = [result.note for result in write(folder, [kept]).values() if result.status == "FAIL"]
    assert failed and note in failed[0]


@pytest.mark.parametrize(
    "case", ["vision_two", "gen_two_images", "batch_left_generate", "train_text", "chat_maxlen"]
)
def test_a_key_that_nobody_compares_fails(folder, case):
    (kept,) = only(folder, case)
    (failed,) = [r for r in write(folder, [{**kept, "beam_scores": [1.0]}]).values() if r.status == "FAIL"]
    assert "case not understood: nothing compares beam_scores" in failed.note


@pytest.mark.parametrize("case", ["vision_two", "batch_left", "gen_two_images", "train_text"])
def test_a_tensor_that_nobody_compares_fails(folder, case):
    (kept,) = only(folder, case)
    tensors = load_file(folder / kept["tensors"])
    save_file({**tensors, "attentions.0": torch.zeros(3)}, folder / kept["tensors"])
    assert "nothing compares tensor attentions.0" in results(folder)[f"copy {case}"].note


@pytest.mark.parametrize(
    ("case", "note"),
    [("vision_two", "without a recorded stage"), ("batch_left", "without recorded numbers")],
)
def test_a_case_without_numbers_fails(folder, case, note):
    (kept,) = only(folder, case)
    bare = {key: value for key, value in kept.items() if key not in ("tensors", "stats")}
    assert note in write(folder, [bare])[f"copy {case}"].note


def test_a_cut_file_of_tensors_fails_its_own_case_alone(folder):
    only(folder, "vision_two", "train_text")
    whole = (folder / "vision_two.safetensors").read_bytes()
    (folder / "vision_two.safetensors").write_bytes(whole[: len(whole) // 2])
    found = results(folder)
    assert "not understood" in found["copy vision_two"].note
    assert found["copy vision_two"].status == "FAIL" and found["copy train_text"].status == "PASS"


@pytest.mark.parametrize(
    "values", [7, None, [], {}, {"kind": "vision"}, {"kind": ["x"]}, {"kind": "chat", "turns": 3}]
)
def test_what_is_no_case_fails(folder, values):
    only(folder)
    *_, result = write(folder, [values]).values()
    assert result.status == "FAIL" and "case not understood" in result.note


def test_another_config_fails(folder):
    only(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_dropout_prob": 0.1}))
    assert results(folder)["copy folder"].status == "FAIL"


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["cases"][1]["yields"].__setitem__(-1, "x"),
        lambda c: c["cases"][1]["generated"].__setitem__(0, 7),
        lambda c: c["cases"][1].__setitem__("final_chat_response", "x"),
        lambda c: c["cases"][1].__setitem__("scores", []),
        lambda c: c["cases"][1].pop("yields"),
        lambda c: c.__setitem__("cases", []),
        lambda c: c.__setitem__("more", []),
    ],
)
def test_another_stream_fails(folder, change):
    stream = json.loads((folder / "chat_stream.json").read_text())
    stream["cases"] = stream["cases"][:2]
    only(folder)
    change(stream)
    (folder / "chat_stream.json").write_text(json.dumps(stream))
    assert [r.status for r in results(folder).values()].count("FAIL") == 1


# === Deliberate differences, each on inputs that no fixture of ours holds ===


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return Fixture(GOLDEN / "tiny_q4")


def recorded(name: str, model: str = "tiny_q4") -> dict:
    cases = json.loads((GOLDEN / model / "cases.json").read_text())
    return copy.deepcopy(next(case for case in cases if case["id"] == name))


def test_a_stop_word_that_begins_in_the_prompt(folder, fixture):
    case = recorded("gen_two_images")
    eos = fixture.tokenizer.endoftext
    first = case["generated"][0]
    official = {"generated": [first, eos], "stop_words_ids": [[case["input_ids"][-1], first]]}
    kept = {key: case[key] for key in ("id", "kind", "input_ids", "image_keys", "images", "max_new_tokens")}
    only(folder)
    result = write(folder, [{**kept, **official}])["copy gen_two_images"]
    assert (result.status, result.note) == ("FIXED", STOP_IN_PROMPT)
    wrong = {**official, "generated": [first, first, eos]}
    assert write(folder, [{**kept, **wrong}])["copy gen_two_images"].status == "FAIL"


def test_padding_that_changes_an_answer(tmp_path):
    """A short row beside one beyond the trained length: the official stretch is that of the padded row."""
    folder = Path(shutil.copytree(GOLDEN / "tiny_ntk_logn", tmp_path / "copy"))
    fixture = Fixture(folder)
    long, short = recorded("gen_len_100", "tiny_ntk_logn")["input_ids"], [77, 20, 145, 9, 30, 31]
    pad = fixture.tokenizer.endoftext
    rows = [long, [pad] * (len(long) - len(short)) + short]
    mask = [[1] * len(long), [0] * (len(long) - len(short)) + [1] * len(short)]
    case: dict[str, Any] = {"kind": "generate_batch", "id": "pads", "input_ids": rows, "attention_mask": mask}
    case |= {"padding_side": "left", "max_new_tokens": 12, "image_keys": [[], []], "images": [[], []]}

    from qwenvl.parity import answers

    official, _ = answers._padded_greedy(fixture, rows, torch.tensor(mask), None, 12)
    only(folder)
    result = write(folder, [{**case, "generated": official}])["copy pads"]
    assert (result.status, result.note) == ("FIXED", PADDING_COUNTED)
    ours = [*official[:1], [official[1][0] ^ 1, *official[1][1:]]]
    assert write(folder, [{**case, "generated": ours}])["copy pads"].status == "FAIL"


def official_turn(fixture: Fixture, query: str, history: list, max_remaining: int = 4) -> dict:
    """What the official chat would record for one turn, made with the official text scheme and our greedy ids."""
    from qwenvl.generate import engine
    from qwenvl.parity import chats, official

    tokenizer = fixture.tokenizer
    raw_text, context = chats.official_context(fixture, query, history, "Be brief.", 6144)
    ids, _ = fixture.split_paths(context, official.SLOTS)
    settings = engine.Settings(
        max_new_tokens=max_remaining, stop=((tokenizer.im_end,), (tokenizer.im_start,))
    )
    generated = list(engine.generate(fixture.model, [engine.Prompt(ids=tuple(ids))], settings)[0].ids)
    response, _ = official.decode_tokens(tokenizer, raw_text, context, generated)
    turn = {"query": query, "raw_text": raw_text, "context_ids": context, "generated": generated}
    turn |= {"stop_words_ids": [[tokenizer.im_end], [tokenizer.im_start]], "response": response}
    return turn | {"history_after": [*history, [query, response]], "image_keys": [], "images": []}


@pytest.mark.parametrize(
    ("history", "query", "notes"),
    [
        ([["hello", "a box</box> and <ref>an open phrase"]], "go on", {TAGS_FROM_DATA, LAST_TOKEN}),
        ([["hello", "<ref>a dog</ref><box>(1,2),(30,40)</box>"]], "go on", {LAST_TOKEN}),
        ([], "caf" + "e\u0301 " * 9, {LAST_TOKEN}),
    ],
)
def test_dialogues_with_odd_texts(folder, fixture, history, query, notes):
    only(folder)
    dialogue = {
        "kind": "chat",
        "id": "odd",
        "system": "Be brief.",
        "max_new_tokens": 4,
        "max_window_size": 6144,
    }
    turn = official_turn(fixture, query, history)
    result = write(folder, [{**dialogue, "history": history, "turns": [turn]}])["copy odd turn 1"]
    assert result.status == "FIXED" and set(result.note.split("; ")) <= {
        *notes,
        CUT_BY_CHARACTERS,
        *_parts(notes),
    }
    turn["context_ids"] = [*turn["context_ids"][:-1], 5]
    assert (
        write(folder, [{**dialogue, "history": history, "turns": [turn]}])["copy odd turn 1"].status == "FAIL"
    )


def _parts(notes: set[str]) -> set[str]:
    return {part for note in notes for part in note.split("; ")}


def test_a_case_is_not_passed_for_nan_or_another_shape():
    def verdict(ours, official):
        case = Case("x", {}, Path())
        case.close("it", ours, official)
        return case.result()

    assert verdict(torch.ones(3), torch.ones(3)).status == "PASS"
    assert verdict(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])).status == "FAIL"
    assert verdict(torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])).status == "FAIL"
    assert verdict(torch.ones(3), torch.ones(1)).status == "FAIL"
    assert verdict(torch.tensor([1e-12, 0]), torch.zeros(2)).status == "FAIL"
    assert (
        verdict(torch.tensor(8.0011), 8.0).status == "FAIL"
        and verdict(torch.tensor(8.0001), 8.0).status == "PASS"
    )
    assert Case("x", {}, Path()).result().note == "case not understood: nothing recorded to compare"
