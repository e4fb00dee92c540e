"""Every fault that wastes training is found, counted, shown and comes with its fix."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest
from PIL import Image

import qwenvl.data
from qwenvl.data import tars
from qwenvl.data.check import check, message
from qwenvl.data.clean import pairs
from qwenvl.data.conversations import samples
from qwenvl.data.faults import FIXES
from qwenvl.tokenizer import Tokenizer

FOLDER = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
TOKENIZER = Tokenizer.load(FOLDER)
IMAGE = "Picture 1: <img>a.png</img>\n"


def report(folder: Path, *said: tuple[str, str] | dict, limit: int = 2048, queries: int = 16):
    Image.new("RGB", (300, 200)).save(folder / "a.png")
    found = [
        each
        if isinstance(each, dict)
        else {"conversations": [{"from": "user", "value": each[0]}, {"from": "assistant", "value": each[1]}]}
        for each in said
    ]
    file = folder / "my.json"
    file.write_text(json.dumps(found))
    return check(samples(file), TOKENIZER, queries, limit)


FAULTS = [
    ("form", {"conversations": "none"}),
    ("broken markup", (f"{IMAGE}Where?", "<ref>it</ref><box>(1,2),(3,4)")),
    ("boxes in pixels", (f"{IMAGE}Where?", "<ref>it</ref><box>(10,20),(1300,400)</box>")),
    ("boxes in pixels", (f"{IMAGE}Read.", "<ref>x</ref><quad>(1,2),(1001,2),(9,9),(1,9)</quad>")),
    ("boxes reach 1000", (f"{IMAGE}Read.", "<ref>x</ref><quad>(1,2),(1000,2),(9,9),(1,9)</quad>")),
    ("boxes reach 1000", (f"{IMAGE}Where?", "<ref>it</ref><box>(0,0),(1000,1000)</box>")),
    ("boxes of another format", (f"{IMAGE}Find <ref-object>", "<bbox><bbox>")),
    ("boxes of another format", (f"{IMAGE}Find it", "<|box_start|>(101,201),(150,266)<|box_end|>")),
    ("boxes of another format", (f"{IMAGE}Find it", "<ref>it</ref><box>[[101, 201, 150, 266]]</box>")),
    ("image marks of another format", ("<|vision_start|><|image_pad|><|vision_end|>What?", "x")),
    ("image count", ("<image>What?", "x")),
    ("path outside the folder", ("Picture 1: <img>../a.png</img>\nWhat?", "x")),
    ("path outside the folder", ("Picture 1: <img>/etc/passwd</img>\nWhat?", "x")),
    ("turned image", ("Picture 1: <img>phone.jpg</img>\nWhere?", "<ref>it</ref><box>(1,2),(3,4)</box>")),
    ("unused content", ("<video>What?", "x")),
    (
        "leading answer",
        {"conversations": [{"from": "gpt", "value": "Hello"}, {"from": "user", "value": "a"}]},
    ),
    ("broken record", {"kind": ["caption"]}),
    ("broken record", {"kind": "caption"}),
    ("no image", {"text": "words"}),
    ("empty caption", {"image": "a.png", "text": "  "}),
    ("boxes as fractions", (f"{IMAGE}Where?", "<box>(0.1,0.2),(0.3,0.9)</box>")),
    ("swapped corners", (f"{IMAGE}Where?", "<box>(300,20),(10,400)</box>")),
    ("image numbers", (f"{IMAGE}Picture 1: <img>a.png</img>\nBoth?", "yes")),
    ("image numbers", (f"{IMAGE}Picture 3: <img>a.png</img>\nBoth?", "yes")),
    ("image numbers", (f"{IMAGE}<img>a.png</img>\nBoth?", "yes")),
    ("image at a URL", ("Picture 1: <img>https://a.b/c.png</img>\nWhat?", "x")),
    ("missing image", ("Picture 1: <img>none.png</img>\nWhat?", "x")),
    ("damaged image", ("Picture 1: <img>cut.png</img>\nWhat?", "x")),
    ("over-long", ("word " * 600, "x")),
    ("cut image", ("a" * 70 + IMAGE + "b" * 400, "x")),
    ("nothing learned", ("What?", "")),
    ("nothing learned", {"conversations": [{"from": "user", "value": "What?"}]}),
]


@pytest.mark.parametrize(("kind", "said"), FAULTS)
def test_f70_fault(tmp_path: Path, kind: str, said) -> None:
    Image.effect_noise((300, 200), 40).save(tmp_path / "whole.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "phone.jpg", exif=turned)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    found = report(tmp_path, ("What?", "That."), said, said, limit=128)
    (finding,) = [each for each in found.findings if each.kind == kind]
    assert finding.count == 2 and finding.example.startswith("my.json:1") and finding.fix == FIXES[kind]
    assert found.total == 3 and len(found.usable) == len(found.lengths) == 1
    assert message([finding]).splitlines()[0] == f"{kind}: 2"


def test_every_kind_has_a_fix() -> None:
    """Those that readers raise by name, those of damaged tars, and those of a pair's columns."""
    found = {kind for kind, _ in FAULTS}
    for path in Path(qwenvl.data.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Unusable":
                found |= {each.value for each in node.args[:1] if isinstance(each, ast.Constant)}
    for damage in ("cut tar", "damaged tar header", "damaged archive"):
        assert f'"{damage}' in inspect.getsource(tars)
        found.add(damage)
    for said in re.findall(r'ValueError\("((?:score|size) is [a-z ]+)"\)', inspect.getsource(pairs)):
        found.add(said)
    assert found == set(FIXES)


def test_a_good_file_has_no_findings(tmp_path: Path) -> None:
    found = report(
        tmp_path,
        (f"{IMAGE}Picture 2: <img>a.png</img>\nWhere?", "<ref>it</ref><box>(0,0),(999,999)</box>"),
        ("Hello", "Good day"),
        ("<img>a.png</img>", "unnumbered, as base models have it"),
    )
    assert not found.findings and len(found.usable) == 3 and found.boxes == 1


def test_boxes_that_only_look_like_thousandths(tmp_path: Path) -> None:
    pixels = [(f"{IMAGE}{k}?", f"<box>({k},{k}),({280 + k},{180 + k})</box>") for k in range(12)]
    (finding,) = report(tmp_path, *pixels).findings
    assert finding.kind == "boxes look like pixels" and "300 x 200" in finding.example
    assert not report(tmp_path, *pixels, (f"{IMAGE}?", "<box>(1,1),(900,900)</box>")).findings
