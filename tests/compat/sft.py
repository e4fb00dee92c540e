"""TRL's SFTTrainer on a folder of ours, each way it reads a data set: `make compat` runs this where TRL is installed.

python tests/compat/sft.py FOLDER
"""

import sys
import tempfile
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from trl import SFTConfig, SFTTrainer

import qwenvl.integrations.transformers  # noqa: F401 - makes the model known

ROWS: list[dict[str, Any]] = [
    {
        "images": [Image.new("RGB", (60, 40), colour)],
        "messages": [{"role": "user", "content": "What colour?"}, {"role": "assistant", "content": colour}],
    }
    for colour in ("red", "blue")
] * 2
PAIRS = [
    {"images": row["images"], "prompt": row["messages"][:1], "completion": row["messages"][1:]}
    for row in ROWS
]
TEXT = [{"messages": row["messages"]} for row in ROWS]
WAYS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "messages, recomputing activations": (ROWS, {"gradient_checkpointing": True}, {}),
    "answers alone": (ROWS, {"assistant_only_loss": True}, {}),
    "prompt and completion": (PAIRS, {}, {}),
    "text alone": (TEXT, {}, {}),
    "LoRA on all linear layers": (ROWS, {}, {"peft_config": LoraConfig(target_modules="all-linear", r=2)}),
}


def main() -> None:
    """Two updates each; a loss that is no number ends the run."""
    losses = []
    for way, (rows, settings, others) in WAYS.items():
        with tempfile.TemporaryDirectory() as out:
            config = SFTConfig(
                out, max_steps=2, save_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=False,
                max_length=None, disable_tqdm=True, **settings,
            )  # fmt: skip
            trainer = SFTTrainer(sys.argv[1], config, train_dataset=Dataset.from_list(rows), **others)
            losses.append(trainer.train().training_loss)
        assert losses[-1] == losses[-1], way
        print(f"SFTTrainer, {way}: loss {losses[-1]:.2f}")
    print(f"{len(losses)} train, losses from {min(losses):.2f} to {max(losses):.2f}")


if __name__ == "__main__":
    main()
