"""`qwenvl eval score`: answers from a file, without a model."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qwenvl.data.datasets.sample import Sample
    from qwenvl.evaluation.card import Card
    from qwenvl.evaluation.predictions import Prediction


def eval_score(
    benchmark: str,
    /,
    *,
    predictions: Path,
    data: Path | None = None,
    answers: Path | None = None,
    images: Path | None = None,
    out: Path | None = None,
    model: str | None = None,
    submission: Path | None = None,
    judge: str | None = None,
    judge_model: str = "gpt-4",
    dry_run: Path | None = None,
    replay: Path | None = None,
    partial: bool = False,
    json: bool = False,
) -> int:
    """Score a file of predictions: ours (scored.jsonl) or any list of objects with an id and an answer.

    Questions without an answer are counted, never scored; exit status 1 if there are any, unless --partial. TouchStone
    is rated by a judge with the interface of OpenAI (its key in OPENAI_API_KEY) or by recorded replies.

      qwenvl eval score docvqa --predictions answers.json --data val_v1.0.json

    Args:
        benchmark: Its name in docs/EVALUATION.md.
        predictions: JSON lines or a JSON list, one entry per question.
        data: The questions: the original file or folder, or the release's JSON lines; the toy world has none.
        answers: The answers, where they are a file of their own.
        images: Folder of the pictures; only the report needs them.
        out: Folder for score.json and scored.jsonl.
        model: Name on the score card; by default that of the predictions' folder.
        submission: Write the file for the test server here instead of scoring.
        judge: URL of the judge, up to and with /v1.
        judge_model: Its name there.
        dry_run: Write what would be asked of the judge here, and ask nothing.
        replay: The judge's recorded replies; new ones are added when there is a --judge.
        partial: Accept questions without an answer.
        json: Print one JSON object.
    """
    from qwenvl.evaluation import card, submissions
    from qwenvl.evaluation.benchmarks import benchmark as row_of
    from qwenvl.evaluation.predictions import read_foreign

    row = row_of(benchmark)
    samples = row.read(row.source(data, answers, images))
    found = read_foreign(predictions)
    if submission is not None:
        if row.submit is None:
            raise ValueError(f"{benchmark} has no test server; leave out --submission.")
        submissions.write(row.submit, samples, {name: p.plain for name, p in found.items()}, submission)
        print(submission)
        return 0
    replies: Mapping[tuple[str, int], str] | None = None
    if row.metric is None:
        replies = _scored(samples, found, judge, judge_model, dry_run, replay)
        if dry_run is not None:
            print(dry_run)
            return 0
    elif judge or dry_run or replay:
        raise ValueError(f"{benchmark} needs no judge; --judge, --dry-run and --replay are for TouchStone.")
    name = model or predictions.resolve().parent.name
    result, records = card.score(row, samples, found, model=name, replies=replies)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        card.write(out, [result], records)
    return print_card(result, out, partial=partial, json=json)


def _scored(
    samples: "Sequence[Sample]",
    found: "Mapping[str, Prediction]",
    url: str | None,
    model: str,
    dry_run: Path | None,
    replay: Path | None,
) -> "Mapping[tuple[str, int], str]":
    """Replies of the judge, or of a file; none after a dry run."""
    import os

    from rich.console import Console
    from rich.progress import Progress

    from qwenvl.evaluation import judge

    asked = list(judge.inquiries(samples, {name: p.plain for name, p in found.items()}))
    if dry_run is not None:
        judge.to_file(asked, dry_run)
        return {}
    if url is None:
        if replay is None:
            raise ValueError(
                "TouchStone needs a judge: --judge URL, --replay FILE, or --dry-run FILE to see the prompts."
            )
        return judge.from_file(replay)
    endpoint = judge.Endpoint(url=url, model=model, key=os.environ.get("OPENAI_API_KEY", ""))
    recorded = replay or Path("touchstone-replies.jsonl")
    with Progress(console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("judge", total=len(asked))
        return judge.replies(asked, endpoint, recorded, lambda done, _: bar.update(line, completed=done))


def print_card(result: "Card", out: Path | None, *, partial: bool, json: bool) -> int:
    """Print a card; exit status 1 if questions are without an answer and that was not asked for."""
    from rich.console import Console

    score, console = result.score, Console(stderr=True)
    if json:
        from json import dumps

        print(dumps(result.to_json(), ensure_ascii=False))
    else:
        paper = "" if result.paper is None else f"; the paper: {result.paper:g} ({result.difference:+.2f})"
        print(
            f"{result.title}  {result.metric} {score.value:.2f} ({score.low:.2f} .. {score.high:.2f}){paper}"
        )
        for name, value in score.notes.items():
            print(f"  {name} {value:.2f}")
        for name, (value, count) in score.groups.items():
            print(f"  {name or 'other'}: {value:.2f} of {count}")
        if out is not None:
            print(f"scores and answers in {out}; next: qwenvl eval report {out}")
    if score.failures:
        console.print(
            f"without anything readable, and so without a point: {score.failures} of {score.n} answers"
        )
    if score.complete:
        return 0
    console.print(
        f"{score.n} of {score.expected} questions have a score", style=None if partial else "bold red"
    )
    return 0 if partial else 1
