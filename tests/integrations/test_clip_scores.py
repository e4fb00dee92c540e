"""CLIP scores from any CLIP of transformers: the cosine that the model itself gives, pair by pair."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as pillow
from tinyclip import tiny_clip
from transformers import CLIPModel

import qwenvl.cli as cli
from qwenvl.data.records import Pair
from qwenvl.images import MEAN, STD
from qwenvl.integrations.clip import crop, load_scorer, scorer_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def jpeg(seed: int, size: tuple[int, int]) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    pillow.fromarray(noise).resize(size).save(buffer, "JPEG")
    return buffer.getvalue()


def pairs() -> list[Pair]:
    texts = ("a red dog", "a cat", "a red cat a dog a red dog a cat a red dog")
    return [Pair(key=str(k), text=text, image=jpeg(k, (60 + 20 * k, 48))) for k, text in enumerate(texts)]


def test_scores_are_the_models_own_and_do_not_depend_on_the_batch(checkpoint: Path) -> None:
    score = load_scorer(str(checkpoint), "cpu")
    together = score(pairs())
    assert together == pytest.approx([score([pair])[0] for pair in pairs()], abs=1e-5)
    model = CLIPModel.from_pretrained(checkpoint).eval()
    pixels = torch.from_numpy(np.stack([crop(pair.image or b"", 32) for pair in pairs()[:1]]))
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([[2, 3, 4]]), pixel_values=pixels)
    assert together[0] == pytest.approx(float((found.image_embeds * found.text_embeds).sum()), abs=1e-5)


def test_clean_and_calibrate_score_what_has_no_score(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for k in range(8):
        (tmp_path / f"{k}.jpg").write_bytes(jpeg(k, (300, 240)))
        words = ("red", "dog", "cat")
        text = f"a {words[k % 3]} {words[k // 3]} of the world" if k else "short"
        lines.append(json.dumps({"image": f"{k}.jpg", "text": text}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    args = [str(tmp_path / "a.jsonl"), "--clip", str(checkpoint), "--json"]
    assert cli.main(["data", "calibrate", *args, "--target", "0.5"]) == 0
    choices = json.loads(capsys.readouterr().out)["choices"]
    assert choices and all(
        choice["clip_score"] is not None and choice["survival"] == 0.5 for choice in choices
    )
    limit = f"clip_score={choices[0]['clip_score']}"
    assert cli.main(["data", "clean", args[0], str(tmp_path / "out"), *args[1:], "--change", limit]) == 0
    message = json.loads(capsys.readouterr().out)["total"]
    assert message["kept"] == 4 and message["dropped"] == {"clip score": 3, "length": 1}


def test_the_crop_is_clips(checkpoint: Path) -> None:
    image = pillow.new("RGB", (90, 45), "red")
    image.paste("blue", (30, 0, 60, 45))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    seen = crop(buffer.getvalue(), 32)
    blue = (np.array([0, 0, 255]) / 255 - np.array(MEAN)) / np.array(STD)
    assert seen.shape == (3, 32, 32) and np.allclose(seen[:, 16, 16], blue, atol=1e-5)


def test_what_is_no_clip_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no CLIP model could be loaded"):
        scorer_of(str(tmp_path))()
