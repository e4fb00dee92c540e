"""From a folder of receipts to a model that was asked about them: write ChatML, check, fine-tune with LoRA, merge, ask.

    python benchmarks/finetune_receipts.py ../shared/real/receipts
    python benchmarks/finetune_receipts.py FOLDER --model Qwen/Qwen-VL-Chat --epochs 5 --lr 1e-4 --device cuda

FOLDER holds NNN.jpg, NNN.json (company, date, total) and NNN.csv (x1,y1,...,x4,y4,text of each line, in pixels), as the
ICDAR 2019 SROIE set has them. Nothing of it is copied: the JSON that is written names the images where they are. The
last receipts are held out and asked about at the end. The shipped `tiny` model has seen no photograph and reads words
of a toy world, so with it this shows that the chain holds, not that receipts are read.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from PIL import Image as pillow

from qwenvl.chat import Assistant
from qwenvl.cli import main as qwenvl
from qwenvl.markup import Quad
from qwenvl.runtime import Runtime
from qwenvl.train.log import LOG, read_log

QUESTIONS = {"company": "Which company is it?", "date": "Which date is it?", "total": "What is the total?"}
LINES = 2
"""Lines of text that are asked for with their place."""


def dialogue(image: Path) -> dict[str, object]:
    """A receipt as a sample of the official fine-tuning JSON: three questions, and the first lines with their quads."""
    known = json.loads(image.with_suffix(".json").read_text(encoding="utf-8"))
    turns = [(question, known[field]) for field, question in QUESTIONS.items() if known.get(field)]
    lines = image.with_suffix(".csv")
    if lines.exists():
        with pillow.open(image) as opened:
            size = opened.size
        rows = lines.read_text(encoding="utf-8", errors="replace").splitlines()[:LINES]
        turns.append(("Read the first lines.", "".join(grounded(row, size) for row in rows)))
    said = []
    for number, (question, answer) in enumerate(turns):
        shown = f"Picture 1: <img>{image.resolve()}</img>\n" if number == 0 else ""
        said += [{"from": "user", "value": shown + question}, {"from": "assistant", "value": answer}]
    return {"id": image.stem, "conversations": said}


def grounded(row: str, size: tuple[int, int]) -> str:
    """A line of the CSV as `<ref>text</ref><quad>...</quad>`, in thousandths."""
    *numbers, text = row.split(",", 8)
    corners = [float(each) for each in numbers]
    quad = Quad.from_pixels(list(zip(corners[::2], corners[1::2], strict=True)), *size)
    places = ",".join(f"({x},{y})" for x, y in quad.points)
    return f"<ref>{text.replace('<', ' ')}</ref><quad>{places}</quad>"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/receipts"))
    parser.add_argument("--held-out", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    images = sorted(each for each in given.folder.glob("*.jpg") if each.with_suffix(".json").exists())
    if len(images) <= given.held_out:
        sys.exit(
            f"{given.folder} holds {len(images)} receipts; expected more than the {given.held_out} held out."
        )
    loss_mask, asked = images[: len(images) - given.held_out], images[len(images) - given.held_out :]
    given.out.mkdir(parents=True, exist_ok=True)
    data = given.out / "receipts.json"
    data.write_text(json.dumps([dialogue(each) for each in loss_mask], ensure_ascii=False, indent=1))

    def step(*words: object) -> None:
        print("$ qwenvl", *words, flush=True)
        if status := qwenvl([str(word) for word in words]):
            sys.exit(status)

    run, official = given.out / "run", given.out / "official"
    step("data", "check", data, "--images", given.folder, "--model", given.model, "--lora")
    tuning = ("--batch", 4, "--epochs", given.epochs, "--lr", given.lr, "--device", given.device)
    step("finetune", given.model, "--data", data, "--images", given.folder, "--lora", "--out", run, *tuning)
    losses = [line["loss"] for line in read_log(run / LOG)]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} updates")
    shutil.rmtree(official, ignore_errors=True)
    if given.model != "tiny":  # the shipped model's shape has no official form
        step("convert", run / "model", official, "--to", "official")
    assistant = Assistant.load(run / "model", Runtime.detect(device=given.device, dtype="auto"))
    right = {"learned": 0, "held out": 0}
    for name, some in (("learned", loss_mask[: given.held_out]), ("held out", asked)):
        for image in some:
            known = json.loads(image.with_suffix(".json").read_text(encoding="utf-8"))
            if not known["total"]:
                continue
            reply = assistant.ask(image, QUESTIONS["total"], max_new_tokens=16)
            right[name] += reply.text == known["total"]
            print(f"{name:9} {image.name}  total {known['total']!r}, answered {reply.text!r}")
    print(json.dumps({"updates": len(losses), "loss": [losses[0], losses[-1]], "right": right}))


if __name__ == "__main__":
    main()
