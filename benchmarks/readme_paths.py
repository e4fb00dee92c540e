"""The three paths of the README, typed as a stranger would, with what they print.

    python benchmarks/readme_paths.py [--to runs/readme] [--only ask finetune train]

The photo, the dialogues and the raw pairs are made here, since the repository holds no photographs: a scene of the toy
world, 24 dialogues about such scenes in the official JSON, and 400 raw pairs, half of them with a planted defect.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image as pillow

from qwenvl.data.synth.rawpairs import planted, write_raw
from qwenvl.data.toy.chats import chat
from qwenvl.data.toy.paint import render
from qwenvl.data.toy.worlds import scene
from qwenvl.markup import Image, spell

PATHS = {
    "ask": [
        "qwenvl ask tiny photo.jpg 'Where is the small green triangle?' --out boxes.png",
        "qwenvl ask tiny photo.jpg 'Generate the caption in English with grounding:' --json",
        "qwenvl eval run tiny toyworld-vqa --limit 200",
        "qwenvl convert tiny my-model",
    ],
    "finetune": [
        "qwenvl data check my.json --model tiny --lora",
        "qwenvl finetune tiny --data my.json --lora --epochs 4 --lr 1e-4 --out mine",
        "qwenvl ask mine/model photo.jpg 'Where is the small green triangle?'",
    ],
    "train": [
        "qwenvl data clean raw clean --preset datacomp",
        "qwenvl data inspect clean --out clean.html",
        "qwenvl plan recipes/small/1-pretraining.toml --model small --memory 24 --tflops 165",
        "qwenvl train recipes/tiny/1-pretraining.toml --init tiny --data clean --optim.steps 20 --out trained",
        "qwenvl ask trained/1-pretraining/model photo.jpg 'What is this?'",
    ],
}
"""Path -> its commands, run in one folder."""


def prepare(folder: Path) -> None:
    """Write photo.jpg, my.json with its images, and raw/."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    pillow.fromarray(render(scene(0, 3, "test"), 448)).save(folder / "photo.jpg", quality=95)
    dialogues = []
    for number in range(24):
        name = f"photos/{number:02}.jpg"
        shown = scene(7, number)
        pillow.fromarray(render(shown, 224)).save(folder / name, quality=95)
        turns = []
        for turn in chat([shown], number):
            text = "".join(f"<img>{name}</img>" if isinstance(s, Image) else spell([s]) for s in turn.content)
            turns.append({"from": turn.role, "value": text})
        dialogues.append({"id": str(number), "conversations": turns})
    (folder / "my.json").write_text(json.dumps(dialogues, indent=1), encoding="utf-8")
    write_raw(planted(400), folder / "raw", shards=3, cut=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path("runs/readme"))
    parser.add_argument("--only", nargs="*", choices=tuple(PATHS), default=tuple(PATHS))
    options = parser.parse_args()
    prepare(options.to)
    failed = 0
    for name in options.only:
        print(f"== {name}")
        for command in PATHS[name]:
            print(f"$ {command}", flush=True)
            words = [sys.executable, "-m", *shlex.split(command)]
            done = subprocess.run(words, cwd=options.to, capture_output=True, text=True)
            print(done.stdout.rstrip(), done.stderr.rstrip(), sep="\n", flush=True)
            failed += done.returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
