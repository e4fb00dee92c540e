"""Recorded text functions of the official code, run through the certificate; and what the certificate refuses."""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenvl.parity import certificate, official, tokenizer
from qwenvl.parity.certificate import Result

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"

COUNTS = {
    "boxes": (15, 6),
    "decode_ids": (24, 0),
    "decode_tokens": (14, 6),
    "draw_boxes": (10, 1),
    "from_list_format": (15, 0),
    "latest_picture": (10, 0),
    "make_context": (65, 0),
    "sft_preprocess": (7, 2),
    "special": (1, 0),
    "strings": (268, 0),
    "to_list_format": (21, 0),
}
"""File -> cases that PASS, cases that are FIXED."""


@pytest.mark.parametrize("name", COUNTS)
def test_every_recorded_case_is_understood_and_right(name: str) -> None:
    results = list(tokenizer.certify(GOLDEN / f"{name}.json"))
    statuses = Counter(result.status for result in results)
    assert not [result for result in results if result.status == "FAIL"]
    assert (statuses["PASS"], statuses["FIXED"]) == COUNTS[name]


def test_every_deviation_names_a_defect() -> None:
    results = [result for result in tokenizer.certify(GOLDEN) if result.status == "FIXED"]
    assert {result.note.split(":")[0] for result in results} <= {"5", "7", "8", "11"}


def test_files_are_recognised_by_content_under_any_name(tmp_path: Path) -> None:
    for number, file in enumerate(sorted(GOLDEN.glob("*.json"))):
        shutil.copy(file, tmp_path / f"fixture{number}.json")
    results = list(certificate.certify([tmp_path]))
    assert len(results) == sum(map(sum, COUNTS.values()))
    assert certificate.main_status(results) == 0


# === A certificate that cannot fail proves nothing ===

RECORDED = {
    "boxes": ["ok"],
    "decode_ids": ["decode", "skip", "keep", "ignore"],
    "decode_tokens": ["response", "end_reason"],
    "draw_boxes": ["calls"],
    "from_list_format": ["text", "ids", "round_trip"],
    "latest_picture": ["ok"],
    "make_context": ["raw_text", "context_tokens"],
    "sft_preprocess": ["input_ids", "labels", "attention_mask"],
    "special": ["n_ranks", "n_vocab", "special_tokens", "im_end_id", "stop_words_raw", "vocab_sha256"],
    "strings": ["encode_all", "encode_image_st", "encode_none", "decode", "decode_skip_special"],
    "to_list_format": ["ok"],
}


def _spoiled(value: Any) -> Any:
    """The smallest wrong value: one id or character more, another number, an image that is none."""
    if isinstance(value, dict):
        if "error" in value:
            return {"ok": "no error"}
        key = next(iter(value))
        return {**value, key: _spoiled(value[key])}
    if isinstance(value, list):
        return [*value, value[-1] if value else 0]
    if isinstance(value, str):
        return value + "x"
    return "x" if value is None else value + 1


def _spoiled_cases(name: str) -> Iterator[tuple[str, int, str, Any]]:
    data = json.loads((GOLDEN / f"{name}.json").read_text())
    cases = [data] if isinstance(data, dict) else data
    for number, case in enumerate(cases[:: max(1, len(cases) // 25)]):
        for field in RECORDED[name]:
            if field in case:
                spoiled = copy.deepcopy(case)
                spoiled[field] = _spoiled(case[field])
                yield name, number, field, spoiled


@pytest.mark.parametrize("name", RECORDED)
def test_a_wrong_record_fails(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.json"
    for _, number, field, case in _spoiled_cases(name):
        if name == "draw_boxes" and case["returned"] != "image":
            continue
        file.write_text(json.dumps(case if name == "special" else [case]))
        (result,) = tokenizer.certify(file)
        assert result.status == "FAIL", f"{name} {number} with a wrong {field} is {result}"


@pytest.mark.parametrize(
    "data",
    [
        {"text": "a", "encode_all": {"ok": [64]}, "encode_new": {"ok": [64]}},
        {"text": "a", "encode_all": {"fine": [64]}},
        {"text": "a", "encode_all": [64]},
        {"text": 3, "encode_all": {"ok": [64]}},
        {"text": "a"},
        {},
    ],
)
def test_an_unknown_case_among_known_ones_fails(data: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "strings.json"
    file.write_text(json.dumps([{"text": "a", "encode_all": {"ok": [64]}}, data]))
    good, bad = certificate.certify([file])
    assert (good.status, bad.status) == ("PASS", "FAIL")
    assert "not understood" in bad.note


def test_the_vocabulary_may_be_given_or_stand_beside_the_fixtures(tmp_path: Path) -> None:
    file = tmp_path / "strings.json"
    file.write_text(json.dumps([{"text": "ab", "encode_all": {"ok": [0, 1]}}]))
    (result,) = tokenizer.certify(file)
    assert result.status == "FAIL"
    ranks = {b"a": 0, b"b": 1} | {bytes([v]): v + 2 if v < 97 else v for v in range(256) if v not in (97, 98)}
    own = tokenizer.Tokenizer(ranks).save(tmp_path / "vocabulary")
    (given,) = tokenizer.certify(file, vocab=own)
    shutil.copy(own, tmp_path)
    (beside,) = tokenizer.certify(file)
    assert (given.status, beside.status) == ("PASS", "PASS")


def test_without_a_vocabulary_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="`pip install --no-deps dashscope` brings it"):
        tokenizer.find_vocabulary(None)


def test_without_a_vocabulary_its_cases_are_not_run_and_none_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After `make demo` alone: 11 files used to FAIL for want of a package."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    boxes = GOLDEN / "boxes.json"
    assert certificate.run([boxes]) == 3
    *_, fix, last = capsys.readouterr().out.splitlines()
    assert last == "0 PASS, 0 FIXED, 0 FAIL, 21 NOT RUN"
    assert fix.startswith("21 cases were not run: ") and "pip install --no-deps dashscope" in fix
    assert certificate.run([boxes, GOLDEN.parent / "sampling.json"]) == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(" 0 FAIL, 21 NOT RUN") and not last.startswith("0 PASS")


# === What no fixture of ours holds: by the description of the official code ===


@pytest.fixture(scope="module")
def released() -> tokenizer.Tokenizer:
    return tokenizer.Tokenizer.load(tokenizer.find_vocabulary())


def verdict(name: str, case: dict[str, Any], folder: Path) -> Result:
    """The result of one case in a file of its own."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps([case]))
    (result,) = tokenizer.certify(file)
    return result


@pytest.mark.parametrize("text", ["half \ud83d of a pair", "<ref>\udfff</ref>", "\ud83d\ude00 whole"])
def test_half_of_a_surrogate_pair_is_a_replacement_character(
    text: str, released: tokenizer.Tokenizer, tmp_path: Path
) -> None:
    whole = official.composed(text)
    ids, plain = {"ok": official.encode(whole, released)}, {"ok": released.encode(whole)}
    case = {"text": text, "encode_all": ids, "encode_none": plain, "decode": {"ok": whole}}
    skipped = whole.removeprefix("<ref>").removesuffix("</ref>")
    case |= {"decode_skip_special": {"ok": skipped}, "decode_skip_keep_image": {"ok": whole}}
    assert verdict("strings", case, tmp_path).status == "PASS"
    assert verdict("strings", {**case, "decode": {"ok": text + "x"}}, tmp_path).status == "FAIL"


@pytest.mark.parametrize(
    ("elements", "text"),
    [
        ([{"box": [[1, 2, 3, 4, 5]]}], "<box>(1,2),(3,4)</box>"),
        ([{"box": [[-1.5, 0, 1e3, 2000]]}], "<box>(-1,0),(1000,2000)</box>"),
        ([{"image": None}], None),
        ([{"text": 3}], None),
        ([{"ref": 7, "box": [[1, 2, 3, 4]]}], None),
        ([{"box": [[1, 2, 3]]}], None),
        ([{"box": [["1", "2", "3", "4"]]}], None),
        ([{"box": 5}], None),
    ],
)
def test_unusual_elements(
    elements: list[dict[str, Any]], text: str | None, released: tokenizer.Tokenizer, tmp_path: Path
) -> None:
    if text is None:
        assert (
            verdict("from_list_format", {"list_format": elements, "error": "TypeError"}, tmp_path).status
            == "PASS"
        )
        return
    ids = {"ok": official.encode(text, released)}
    case = {"list_format": elements, "text": text, "ids": ids}
    case["round_trip"] = {"ok": official.to_list_format(text)}
    assert verdict("from_list_format", case, tmp_path).status == "PASS"


@pytest.mark.parametrize("first", ["system", "gpt"])
def test_a_dialogue_by_somebody_else_is_refused(first: str, tmp_path: Path) -> None:
    turns = [{"from": first, "value": "a"}, {"from": "user", "value": "b"}]
    case = {"conversations": turns, "max_len": 40, "error": "KeyError", "message": repr(first)}
    assert verdict("sft_preprocess", case, tmp_path).status == "PASS"


def test_nothing_is_read_of_a_reply_without_an_image(tmp_path: Path) -> None:
    case = {"response": "<box>oops</box>", "history": None, "width": 9, "height": 9, "calls": []}
    assert verdict("draw_boxes", {**case, "returned": "none"}, tmp_path).status == "PASS"


def test_a_broken_box_beside_one_off_the_grid(tmp_path: Path) -> None:
    reply = "<box>(1,2),(3,1005)</box> and <box>(1,2)</box>"
    result = verdict("boxes", {"text": reply, "error": "AssertionError", "message": ""}, tmp_path)
    assert result.status == "FIXED" and result.note.startswith("8:")


# === The certificate itself ===


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing", "no such file or folder"),
        (lambda folder: folder, "holds no fixture"),
        (lambda folder: _written(folder / "notes.md", "hello"), "holds no fixture"),
    ],
)
def test_what_is_no_fixture_is_refused(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        list(certificate.certify([make(tmp_path)]))
    with pytest.raises(ValueError, match="no fixtures were named"):
        list(certificate.certify([]))


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"new": 1}', "not json", "[1, 2]", '[{"other": 1}]', "null"]
)
def test_unknown_json_fails(content: str, tmp_path: Path) -> None:
    (result,) = certificate.certify([_written(tmp_path / "strings.json", content)])
    assert result.status == "FAIL" and "not understood" in result.note


def test_a_fixture_named_twice_is_read_once() -> None:
    file = GOLDEN / "boxes.json"
    assert len(list(certificate.certify([file, GOLDEN.parent / "tokenizer" / "boxes.json"]))) == 21


def test_exit_status_and_counts() -> None:
    passed, fixed, failed = (Result(s, s, None, None) for s in ("PASS", "FIXED", "FAIL"))  # type: ignore[arg-type]
    assert certificate.main_status([passed, fixed]) == 0
    assert certificate.main_status([passed, failed]) == 1
    assert certificate.main_status([]) == 1
    not_run = Result("n", "NOT RUN", None, None, "get it")
    assert certificate.main_status([passed, not_run]) == 3
    assert certificate.main_status([failed, not_run]) == 1
    assert certificate.counts([passed, not_run]) == "1 PASS, 0 FIXED, 0 FAIL, 1 NOT RUN"
    assert certificate.counts([passed, passed, fixed, failed]) == "2 PASS, 1 FIXED, 1 FAIL"


def test_the_printed_certificate(capsys: pytest.CaptureFixture[str]) -> None:
    assert certificate.run([GOLDEN / "boxes.json"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "15 PASS, 6 FIXED, 0 FAIL"
    assert "tokenizer boxes 20" in printed


def test_the_certificate_as_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert certificate.run([GOLDEN / "special.json"], json=True) == 0
    row, counts = map(json.loads, capsys.readouterr().out.splitlines())
    assert (row["case"], row["status"]) == ("tokenizer special 0", "PASS")
    assert counts == {"PASS": 1, "FIXED": 0, "FAIL": 0, "NOT RUN": 0}


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
