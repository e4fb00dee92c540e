"""Options without a meaning: each is refused in one sentence, by every command alike, before anything is done."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as pillow

import qwenvl.cli as cli

STAGE = """
name = "trial"
image_size = 112
sequence_length = 256
data = [{ paths = ["x.jsonl"] }]
documents = 2
micro_documents = 1
[optim]
peak_lr = 1e-4
final_lr = 1e-4
warmup_steps = 1
steps = 2
"""
TRAIN = "train stage.toml --init tiny --out run"
FINETUNE = "finetune tiny --data x.jsonl --device cpu --out run"
DIALOGUES = "data dialogues self-instruction x.jsonl --model m --out d.jsonl"
HUGE = 10**23
REFUSED = {
    f"data mix x.jsonl --out m.jsonl --total {HUGE}": f"--total is {HUGE}; expected at most 9223372036854775807",
    f"data check x.jsonl --sequence-length {HUGE}": f"--sequence-length is {HUGE}; expected at most",
    "data check x.jsonl --sequence-length 0": "--sequence-length 0; expected a token at least",
    "data check x.jsonl --lora": "--train, --lora and --modules ask what of a model would learn",
    f"serve tiny --connections {HUGE}": f"--connections is {HUGE}; expected at most",
    "serve tiny --queue -1": "The limit queue is -1; expected a number of at least 1",
    "serve tiny --header-seconds nan": "The limit header_seconds is nan",
    f"{TRAIN} --stage.documents {HUGE}": f"--stage.documents is {HUGE}; expected at most",
    f"{TRAIN} --optim.steps -{HUGE}": f"--optim.steps is -{HUGE}; expected at most",
    f"data inspect x.jsonl --tokenizer tiny --count {HUGE}": f"--count is {HUGE}; expected at most",
    f"data synth pages --out x.jsonl --count {HUGE}": f"--count is {HUGE}; expected at most",
    "data synth pages --out x.jsonl --count 1": "--out x.jsonl is a file, where a folder is to be written",
    "data fetch drawings --out x.jsonl --archives .": "--out x.jsonl is a file, where a folder is to be written",
    f"{TRAIN} --scale nan": "--scale nan",
    f"{TRAIN} --scale inf": "--scale inf",
    f"{TRAIN} --spike nan": "a spike above 1",
    f"{TRAIN} --stage.window -1": "window = -1; expected a whole number from 0",
    f"{TRAIN} --stage.workers -1": "workers = -1; expected a whole number from 0",
    f"{TRAIN} --stage.show-every -1": "show_every = -1; expected a whole number from 0",
    f"{FINETUNE} --epochs nan": "epochs is nan",
    f"{FINETUNE} --epochs inf": "epochs is inf",
    f"{FINETUNE} --epochs 0": "epochs is 0; expected more than 0",
    f"{FINETUNE} --lr 0": "the peak learning rate is 0; expected more than 0",
    f"{FINETUNE} --processes 0": "--processes is 0; expected 1 or more",
    f"{FINETUNE} --show-every -1": "show_every = -1",
    f"{FINETUNE} --workers -1": "workers = -1",
    f"{FINETUNE} --batch 99": "an update of 99 samples is more than 5 epochs of 4",
    f"{FINETUNE} --train ": "trains ['']",
    "plan stage.toml --model small --micro 0": "micro_documents = 0",
    "plan empty --model small": "empty holds no stage; expected files such as",
    "plan stage.toml --model small --memory nan": "memory and TFLOPs above 0",
    "data check x.jsonl --model tiny --modules qkv": "--modules qkv names layers with low-rank adapters; add --lora",
    "data check x.jsonl --model tiny --train ": "--train  is no part",
    "data calibrate x.jsonl --limit 0": "--limit 0; expected a pair or more",
    "data mix x.jsonl --out m.jsonl --seed -1": "--seed -1; expected 0 or more",
    "data plan 1e6 --score-rate 5": "--score-rate 5 is of one GPU, and there is none; give --gpus",
    "data synth pages --out pages --count 1 --size 0": "a side of a Look is below 64 pixels",
    "data synth pdf stage.toml --out pages --size 0": "--size 0; a page has a pixel at least",
    "data synth html stage.toml --out pages --smallest-side 0": "give 1 or more",
    f"{DIALOGUES} --server file:///etc/passwd": "--server file:///etc/passwd is no address of a server",
    f"{DIALOGUES} --server localhost:8000": "--server localhost:8000 is no address of a server",
    f"{DIALOGUES} --server http://localhost:1/v1 --key-from NO_SUCH_KEY": "there is no such environment variable",
    "eval run tiny toyworld-vqa --limit 2 --shuffle -3": "--shuffle is -3; expected a seed from 0",
    "demo --out demo --scale nan": "--scale nan",
}


@pytest.fixture
def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage.toml").write_text(STAGE)
    (tmp_path / "empty").mkdir()
    pillow.new("RGB", (64, 64)).save(tmp_path / "a.png")
    line = json.dumps({"image": "a.png", "caption": "a red square"})
    (tmp_path / "x.jsonl").write_text("\n".join([line] * 4))

    def typed(line: str) -> str:
        before = {*tmp_path.glob("[!.]*")}
        status = cli.main(line.split(" "))
        assert status in (1, 2) and {*tmp_path.glob("[!.]*")} == before
        said, err = capsys.readouterr()
        return said + err

    return typed


@pytest.mark.parametrize("line", REFUSED)
def test_f7_an_option_without_a_meaning_is_refused(line: str, refused: Callable[[str], str]) -> None:
    assert REFUSED[line] in refused(line)
