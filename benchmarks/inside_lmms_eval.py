"""Our model under the real lmms-eval, on a small local task, against our own run of the same questions.

    python benchmarks/inside_lmms_eval.py [--venv runs/lmms-venv] [--questions 100] [--model tiny]

Makes the environment if it is not there (84 packages, 1 GB): torch's wheel for the CPU first, then lmms-eval, then
torchvision out again, then this checkout. The task is questions of the toy world as JSON lines; no hub is
asked. Exit status 1 if the scores differ. (Tasks by likelihood cannot be scored by 0.7.3, whatever the model: the kit
turns the pair that a model returns into a text before it unpacks it.)
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

KIT = ("lmms-eval==0.7.3", "filelock<4")
"""The kit, and the last releases of what it reaches into: it imports filelock._api, which later ones lack."""
TASK, BENCHMARK = "toyworld_words", "toyworld-vqa"
"""The same questions, as a task of the kit and as a benchmark of ours."""

TASK_FILE = """\
task: toyworld_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function toyworld.images
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: 64, temperature: 0, do_sample: false}}
process_results: !function toyworld.exact
metric_list: [{{metric: accuracy, aggregation: mean, higher_is_better: true}}]
metadata: [{{version: 1}}]
"""
FUNCTIONS = '''\
"""What the two tasks do with a line of questions."""
import base64
import io

from PIL import Image


def images(doc):
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in doc["images"]]


def exact(doc, results):
    return {"accuracy": float(results[0].strip().lower() == doc["answer"].lower())}
'''


def environment(place: Path) -> Path:
    """The kit's own Python, made if it is not there."""
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "torch>=2.9,<2.14"], check=True)
        found = [str(python), "-c", "import torch; print(torch.__version__.split('+')[0])"]
        version = subprocess.run(found, check=True, capture_output=True, text=True).stdout.strip()
        bound = place / "torch.txt"  # or pip fetches a CUDA build to please the newest torchvision
        bound.write_text(f"torch=={version}\n")
        subprocess.run([*pip, "--constraint", str(bound), *KIT], check=True)
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=True)
        subprocess.run([*pip, "--constraint", str(bound), "--editable", str(ROOT)], check=True)
    return python


def write_task(folder: Path, questions: int) -> None:
    """The task with its questions."""
    from qwenvl.evaluation.benchmarks import benchmark

    folder.mkdir(parents=True, exist_ok=True)
    row = benchmark(BENCHMARK)
    lines = []
    for sample in row.read(row.source(None))[:questions]:
        images = [base64.b64encode(image).decode() for image in sample.images if isinstance(image, bytes)]
        record = {"text": sample.text, "images": images, "answer": sample.answers[0]}
        lines.append(json.dumps(record) + "\n")
    (folder / "questions.jsonl").write_text("".join(lines))
    (folder / f"{TASK}.yaml").write_text(TASK_FILE.format(data=folder / "questions.jsonl"))
    (folder / "toyworld.py").write_text(FUNCTIONS)


def by_the_kit(python: Path, folder: Path, model: str) -> float:
    """What lmms-eval says, in percent."""
    command = [
        str(python), "-m", "lmms_eval", "--model", "qwenvl", "--model_args", f"pretrained={model},prompt_format=raw",
        "--tasks", TASK, "--include_path", str(folder), "--batch_size", "16", "--device", "cpu",
        "--output_path", str(folder / "results"),
    ]  # fmt: skip
    shutil.rmtree(folder / "results", ignore_errors=True)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    subprocess.run(command, check=True, env={**os.environ, **offline}, cwd=folder)
    found = list(folder.glob("results/**/*results.json"))
    if len(found) != 1:
        raise SystemExit(f"the kit wrote {len(found)} results; it says why above.")
    scores = json.loads(found[0].read_text())["results"][TASK]
    return 100 * next(value for name, value in scores.items() if name.split(",")[0] == "accuracy")


def by_us(folder: Path, model: str, questions: int) -> float:
    """What our own run says, in percent."""
    command = [sys.executable, "-m", "qwenvl", "eval", "run", model, BENCHMARK, "--limit", str(questions)]
    command += ["--out", str(folder / "ours"), "--device", "cpu"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return json.loads((folder / "ours" / "score.json").read_text())[0]["score"]["value"]


def main() -> int:
    """Prints both scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, default=ROOT / "runs" / "lmms-venv")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "lmms-eval")
    options = parser.parse_args()
    folder = options.folder.resolve()
    python = environment(options.venv.resolve())
    write_task(folder, options.questions)
    theirs, ours = by_the_kit(python, folder, options.model), by_us(folder, options.model, options.questions)
    print(f"{options.questions} questions under {KIT[0]}: {theirs:.2f} %; by qwenvl eval run: {ours:.2f} %")
    return 0 if abs(theirs - ours) < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
