"""The official image pipeline and sampler: a part of the fixtures, and proof that the readers can fail."""

import copy
import json
import shutil
from pathlib import Path

import pytest

from qwenvl.parity import preprocess, sampling

GOLDEN = Path(__file__).parents[1] / "golden"


def statuses(results) -> dict[str, str]:
    return {result.case: result.status for result in results}


def test_every_recorded_image_is_equal():
    found = statuses(preprocess.certify(GOLDEN / "preprocess"))
    assert set(found.values()) == {"PASS"} and len(found) == 1 + 22
    assert found == statuses(preprocess.certify(GOLDEN / "preprocess" / "cases.json"))


def test_every_recorded_draw_and_stop_is_equal():
    found = statuses(sampling.certify(GOLDEN / "sampling.json"))
    assert set(found.values()) == {"PASS"} and len(found) == 16 + 8


def corrupt(case: dict, key: str) -> None:
    match key:
        case "u8_sha256":
            case[key] = "0" * 64
        case "u8_sum":
            case[key][0] += 1
        case "mean" | "std":
            case[key][2] += 2e-4
        case "point value":
            case["points"][3]["value"][1] += 2e-4
        case "point level":
            case["points"][3]["u8"][1] += 1
        case "resized_png":
            case[key] = "gray_56.png"
        case "mode":
            case[key] = "L"
        case "size":
            case[key] = case[key][::-1]
        case "image_size":
            case[key] = 57
        case "file":
            case[key] = "absent.png"
        case "unknown":
            case["rotated"] = True


RECORDED = ["u8_sha256", "u8_sum", "mean", "std", "resized_png", "mode", "size", "point value", "point level"]


@pytest.mark.parametrize("key", [*RECORDED, "image_size", "file", "unknown"])
def test_a_changed_image_record_fails(key, tmp_path):
    fixture = json.loads((GOLDEN / "preprocess" / "cases.json").read_text())
    case = copy.deepcopy(
        next(c for c in fixture["cases"] if c["file"] == "rgba.png" and c["image_size"] == 56)
    )
    corrupt(case, key)
    for name in ("rgba.png", "rgba_56.png", "gray_56.png"):
        shutil.copy(GOLDEN / "preprocess" / name, tmp_path)
    (tmp_path / "cases.json").write_text(json.dumps({**fixture, "cases": [case, "no case"]}))
    assert list(statuses(preprocess.certify(tmp_path)).values()) == ["PASS", "FAIL", "FAIL"]


def test_other_constants_and_unknown_parts_fail(tmp_path):
    fixture = json.loads((GOLDEN / "preprocess" / "cases.json").read_text())
    changed = {**fixture, "cases": fixture["cases"][:1], "mean": [0.5, 0.5, 0.5], "crops": []}
    shutil.copy(GOLDEN / "preprocess" / fixture["cases"][0]["file"], tmp_path)
    (tmp_path / "cases.json").write_text(json.dumps(changed))
    found = statuses(preprocess.certify(tmp_path))
    assert found["preprocess crops"] == found["preprocess constants"] == "FAIL"
    (tmp_path / "cases.json").write_text("{}")
    assert list(statuses(preprocess.certify(tmp_path)).values()) == ["FAIL"]


def test_a_changed_sampling_record_fails(tmp_path):
    fixture = json.loads((GOLDEN / "sampling.json").read_text())
    extra, missing, shifted, unknown = (copy.deepcopy(fixture["cases"][0]) for _ in range(4))
    extra["kept"].append(0)
    del missing["probs"]
    shifted["probs"]["25"] += 2e-4
    unknown["params"]["typical_p"] = 0.9
    turned = {**fixture["stop_words"][0], "forced": False}
    changed = {"cases": [extra, missing, shifted, unknown], "stop_words": [turned, {}], "beams": []}
    (tmp_path / "sampling.json").write_text(json.dumps(changed))
    found = list(sampling.certify(tmp_path / "sampling.json"))
    assert [result.status for result in found] == ["FAIL"] * 7
