"""Fine-tuning as a person does it: one command from a JSON file to a model that answers, with and without LoRA."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import qwenvl
from qwenvl.cli import main
from qwenvl.data.conversations import read_conversations
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train.finetune import (
    FinetuneConfig,
    finetune,
    require_equal,
    stage_of,
    supervised_logits,
    trainable_part,
)
from qwenvl.train.log import read_log
from qwenvl.train.optim import freeze

BASE = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
CPU = Runtime.detect(device="cpu", dtype="float32")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Dialogues about drawn pictures and about text."""
    colours = ("red", "green", "blue")
    found = []
    for colour in colours:
        Image.new("RGB", (64, 48), colour).save(tmp_path / f"{colour}.png")
        found.append(
            (f"Picture 1: <img>{colour}.png</img>\nColour?", f"<ref>{colour}</ref><box>(0,0),(9,9)</box>")
        )
    found.append(("Hello", "Good day"))
    file = tmp_path / "my.json"
    file.write_text(
        json.dumps(
            [
                {"conversations": [{"from": "user", "value": q}, {"from": "assistant", "value": a}]}
                for q, a in found
            ]
        )
    )
    return file


def run(data: Path, out: Path, *options: object) -> int:
    words = ["finetune", BASE, "--data", data, "--out", out, "--device", "cpu", "--batch", 2, "--lr", 1e-2]
    return main([str(word) for word in [*words, *options]])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return qwenvl.load(folder, CPU).state_dict()


def changed(folder: Path) -> set[str]:
    """Names of the tensors that differ from those of the start."""
    before = weights(BASE)
    return {name for name, tensor in weights(folder).items() if not torch.equal(tensor, before[name])}


def test_whole_parts_learn_and_the_others_stay(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(data, tmp_path / "out", "--epochs", 6) == 0
    model = Path(capsys.readouterr().out.strip())
    losses = [line["loss"] for line in read_log(tmp_path / "out" / "log.jsonl")]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    parts = {name.split(".")[0] for name in changed(model)}
    assert parts == {"adapter", "llm"}, "the ViT is frozen by default, as the official README advises"
    assert qwenvl.Assistant.load(model, CPU).ask(data.parent / "red.png", "Colour?", max_new_tokens=4).tokens
    assert main(["convert", str(model), str(tmp_path / "official"), "--to", "official"]) == 0
    assert not (tmp_path / "out" / "state").exists() and run(data, tmp_path / "out", "--epochs", 6) == 0


def test_lora_is_merged_verified_and_loads_in_peft(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    peft = pytest.importorskip("peft")
    from qwenvl.integrations.transformers import QwenVLForConditionalGeneration

    options = ("--lora", "--rank", 4, "--train", "vision,adapter,llm", "--epochs", 1, "--dtype", "float32")
    assert run(data, tmp_path / "out", *options, "--json", "--show-every", 2) == 0
    message = capsys.readouterr()
    assert "merged: logits differ by at most" in message.err and "verified:" in message.err
    facts = json.loads(message.out)
    assert facts["model"] == str(tmp_path / "out" / "model") and facts["updates"] == 2 and facts["lora"]
    assert 0 <= facts["merged"] < 1e-4 and 0 <= facts["verified"] < 1e-4
    words = (tmp_path / "out" / "predictions" / "step-000002.jsonl").read_text().splitlines()
    assert {"Colour?", "Hello"} == {json.loads(line)["asked"].splitlines()[-1] for line in words}
    assert {name.split(".")[0] for name in changed(tmp_path / "out" / "model")} == {
        "vision",
        "adapter",
        "llm",
    }
    theirs = QwenVLForConditionalGeneration.wrap(qwenvl.load(BASE, CPU))
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "out" / "adapter")
    ids = torch.arange(12)[None]
    merged = qwenvl.load(tmp_path / "out" / "model", CPU)
    assert torch.allclose(theirs(input_ids=ids).logits, merged(ids), atol=1e-4)


def test_qlora(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("peft")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        assert run(data, tmp_path / "out", "--qlora") == 2
        assert "QLoRA needs bitsandbytes" in capsys.readouterr().err
        return
    assert run(data, tmp_path / "out", "--qlora", "--rank", 4, "--epochs", 0.5) == 0
    assert changed(tmp_path / "out" / "model")


def test_a_killed_run_goes_on_bit_for_bit(data: Path, tmp_path: Path) -> None:
    found, tokenizer = read_conversations(data), Tokenizer.load(BASE)
    config = FinetuneConfig(
        documents=2, epochs=2, peak_lr=1e-3, save_every=2, bfloat16=False, trains=("llm",)
    )
    model = qwenvl.load(BASE, CPU)
    stage = stage_of(config, model.config, [100] * len(found))
    finetune(model, tokenizer, stage, found, tmp_path / "whole", CPU)

    class Killed(Exception):
        pass

    def kill(model, stage, step):
        if step == 3:
            raise Killed

    import qwenvl.train.finetune as module

    train = module.train
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, "train", lambda *args, watch, **rest: train(*args, watch=kill, **rest))
        finetune(qwenvl.load(BASE, CPU), tokenizer, stage, found, tmp_path / "killed", CPU)
    again = qwenvl.load(BASE, CPU)
    finetune(again, tokenizer, stage, found, tmp_path / "killed", CPU)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_only_what_learns_is_in_the_state() -> None:
    model = qwenvl.load(BASE, CPU)
    freeze(model, ("adapter",))
    part = trainable_part(model)
    names = {name for name, _ in part.named_parameters()}
    assert names == {name for name, _ in model.named_parameters() if name.startswith("adapter.")}
    assert part.get_parameter("adapter.query") is model.adapter.query


def test_what_would_learn_nothing_is_told_before_the_first_update(data: Path, tmp_path: Path) -> None:
    text = [each for each in read_conversations(data) if not each.images]
    model = qwenvl.load(BASE, CPU)
    stage = stage_of(
        FinetuneConfig(trains=("vision", "llm"), documents=1, bfloat16=False), model.config, [64]
    )
    with pytest.raises(ValueError, match="get no gradient \\(no sample has a picture\\), such as vision"):
        finetune(model, Tokenizer.load(BASE), stage, text, tmp_path / "run", CPU)
    with pytest.raises(ValueError, match="no sample is left"):
        stage_of(FinetuneConfig(), model.config, [])


def test_over_long_samples_are_counted_not_cut(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    samples = json.loads(data.read_text())[:4]
    samples[0]["conversations"][1]["value"] = "word " * 200
    data.write_text(json.dumps(samples))
    assert run(data, tmp_path / "out", "--sequence-length", 128, "--epochs", 0.5) == 0
    message = capsys.readouterr().err
    assert "over-long: 1" in message and "3 of 4 samples" in message


def test_faults_stop_it(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (data.parent / "red.png").unlink()
    assert run(data, tmp_path / "out") == 1
    assert "missing picture: 1" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_another_run_in_the_same_folder_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "finetune.json").write_text("{}")
    assert run(data, tmp_path / "out") == 2
    assert "other settings" in capsys.readouterr().err


def test_logits_that_differ_are_refused(data: Path) -> None:
    model, found = qwenvl.load(BASE, CPU), read_conversations(data)[:2]
    logits = supervised_logits(model, Tokenizer.load(BASE), found)
    assert require_equal(logits, logits, torch.float32, "nothing") == 0
    with pytest.raises(ValueError, match="merging: logits differ by"):
        require_equal(logits, [each + each.std() for each in logits], torch.float32, "merging")


# === data check with a model ===


def test_check_tells_what_would_not_learn(data: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "check", str(data), "--model", str(BASE)]) == 0
    assert main(["data", "check", str(data), "--model", str(BASE), "--train", "visual", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out.splitlines()[-1])["findings"]
    assert finding["kind"] == "nothing trainable" and finding["fix"]
    pytest.importorskip("peft")
    assert main(["data", "check", str(data), "--model", str(BASE), "--lora", "--modules", "c_attn"]) == 1
    message = capsys.readouterr().out
    mixed = ("--train", "vision,llm", "--modules", "mlp.up")
    assert main(["data", "check", str(data), "--model", str(BASE), "--lora", *mixed]) == 1
    assert "LoRA matches nothing in vision: none of mlp.up is a layer of it" in capsys.readouterr().out
    assert (
        "LoRA matches nothing: 1" in message
        and "'c_attn' matches nothing in llm" in message
        and "attention.qkv" in message
    )
