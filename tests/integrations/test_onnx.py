"""`qwenvl convert --to onnx`: the graph in onnxruntime beside our vision encoder and adapter."""

import importlib.util
import json
import shutil
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwenvl.checkpoint import folder
from qwenvl.checkpoint.quantize import Plan, quantize
from qwenvl.cli import main
from qwenvl.images import preprocess
from qwenvl.integrations import onnx as graphs
from qwenvl.runtime import Runtime

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32)

needs_onnx = [
    pytest.mark.compile,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in graphs.NEEDED),
        reason="onnx, onnxruntime and onnxscript are not installed: pip install 'qwenvl[onnx]'",
    ),
]


def with_onnx(test: Any) -> Any:
    for mark in needs_onnx:
        test = mark(test)
    return test


def tokens(place: Path, pixels: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(place / "vision.onnx"), providers=["CPUExecutionProvider"])
    return session.run(["visual"], {"pixels": pixels})[0]


def ours(checkpoint: Any, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return folder.load(checkpoint, CPU, dequantise=True).encode(torch.from_numpy(pixels)).numpy()


class Held:
    """Bytes of values that an export has read and not let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = self.most = self.largest = self.all = 0
        values = graphs._values

        def watched(*args: Any) -> graphs.Values:
            real = values(*args)
            sizes = [each().nbytes for each in real.values()]
            self.largest, self.all = max(sizes), sum(sizes)
            return {name: partial(self.read, each) for name, each in real.items()}

        monkeypatch.setattr(graphs, "_values", watched)

    def read(self, value: Callable[[], torch.Tensor]) -> torch.Tensor:
        tensor = value()
        self.let_go(-tensor.nbytes)
        weakref.finalize(tensor, self.let_go, tensor.nbytes)
        return tensor

    def let_go(self, size: int) -> None:
        self.bytes -= size
        self.most = max(self.most, self.bytes)


@with_onnx
def test_the_shipped_model_sees_the_same_in_onnxruntime(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A grid of patches that is not that of the queries; one, three and seven images."""
    import onnx

    assert main(["convert", "tiny", str(tmp_path / "new"), "--to", "onnx"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'new'}: onnx format, ")
    assert second.startswith("opset 18, float32; largest difference in onnxruntime ")
    assert second.endswith(" of the standard deviation, 0.0001 allowed (1, 2 and 5 images)")
    assert sorted(each.name for each in (tmp_path / "new").iterdir()) == [
        "preprocessor_config.json",
        "vision.onnx",
    ]
    image = preprocess(GOLDEN / "images" / "a.png", 112)
    for count in (1, 3, 7):
        pixels = np.stack([image * (1 - 0.1 * each) for each in range(count)]).astype(np.float32)
        expected = ours("tiny", pixels)
        assert np.abs(tokens(tmp_path / "new", pixels) - expected).max() <= 1e-4 * expected.std()
    graph = onnx.load(str(tmp_path / "new" / "vision.onnx"))
    assert {each.domain: each.version for each in graph.opset_import}[""] == 18
    shape = [each.dim_param or each.dim_value for each in graph.graph.input[0].type.tensor_type.shape.dim]
    assert isinstance(shape[0], str) and shape[1:] == [3, 112, 112]
    assert json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())["size"]["height"] == 112


@with_onnx
def test_official_and_quantised_and_halves_with_weights_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quantize(GOLDEN, tmp_path / "small", Plan(to="int8", vision=True))
    (tmp_path / "small" / "LICENSE").write_text("free")
    monkeypatch.setattr(graphs, "BESIDE", 0)
    held = Held(monkeypatch)
    assert main(["convert", str(tmp_path / "small"), str(tmp_path / "new"), "--to", "onnx"]) == 0
    assert held.bytes == 0 < held.most <= 2 * held.largest < held.all, "a matrix at a time"
    assert "8 quantised layers became plain weights" in capsys.readouterr().out
    assert {each.name for each in (tmp_path / "new").iterdir()} == {
        "LICENSE", "preprocessor_config.json", "vision.onnx", "vision.onnx.data"
    }  # fmt: skip
    pixels = np.random.default_rng(0).standard_normal((2, 3, 56, 56), np.float32)
    expected = ours(tmp_path / "small", pixels)
    assert np.abs(tokens(tmp_path / "new", pixels) - expected).max() <= 1e-4 * expected.std()

    def of_another(eyes: Any, values: Any, file: Path, side: int) -> None:
        for each in (tmp_path / "kept").iterdir():
            shutil.copyfile(each, file.parent / each.name)

    shutil.copytree(tmp_path / "new", tmp_path / "kept")
    monkeypatch.setattr(graphs, "_write", of_another)
    assert main(["convert", str(GOLDEN), str(tmp_path / "other"), "--to", "onnx"]) == 2
    message = capsys.readouterr().err
    assert f"the graph of {GOLDEN} differs from the model by" in message and "nothing was written" in message
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept", "new", "small"]


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graphs, "NEEDED", ("onnx_of_tomorrow",))
    assert main(["convert", "tiny", str(tmp_path / "new"), "--to", "onnx"]) == 2
    assert (
        "--to onnx needs onnx_of_tomorrow, not installed here: pip install 'qwenvl[onnx]'"
        in capsys.readouterr().err
    )


def test_too_little_memory_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graphs, "NEEDED", ())
    monkeypatch.setattr(graphs, "free_memory", lambda device: 1_000_000)
    assert main(["convert", "tiny", str(tmp_path / "new"), "--to", "onnx"]) == 2
    assert "needs 0.0 GB to be exported in float32 and 0.0 GB are free" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
