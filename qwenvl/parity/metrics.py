"""Certifies the evaluation metrics against values recorded from the official scripts and from pycocoevalcap.

Input: `*.json` files as described in their README; what a file holds is recognised by its fields, not by its name. One
result per kind of recorded value, with the largest difference. Every recorded field is checked; a field or file that
is not understood fails.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwenvl.data.datasets import seed
from qwenvl.evaluation.metrics import anls, captions, exact, gqa, grounding, mme, ptb, relaxed, vqa
from qwenvl.evaluation.metrics import multiple_choice as choice
from qwenvl.evaluation.metrics.tally import Tally, tally, tally_by
from qwenvl.parity.certificate import Result
from qwenvl.parsing import read_json

EXACT, ROUNDING, FLOAT32 = 0.0, 1e-9, 1e-6

Record = Mapping[str, Any]


class Check:
    """Compares one kind of recorded value over many items."""

    def __init__(self, case: str, tolerance: float = ROUNDING) -> None:
        self.case, self.tolerance = case, tolerance
        self.items, self.wrong, self.largest, self.first_wrong = 0, 0, 0.0, ""

    def number(self, ours: float, recorded: float | str, where: object) -> None:
        """Compare numbers, relative to the recorded one where it exceeds 1; nan equals nan."""
        wanted = float(recorded)
        same = ours == wanted or (math.isnan(ours) and math.isnan(wanted))
        difference = 0.0 if same else abs(ours - wanted) / max(1.0, abs(wanted))
        difference = math.inf if math.isnan(difference) else difference
        self.largest = max(self.largest, difference)
        self._count(difference <= self.tolerance, ours, recorded, where)

    def numbers(self, ours: Sequence[float], recorded: Sequence[float | str], where: object) -> None:
        """Compare rows of numbers of equal length."""
        if len(ours) != len(recorded):
            self._count(False, list(ours), recorded, where)
        for own, wanted in zip(ours, recorded, strict=False):
            self.number(float(own), wanted, where)

    def equal(self, ours: object, recorded: object, where: object) -> None:
        """Compare texts, lists or counts: equal or not."""
        self._count(ours == recorded, ours, recorded, where)

    def _count(self, right: bool, ours: object, recorded: object, where: object) -> None:
        self.items += 1
        if not right:
            self.wrong += 1
            self.first_wrong = self.first_wrong or f"at {where!r}: {ours!r}, recorded {recorded!r}"

    def result(self) -> Result:
        """PASS if every item agreed and there was one."""
        note = f"{self.items} values"
        if self.wrong:
            note = f"{self.wrong} of {self.items} differ, first {self.first_wrong}"
        passed = self.items and not self.wrong
        return Result(self.case, "PASS" if passed else "FAIL", self.largest, self.tolerance, note)


class Checks:
    """The checks of one file, made when first asked for; `known` collects fields that nobody understands."""

    def __init__(self, file: str) -> None:
        self.file, self.made, self.unknown = file, dict[str, Check](), set[str]()

    def __call__(self, name: str, tolerance: float = ROUNDING) -> Check:
        return self.made.setdefault(name, Check(f"{self.file}: {name}", tolerance))

    def known(self, record: Record, fields: str) -> None:
        """Note every field of a record that is not among the given ones."""
        self.unknown |= set(record) - set(fields.split())

    def results(self) -> Iterator[Result]:
        """What every check found, and a failure for a case that was not understood."""
        yield from (check.result() for check in self.made.values())
        if self.unknown or not self.made:
            note = (
                f"case not understood: unknown fields {sorted(self.unknown)}"
                if self.unknown
                else "nothing recorded"
            )
            yield Result(f"{self.file}: fields", "FAIL", None, EXACT, note)


def certify(path: Path) -> Iterator[Result]:
    """Certify one JSON file, or every file of a folder (a README is passed over)."""
    path = Path(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if not file.name.lower().startswith("readme"):
            yield from _certify_file(file)


def recognises(data: Any) -> bool:
    """Whether the parsed content of a JSON file looks like recorded metric values."""
    return isinstance(data, Mapping) and _reader(data) is not None


def _certify_file(file: Path) -> Iterator[Result]:
    checks = Checks(file.name)
    try:
        data = read_json(file)
        reader = _reader(data) if isinstance(data, Mapping) else None
        if reader is None:
            yield Result(file.name, "FAIL", None, EXACT, "case not understood")
            return
        reader(data, checks)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError) as error:
        yield Result(file.name, "FAIL", None, EXACT, f"case not understood: {type(error).__name__}: {error}")
    yield from checks.results()


def _items(data: Record, checks: Checks, fields: str) -> Iterator[Record]:
    for item in data.get("items", ()):
        checks.known(item, fields)
        yield item


def _overall(data: Record, checks: Checks, name: str, scores: Iterable[float]) -> None:
    if name in data:
        checks(name).number(tally(scores).mean, data[name], name)


def _vqa(data: Record, checks: Checks) -> None:
    checks.known(data, "items accuracy accuracy_10_decimals processed")
    items = list(_items(data, checks, "pred answers question_type answer_type score score_10_decimals"))
    scores = [vqa.score(item["pred"], item["answers"]) for item in items]
    for name, digits in (("score", 2), ("score_10_decimals", 10)):
        for item, score in zip(items, scores, strict=True):
            checks(f"items {name}").number(vqa.percent(Tally(score, 1), digits), item[name], item["pred"])
    for name, digits in (("accuracy", 2), ("accuracy_10_decimals", 10)):
        if name not in data:
            continue
        checks.known(data[name], "overall perQuestionType perAnswerType")
        checks(name).number(vqa.percent(tally(scores), digits), data[name]["overall"], "overall")
        for field, table in (("question_type", "perQuestionType"), ("answer_type", "perAnswerType")):
            groups = tally_by((item[field] for item in items), scores)
            checks(f"{name} {table}").equal(sorted(groups), sorted(data[name][table]), "groups")
            for group, recorded in data[name][table].items():
                checks(f"{name} {table}").number(vqa.percent(groups[group], digits), recorded, group)
    for probe in data.get("processed", ()):
        checks.known(probe, "text punct full")
        punct = vqa.process_punctuation(probe["text"])
        checks("processed punct", EXACT).equal(punct, probe["punct"], probe["text"])
        checks("processed full", EXACT).equal(vqa.process_words(punct), probe["full"], probe["text"])


def _anls(data: Record, checks: Checks) -> None:
    checks.known(data, "threshold items overall")
    threshold = data.get("threshold", anls.THRESHOLD)
    scores = []
    for item in _items(data, checks, "pred answers score"):
        scores.append(anls.score(item["pred"], item["answers"], threshold=threshold))
        checks("items score").number(scores[-1], item["score"], item["pred"])
    _overall(data, checks, "overall", scores)


def _relaxed(data: Record, checks: Checks) -> None:
    checks.known(data, "items overall overall_correct_order")
    items = list(_items(data, checks, "answer annotation score score_correct_order"))
    for field, overall, official in (
        ("score", "overall", True),
        ("score_correct_order", "overall_correct_order", False),
    ):
        scores = [relaxed.score(item["answer"], item["annotation"], official=official) for item in items]
        for item, score in zip(items, scores, strict=True):
            checks(f"items {field}", EXACT).number(score, item[field], (item["answer"], item["annotation"]))
        _overall(data, checks, overall, scores)


def _exact(data: Record, checks: Checks) -> None:
    checks.known(data, "items overall")
    scores = []
    for item in _items(data, checks, "answer annotation score"):
        scores.append(exact.score(item["answer"], item["annotation"]))
        checks("items score", EXACT).number(scores[-1], item["score"], (item["answer"], item["annotation"]))
    _overall(data, checks, "overall", scores)


def _gqa(data: Record, checks: Checks) -> None:
    checks.known(data, "items errors overall")
    scores = []
    for item in _items(data, checks, "raw processed annotation score"):
        checks("items processed", EXACT).equal(
            gqa.extract_answer(item["raw"]), item["processed"], item["raw"]
        )
        scores.append(gqa.score(item["raw"], item["annotation"]))
        checks("items score", EXACT).number(scores[-1], item["score"], (item["raw"], item["annotation"]))
    _overall(data, checks, "overall", scores)
    for case in data.get("errors", ()):  # the reference dies in .strip(); ours says what it wanted
        checks.known(case, "raw error")
        try:
            gqa.extract_answer(case["raw"])
            refused = None
        except ValueError:
            refused = "AttributeError"
        checks("errors refused", EXACT).equal(refused, case["error"], case["raw"])


def _grounding(data: Record, checks: Checks) -> None:
    checks.known(data, "items correct total precision_at_1")
    scores = []
    for item in _items(data, checks, "answer gt_bbox hw parsed_box scaled_box iou correct"):
        height, width = item["hw"]
        ours = grounding.score(item["answer"], [float(x) for x in item["gt_bbox"]], width, height)
        where = item["answer"]
        checks("items parsed_box", EXACT).numbers(ours.parsed or (0.0,) * 4, item["parsed_box"], where)
        checks("items scaled_box", EXACT).numbers(ours.scaled.tolist(), item["scaled_box"], where)
        checks("items iou", FLOAT32).number(ours.iou, item["iou"], where)
        checks("items correct", EXACT).equal(ours.correct, item["correct"], where)
        scores.append(float(ours.correct))
    total = tally(scores)
    checks("correct and total", EXACT).equal(
        (total.total, total.count), (data["correct"], data["total"]), "all"
    )
    _overall(data, checks, "precision_at_1", scores)


def _captions(data: Record, checks: Checks) -> None:
    checks.known(data, "order items corpus tokenizer_probe")
    probes = data.get("tokenizer_probe", [])
    for probe, ours in zip(probes, ptb.tokenise([probe["text"] for probe in probes]), strict=True):
        checks.known(probe, "text tokenized")
        checks("tokenizer_probe", EXACT).equal(ours, probe["tokenized"], probe["text"])
    names = [f"Bleu_{n}" for n in range(1, 5)]
    fields = "image_id refs hyp refs_tokenized hyp_tokenized CIDEr ROUGE_L"
    items = list(_items(data, checks, " ".join([fields, *names])))
    if not items:
        return
    if "order" in data:
        checks("order", EXACT).equal([item["image_id"] for item in items], data["order"], "order")
    said = ptb.tokenise([item["hyp"] for item in items])
    references = ptb.tokenise_groups([item["refs"] for item in items])
    ours_all = captions.score_tokenised(said, references)
    for i, item in enumerate(items):
        checks("items hyp_tokenized", EXACT).equal(said[i], item["hyp_tokenized"], item["hyp"])
        checks("items refs_tokenized", EXACT).equal(references[i], item["refs_tokenized"], item["refs"])
        checks("items CIDEr").number(float(ours_all.cider[i]), item["CIDEr"], item["image_id"])
        checks("items ROUGE_L").number(float(ours_all.rouge_l[i]), item["ROUGE_L"], item["image_id"])
        for name, value in zip(names, ours_all.overlaps[i].scores, strict=True):
            checks(f"items {name}").number(value, item[name], item["image_id"])
    corpus = ours_all.corpus
    for name, recorded in data.get("corpus", {}).items():
        checks("corpus").number(corpus[name], recorded, name)


def _mme(data: Record, checks: Checks) -> None:
    checks.known(data, "groups subtasks totals label_cases published_qwen_vl_chat")
    counted = {}
    for name, task in data.get("subtasks", {}).items():
        checks.known(task, "items acc acc_plus other_num score")
        for item in _items(task, checks, "image question gt pred label"):
            checks("items label", EXACT).equal(mme.label(item["pred"]), item["label"], item["pred"])
        gts, said = [item["gt"] for item in task["items"]], [item["pred"] for item in task["items"]]
        ours = counted[name] = mme.count(gts, said)
        checks("subtasks acc").number(ours.acc, task["acc"], name)
        checks("subtasks acc_plus").number(ours.acc_plus, task["acc_plus"], name)
        checks("subtasks other_num", EXACT).equal(ours.other, task["other_num"], name)
        checks("subtasks score").number(ours.score, task["score"], name)
    groups = data.get("groups", mme.GROUPS)
    for group, recorded in data.get("totals", {}).items():
        checks("totals").number(mme.total(counted, groups[group]), recorded, group)
    for case in data.get("label_cases", ()):
        checks.known(case, "pred label")
        checks("label_cases", EXACT).equal(mme.label(case["pred"]), case["label"], case["pred"])
    if "published_qwen_vl_chat" in data:
        _published_mme(data["published_qwen_vl_chat"], groups, checks)


def _published_mme(data: Record, groups: Mapping[str, Sequence[str]], checks: Checks) -> None:
    """The published scores follow from numbers of right answers: as many right answers are made up and counted."""
    checks.known(data, "subtasks perception_total cognition_total")
    counted = {}
    for name, task in data["subtasks"].items():
        checks.known(task, "score images correct_questions_plus_2x_both_right")
        images, points = task["images"], task["correct_questions_plus_2x_both_right"]
        both = next(b for b in range(points // 4, -1, -1) if points - 2 * b <= images + b)
        one = points - 4 * both
        answers = ["yes", "yes"] * both + ["yes", "no"] * one + ["no", "no"] * (images - both - one)
        counted[name] = mme.count(["Yes"] * len(answers), answers)
        checks("published scores").number(counted[name].score, task["score"], name)
    for group, names in groups.items():
        recorded = data[f"{group.lower()}_total"]
        checks("published totals").number(mme.total(counted, names), recorded, group)


def _multiple_choice(data: Record, checks: Checks) -> None:
    checks.known(data, "scienceqa seed_image seed_video seed_get_index scoring collate")
    for case in data.get("scienceqa", ()):
        checks.known(case, "image hint question choices answer prompt continuations")
        ours = choice.scienceqa_prompt(case["image"], case["question"], case["choices"], case["hint"])
        checks("scienceqa prompt", EXACT).equal(ours, case["prompt"], case["question"])
        letters = choice.continuations(choice.LETTERS[: len(case["choices"])])
        checks("scienceqa continuations", EXACT).equal(letters, case["continuations"], case["question"])
    record_fields = (
        "question_id question_type_id data_id question choice_a choice_b choice_c choice_d answer built"
    )
    for case in data.get("seed_image", ()):
        checks.known(case, f"{record_fields} cc3m_dir")
        _seed_built(
            case, [choice.seed_image(case["cc3m_dir"], case["data_id"])], checks("seed_image built", EXACT)
        )
    for case in data.get("seed_video", ()):
        checks.known(case, f"{record_fields} segment video frame_indices")
        checks.known(case["video"], "frames fps")
        frames = choice.seed_frames(case["video"]["frames"], case["video"]["fps"], case.get("segment"))
        checks("seed_video frame_indices", EXACT).equal(frames, case["frame_indices"], case["question_id"])
        names = choice.seed_frame_names(case["question_id"], len(frames))
        _seed_built(case, names, checks("seed_video built", EXACT))
    for case in data.get("seed_get_index", ()):
        checks.known(case, "num_frames num_segments indices")
        ours_at = choice.even_frames(case["num_frames"], case["num_segments"])
        checks("seed_get_index", EXACT).equal(ours_at, case["indices"], case["num_frames"])
    for number, case in enumerate(data.get("scoring", ())):
        _likelihood(case, number, checks)
    if "collate" in data:
        _collate(data["collate"], checks)


def _seed_built(case: Record, images: Sequence[str], check: Check) -> None:
    prompt = choice.seed_prompt(images, case["question"], seed.choices(case, case["question_id"]))
    ours = {"question_id": case["question_id"], "prompt": prompt, "answer": case["answer"]}
    check.equal(ours, case["built"], case["question_id"])


def _likelihood(case: Record, number: int, checks: Checks) -> None:
    fields = "logprobs target_lengths answer mean_nll pred pred_letter correct sum_rule_pred"
    checks.known(case, fields)
    logprobs = [[float(value) for value in row] for row in case["logprobs"]]
    ours = choice.choose(logprobs, case["target_lengths"])
    letter = None if ours.chosen is None else choice.LETTERS[ours.chosen]
    checks("scoring mean_nll", FLOAT32).numbers(ours.mean_nll.tolist(), case["mean_nll"], number)
    checks("scoring pred", EXACT).equal(ours.chosen, case["pred"], number)
    checks("scoring pred_letter", EXACT).equal(letter, case["pred_letter"], number)
    checks("scoring correct", EXACT).equal(ours.chosen == case["answer"], bool(case["correct"]), number)
    checks("scoring sum_rule_pred", EXACT).equal(int(np.argmin(ours.nll_sums)), case["sum_rule_pred"], number)


def _collate(data: Record, checks: Checks) -> None:
    checks.known(data, "pad_token_id batch input_tokens attention_mask chunk_sizes")
    for item in data["batch"]:
        checks.known(item, "input_tokens target_lengths answer")
    rows = [row for item in data["batch"] for row in item["input_tokens"]]
    ids, mask = choice.left_pad(rows, data["pad_token_id"])
    checks("collate", EXACT).equal(ids.tolist(), data["input_tokens"], "input_tokens")
    checks("collate", EXACT).equal(mask.tolist(), data["attention_mask"], "attention_mask")
    checks("collate", EXACT).equal(
        [len(item["input_tokens"]) for item in data["batch"]], data["chunk_sizes"], "chunk_sizes"
    )


Reader = Callable[[Record, Checks], None]

# The first row one of whose fields is present, in the file itself or in its first item, says what the file holds.
READERS: tuple[tuple[str, Reader], ...] = (
    ("subtasks label_cases published_qwen_vl_chat", _mme),
    ("scienceqa seed_image seed_video seed_get_index scoring collate", _multiple_choice),
    ("corpus tokenizer_probe hyp", _captions),
    ("raw errors", _gqa),
    ("processed question_type accuracy", _vqa),
    ("gt_bbox precision_at_1", _grounding),
    ("score_correct_order overall_correct_order", _relaxed),
    ("threshold answers", _anls),
    ("annotation", _exact),
)


def _reader(data: Record) -> Reader | None:
    items = data.get("items") or [{}]
    present = set(data) | set(items[0] if isinstance(items, list) and isinstance(items[0], Mapping) else ())
    return next((reader for fields, reader in READERS if present & set(fields.split())), None)
