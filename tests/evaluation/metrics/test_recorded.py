"""The recorded values of the official scripts, through the certificate, and what the certificate refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwenvl.parity.metrics import certify

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics"


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.json")), ids=lambda file: file.stem)
def test_every_recorded_value_is_met(file):
    results = list(certify(file))
    assert results
    assert not [result for result in results if result.status != "PASS"]


def test_a_wrong_value_an_unknown_field_and_an_unknown_file_fail(tmp_path):
    right: dict[str, Any] = {"items": [{"answer": "a", "annotation": "a", "score": 1.0}], "overall": 1.0}
    cases = {
        "wrong": {**right, "overall": 0.5},
        "field": {**right, "median": 1.0},
        "item_field": {"items": [{**right["items"][0], "extra": 1}]},
        "kind": {"perplexity": 3},
        "empty": {"items": [], "overall": 1.0},
        "list": [1],
    }
    for name, content in {"right": right, **cases}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "README.md").write_text("passed over")
    failed = {result.case.split(".")[0] for result in certify(tmp_path) if result.status == "FAIL"}
    assert failed == {*cases, "broken"}
