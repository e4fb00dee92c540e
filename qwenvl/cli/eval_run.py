"""`qwenvl eval run`: a benchmark with a model."""

from pathlib import Path


def eval_run(
    checkpoint: str,
    benchmark: str,
    /,
    *,
    limit: int | None = None,
    batch: int = 64,
    out: Path | None = None,
    json: bool = False,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Ask a model the questions of a benchmark and print its score.

      qwenvl eval run tiny toyworld --limit 100 --json

    Args:
        checkpoint: A folder, a hub id or `tiny`.
        benchmark: `toyworld`.
        limit: Ask only about so many pictures (default: 2,000).
        batch: Questions answered together.
        out: Write every prediction here, one JSON object per line.
        json: Print one JSON object.
        device: auto, cpu, cuda or mps.
        dtype: auto, float32, bfloat16 or float16.
    """
    if benchmark != "toyworld":
        raise ValueError(f"there is no benchmark {benchmark!r}; known: toyworld.")
    from json import dumps

    from rich.console import Console
    from rich.progress import Progress

    from qwenvl.chat import Assistant
    from qwenvl.evaluation.toyworld import evaluate_toyworld
    from qwenvl.runtime import Runtime

    assistant = Assistant.load(checkpoint, Runtime.detect(device=device, dtype=dtype, seed=0))
    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("toyworld")
        scores = evaluate_toyworld(
            assistant,
            2000 if limit is None else limit,
            batch=batch,
            progress=lambda done, total: bar.update(line, completed=done, total=total),
        )
    if out is not None:
        scores.write_predictions(out)
    if json:
        print(dumps(scores.to_json(), ensure_ascii=False))
        return
    for name, count in scores.groups.items():
        blind = scores.blind[name].share
        print(f"{name:<10} {100 * (count.share or 0):5.1f} % of {count.n}; blind {100 * (blind or 0):.1f} %")
