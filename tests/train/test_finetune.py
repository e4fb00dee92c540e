"""Fine-tuning as a person does it: one command from a JSON file to a model that answers, with and without LoRA."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import qwenvl
from qwenvl.checkpoint import folder
from qwenvl.checkpoint.quantize import Plan, quantize
from qwenvl.cli import main
from qwenvl.data.conversations import read_conversations
from qwenvl.data.stream.sources import SourceConfig
from qwenvl.model.integers import Kind
from qwenvl.runtime import Runtime
from qwenvl.tokenizer import Tokenizer
from qwenvl.train import verify
from qwenvl.train.finetune import FinetuneConfig, stage_of
from qwenvl.train.log import read_log

BASE = Path(__file__).parents[1] / "golden" / "models" / "tiny_q4"
CPU = Runtime.detect(device="cpu", dtype="float32")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Dialogues about drawn images and about text."""
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


WORDS = ("finetune", BASE, "--device", "cpu", "--batch", 2, "--lr", 1e-2)


def run(data: Path, out: Path, *options: object) -> int:
    return main([str(word) for word in [*WORDS, "--data", data, "--out", out, *options]])


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


LONELY = """
import socket, sys
from importlib.util import find_spec
from qwenvl.cli import main

def reach(*_):
    raise SystemExit("reached for the network")

socket.socket.connect = socket.getaddrinfo = reach
check, plain, four, lacking = (words.split("\\n") for words in sys.argv[1:])
assert find_spec("bitsandbytes") and find_spec("kernels")
assert main(check) == 0 and main(plain) == 0
assert "peft" in sys.modules and "bitsandbytes" not in sys.modules
assert sys.modules["peft.import_utils"].is_bnb_available()
sys.modules["bitsandbytes"] = None
assert main(lacking) == 2
del sys.modules["bitsandbytes"]
assert main(four) == 0
assert "bitsandbytes" in sys.modules
"""

KERNELS = """
__version__ = "0.1.0"  # transformers asks, and finds it too old

def get_kernel(*_, **__):
    raise SystemExit("asked for a kernel of the hub")
"""


def test_qlora_fetches_nothing_and_nothing_else_imports_its_library(data: Path, tmp_path: Path) -> None:
    """bitsandbytes asks the hub for a kernel through the package `kernels`, and complains where that is missing."""
    if missing := [name for name in ("peft", "bitsandbytes") if find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed: pip install 'qwenvl[hf,quant]'")
    (tmp_path / "kernels.py").write_text(KERNELS)
    check = ("data", "check", data, "--model", BASE, "--lora")
    learn = (*WORDS, "--data", data, "--rank", 4, "--epochs", 0.5, "--out")
    four = ((*learn, tmp_path / name, "--qlora") for name in ("four", "lacking"))
    each = (check, (*learn, tmp_path / "plain", "--lora"), *four)
    done = subprocess.run(
        [sys.executable, "-c", LONELY, *("\n".join(map(str, words)) for words in each)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0 and "kernel" not in done.stderr, done.stderr
    assert done.stderr.count("QLoRA needs bitsandbytes") == 1
    assert changed(tmp_path / "four" / "model")


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_adapters_learn_on_integers(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: Kind
) -> None:
    """A quantised checkpoint: gradients pass through its integers, which stay; merged, it is a plain model."""
    pytest.importorskip("peft")
    base = tmp_path / "small"
    quantize(BASE, base, Plan(to=kind))
    words = [str(each) for each in (*WORDS, "--data", data, "--out", tmp_path / "out", "--modules")]
    words[1] = str(base)
    options = ["attention.qkv", "mlp.down", "--rank", "4", "--epochs", "6", "--json", "--lora"]
    assert main([*words, *options]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["merged"] < 1e-4 and facts["loss"][1] < 0.5 * facts["loss"][0]
    whole, merged = folder.load(base, CPU, dequantise=True).state_dict(), tmp_path / "out" / "model"
    moved = {
        name
        for name, each in folder.load(merged, CPU).state_dict().items()
        if not torch.equal(each, whole[name])
    }
    assert moved == {
        f"llm.blocks.{block}.{each}.weight" for block in (0, 1) for each in ("attention.qkv", "mlp.down")
    }
    assert main(words[:-1]) == 2
    assert (
        "is quantised and the weights of its llm cannot learn; train adapters on" in capsys.readouterr().err
    )
    assert main([*words[:-1], "--qlora"]) == 2
    assert "is quantised already; --lora trains adapters on its integers" in capsys.readouterr().err


def test_a_killed_run_goes_on_bit_for_bit(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Killed in a real process, on two that share weights and adapters (FSDP2), and begun again: dropout included.

    With another rate it is refused; that it was begun before stages had a ground is no other setting.
    """
    pytest.importorskip("peft")
    options: tuple[object, ...] = (
        "--lora",
        "--rank",
        2,
        "--dropout",
        0.2,
        "--epochs",
        6,
        "--save-every",
        2,
        "--show-every",
        0,
    )
    options += ("--processes", 2, "--shard", "full")
    assert run(data, tmp_path / "whole", *options) == 0
    words = ["finetune", BASE, "--data", data, "--out", tmp_path / "killed", "--device", "cpu", "--batch", 2]
    begun = subprocess.Popen(
        [sys.executable, "-m", "qwenvl", *map(str, [*words, "--lr", 1e-2, *options])], start_new_session=True
    )
    deadline = time.monotonic() + 500
    while len(read_log(tmp_path / "killed" / "log.jsonl")) < 5:
        assert begun.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    assert not (tmp_path / "killed" / "adapter").exists()
    *_, state = sorted((tmp_path / "killed" / "state").glob("step-*"))
    stored = {name for each in state.glob("*.safetensors") for name in load_file(each)}
    assert stored and all("lora_" in name for name in stored), "only what learns is in the state"
    assert run(data, tmp_path / "killed", *options, "--seed", 7) == 2
    assert "other settings or data (seed 0, now 7); give another --out" in capsys.readouterr().err
    settings = tmp_path / "killed" / "finetune.json"
    said = json.loads(settings.read_text())
    assert said["stage"].pop("ground") == []
    settings.write_text(json.dumps(said))
    assert run(data, tmp_path / "killed", *options) == 0
    these, those = (
        load_file(tmp_path / each / "adapter/adapter_model.safetensors") for each in ("whole", "killed")
    )
    assert these.keys() == those.keys() and all(torch.equal(these[name], those[name]) for name in these)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_two_processes_learn_what_one_learns(data: Path, tmp_path: Path, lora: bool) -> None:
    """Whole parts replicated, adapters sharded, with dropout, which belongs to the documents and not to the process."""
    if lora:
        pytest.importorskip("peft")
    options = ["--epochs", 2, "--show-every", 0, *(["--lora", "--rank", 2, "--dropout", 0.2] if lora else [])]
    ways = {"one": (), "two": ("--processes", 2, "--shard", "full" if lora else "none")}
    for name, more in ways.items():
        assert run(data, tmp_path / name, *options, *more) == 0
    one, two = ([line["loss"] for line in read_log(tmp_path / name / "log.jsonl")] for name in ways)
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-5)
    for key, tensor in weights(tmp_path / "two" / "model").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "one" / "model")[key], rtol=1e-2, atol=1e-3)


def test_two_processes_of_torchrun_learn_what_one_learns(data: Path, tmp_path: Path) -> None:
    """Checked and written by the first alone, and one model comes out."""
    assert run(data, tmp_path / "one", "--epochs", 2, "--show-every", 0) == 0
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "qwenvl")
    words = (*WORDS, "--data", data, "--out", tmp_path / "two", "--epochs", 2, "--show-every", 0)
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("verified: ") == 1 and done.stdout.split() == [str(tmp_path / "two" / "model")]
    one, two = ([line["loss"] for line in read_log(tmp_path / name / "log.jsonl")] for name in ("one", "two"))
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-5)
    for key, tensor in weights(tmp_path / "two" / "model").items():
        torch.testing.assert_close(tensor, weights(tmp_path / "one" / "model")[key], rtol=1e-2, atol=1e-3)


def test_what_would_learn_nothing_is_told_before_the_first_update(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data.write_text(json.dumps([each for each in json.loads(data.read_text()) if "img" not in str(each)]))
    assert run(data, tmp_path / "run", "--train", "vision,llm") == 2
    assert "get no gradient (no sample has an image), such as vision" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no sample is left"):
        stage_of(FinetuneConfig(), qwenvl.load(BASE, CPU).config, [], data=SourceConfig(paths=(str(data),)))


def test_f13_few_samples_are_several_updates_and_the_losses_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    samples = json.loads(data.read_text()) * 2
    data.write_text(json.dumps(samples))
    words = [
        "finetune",
        BASE,
        "--data",
        data,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
        "--show-every",
        0,
    ]
    assert main([str(word) for word in [*words, "--epochs", 1]]) == 0
    printed = capsys.readouterr().err
    assert "only 4 updates of 2 samples at a learning rate of at most 1e-05" in printed
    assert re.search(r"loss \d+\.\d{3} -> \d+\.\d{3} in 4 updates", printed)
    config = FinetuneConfig()
    assert [config.batch(samples, 1) for samples in (1, 8, 24, 64, 1000)] == [1, 2, 6, 16, 16]
    assert config.batch(8, 3) == 3 and FinetuneConfig(documents=5).batch(8, 3) == 5


# === F-16, F-100: what was trained is never thrown away ===


@pytest.mark.parametrize("precision", ["auto", "float16", "bfloat16"])
def test_f16_f100_the_result_is_kept_in_a_precision_that_holds_it(
    data: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture
) -> None:
    """The checkpoint is stored in float16, as `tiny` is; float16 would put half of what moved back where it was."""
    base = tmp_path / "base"
    folder.save(qwenvl.load(BASE, CPU).to(torch.float16), base, sidecars=BASE)
    words = ["finetune", base, "--data", data, "--out", tmp_path / "out", "--device", "cpu", "--epochs", 1]
    assert main([str(word) for word in [*words, "--dtype", precision, "--json", "--show-every", 0]]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    (remark,) = facts["remarks"]
    assert remark in printed.err and json.loads((tmp_path / "out" / "verified.json").read_text())["remarks"]
    stored = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert {str(each.dtype) for each in stored.values()} == {f"torch.{facts['dtype']}"}
    if precision == "auto":
        assert facts["dtype"] == "float32" and facts["verified"] == 0
        few, flat = facts["warnings"]  # no word of the precision
        assert few.startswith("only 4 updates") and flat.startswith("the loss went from ")
        assert facts["warnings"][0] in printed.err
        assert "written in float32, in which it is trained; the checkpoint has float16" in printed.err
    else:
        assert f"{precision} keeps" in printed.err and facts["verified"] <= 0.1


def test_all_that_was_remarked_before_training_is_kept_with_the_result(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What is left out, by kind; what is not read; the precision of the result."""
    long = {"from": "user", "value": "word " * 200}
    shown = {"from": "user", "value": "<img>red.png</img>" * 30}
    said = {"from": "assistant", "value": "yes"}
    more = [{"conversations": [long, said]}, {"conversations": [shown, said]}]
    noted = {"note": "by hand", "conversations": [{"from": "user", "value": "Hi"}, said]}
    data.write_text(json.dumps([*json.loads(data.read_text()), *more, noted]))
    assert run(data, tmp_path / "run", "--sequence-length", 128, "--epochs", 1, "--show-every", 0) == 0
    remarks = json.loads((tmp_path / "run" / "verified.json").read_text())["remarks"]
    starts = (
        "cut image: 1, such as",
        "over-long: 2, such as",
        "not read: note (1)",
        "the result is written in float32",
    )
    assert all(remark.startswith(start) for remark, start in zip(remarks, starts, strict=True)), remarks
    printed = capsys.readouterr().err
    assert "cut image: 1\n" in printed and "over-long: 2\n" in printed
    assert remarks[2] in printed and remarks[3] in printed


def test_f16_f100_a_precision_that_does_not_hold_it_is_not_the_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The bound belongs to the check: the model is kept as it was trained, with a warning, status 0."""
    monkeypatch.setitem(verify.TOLERANCE, torch.float16, 1e-9)
    assert run(data, tmp_path / "out", "--epochs", 2, "--dtype", "float16", "--json") == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert facts["dtype"] == "float32" and facts["verified"] == 0
    assert (
        "is kept in float32, in which it was trained" in printed.err
        and "warning: in float16 the logits" in printed.err
    )
    pytest.importorskip("peft")
    monkeypatch.setitem(verify.TOLERANCE, torch.float32, -1.0)
    assert run(data, tmp_path / "lora", "--epochs", 1, "--lora") == 0
    assert "warning: merging the adapters moved the logits" in capsys.readouterr().err
    assert (tmp_path / "lora" / "model").exists() and (tmp_path / "lora" / "adapter").exists()


def test_options_of_adapters_need_adapters(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for option, value in (("--rank", 8), ("--alpha", 4), ("--dropout", 0.1), ("--modules", "mlp.up")):
        assert run(data, tmp_path / "out", option, value) == 2
        assert f"{option} is of adapters; add --lora or --qlora" in capsys.readouterr().err
    assert run(data, tmp_path / "out", "--dtype", "float8") == 2 and not (tmp_path / "out").exists()


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
    assert "missing image: 1" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ("{}", "other settings"),
        ("[1]", "finetune.json holds a list; expected an object"),
        ('{"stage": [1]}', "the stage kept is a list, not an object"),
        ('{"stage": {"optim": 5, "seed": {}}}', "other settings"),
        ('{"stage": ', "finetune.json is not valid JSON"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kept: str, message: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "finetune.json").write_text(kept)
    (tmp_path / "out" / "log.jsonl").write_text('{"step": 1}\n')
    assert run(data, tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["finetune.json", "log.jsonl"]


def test_logits_that_differ_are_noticed(data: Path) -> None:
    model, found = qwenvl.load(BASE, CPU), read_conversations(data)[:2]
    logits = verify.supervised_logits(model, Tokenizer.load(BASE), found)
    assert verify.difference(logits, logits) == 0
    assert verify.difference(logits, [each + each.std() for each in logits]) == pytest.approx(1)
    assert not verify.difference(logits, [each * torch.nan for each in logits]) <= 1e9


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
