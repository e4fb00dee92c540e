"""The rules in their order, what became of a pair, and the funnel that counts it (Table 2 in small).

Order: special tags; image; cleaning of the text; its language, emoji, length and regularity; the hooks; and the CLIP
score last, because it may have to be computed. Which pairs are kept does not depend on the order of the rules, only
on texts being cleaned before they are judged.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from qwenvl.data.clean import edits, rules, spans
from qwenvl.data.clean.images import BadImage, on_ground
from qwenvl.data.clean.presets import Thresholds
from qwenvl.data.records import Pair, with_text

FAILED = "failed"
"""Name under which unreadable samples are told in the funnel."""

UNSCORED = "no clip score"
CLIP_RULE = "clip score"

GLOBAL_RULES = (
    "template titles",
    "exact duplicates",
    "longest text",
    "duplicate text",
    "near texts",
    "near images",
)
"""Rules that look at all pairs of a source (`duplicates`), in the order in which they are told."""


class Step(NamedTuple):
    """One line of the funnel: a rule that may drop, or an edit that may change the text."""

    name: str
    rule: rules.Rule | None = None
    edit: Callable[[str], str] | None = None
    change: Callable[[Pair], Pair] | None = None
    """An edit of the image; the same pair where nothing is to be done. It raises BadImage."""


class Verdict(NamedTuple):
    """What became of a pair: `dropped_by` is None where it was kept."""

    pair: Pair
    dropped_by: str | None = None
    reason: str | None = None
    edited: tuple[str, ...] = ()
    before: tuple[int, str] | None = None
    """Shard and key of the pair that came before, where that is why it was dropped."""


def steps_of(thresholds: Thresholds, extra: Sequence[Step] = ()) -> tuple[Step, ...]:
    """The steps that thresholds switch on, with `extra` ones (hooks, decontamination) before the CLIP score."""
    t = thresholds
    steps = [Step("plain text", edit=edits.plain)]
    if t.special_tags is not None:
        steps.append(Step("special tags", rules.no_special_tags(t.special_tags)))
    if t.aspect_ratio is not None:
        steps.append(Step("aspect ratio", rules.aspect_ratio_at_most(t.aspect_ratio)))
    if t.short_side is not None:
        steps.append(Step("small image", rules.short_side_at_least(t.short_side)))
    if t.html:
        steps.append(Step("html", edit=edits.without_html))
    if t.patterns:
        steps.append(Step("patterns", edit=edits.without_patterns))
    if t.letters is not None:
        steps.append(Step("mojibake", rules.no_mojibake()))
    if t.languages is not None:
        steps.append(Step("language", rules.written_in(t.languages, t.detector, t.han_share)))
    if t.emoji:
        steps.append(Step("emoji", rules.no_emoji()))
    if t.words is not None:
        steps.append(Step("length", rules.length_between(*t.words, most_characters=t.characters)))
    if t.letters is not None:
        steps.append(Step("irregular", rules.regular(least_letters=t.letters, most_tags=t.tags)))
    if t.unsafe is not None:
        steps.append(Step("unsafe", rules.column_at_most("punsafe", t.unsafe)))
    if t.watermark is not None:
        steps.append(Step("watermark", rules.column_at_most("pwatermark", t.watermark)))
    if t.ground is not None:
        steps.append(Step("transparency", change=on_ground(t.ground)))
    steps += extra
    if t.clip_score is not None:
        steps.append(Step(UNSCORED, rules.has_clip_score()))
        steps.append(Step(CLIP_RULE, rules.clip_score_between(t.clip_score, t.clip_score_at_most)))
    return tuple(steps)


def apply_steps(pair: Pair, steps: Iterable[Step]) -> Verdict:
    """Pass a pair through the steps, to the first rule that drops it."""
    if len(pair.text) > edits.LONGEST_RAW:
        return Verdict(pair, "length", f"{len(pair.text)} characters > {edits.LONGEST_RAW}")
    edited: tuple[str, ...] = ()
    before = pair.text
    for name, rule, edit, change in steps:
        if edit is not None:
            text = edit(pair.text)
            if text != pair.text:
                pair = with_text(pair, text)
                edited = (*edited, name)
        elif change is not None:
            try:
                changed = change(pair)
            except BadImage as bad:
                return Verdict(pair, name, str(bad), edited)
            edited += (name,) * (changed is not pair)
            pair = changed
        elif rule is not None and (reason := rule(pair)) is not None:
            return Verdict(pair, name, reason, edited)
    if edited:
        extra, lost = spans.moved(pair.extra, before, pair.text)
        pair, edited = replace(pair, extra=extra), (*edited, spans.LOST) if lost else edited
    return Verdict(pair, None, None, edited)


@dataclass(kw_only=True)
class Funnel:
    """Counts of one source; funnels of shards add up to the funnel of the whole."""

    read: int = 0
    kept: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    edited: Counter[str] = field(default_factory=Counter)

    def count(self, verdict: Verdict) -> None:
        """One pair that was read."""
        self.read += 1
        self.edited.update(verdict.edited)
        if verdict.dropped_by is None:
            self.kept += 1
        else:
            self.dropped[verdict.dropped_by] += 1

    def fail(self, kind: str) -> None:
        """One sample that could not be read."""
        self.read += 1
        self.failed[kind] += 1

    def add(self, other: "Funnel") -> None:
        """Another shard of the same source."""
        self.read += other.read
        self.kept += other.kept
        for mine, theirs in (
            (self.failed, other.failed),
            (self.dropped, other.dropped),
            (self.edited, other.edited),
        ):
            mine.update(theirs)

    def to_json(self) -> dict[str, Any]:
        """As a plain mapping, names sorted."""
        return {
            "read": self.read,
            "kept": self.kept,
            **{name: dict(sorted(getattr(self, name).items())) for name in ("failed", "dropped", "edited")},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Funnel":
        """The inverse of `to_json`."""
        counters = {name: Counter(values[name]) for name in ("failed", "dropped", "edited")}
        return cls(read=values["read"], kept=values["kept"], **counters)

    def lines(self, steps: Sequence[str]) -> list[tuple[str, int, int]]:
        """(name, gone here, still there after it) from the reading to what is kept, rules in the order of `steps`."""
        left = self.read
        stages = [("read", 0, left)]
        for name, gone in sorted(self.failed.items()):
            left -= gone
            stages.append((name, gone, left))
        order = [*steps, *(name for name in sorted(self.dropped) if name not in steps)]
        for name in order:
            if name in self.dropped or name in steps:
                left -= self.dropped[name]
                stages.append((name, self.dropped[name], left))
        return stages


def rule_names(thresholds: Thresholds, extra: Sequence[str] = ()) -> list[str]:
    """Names of the dropping rules in the order of the funnel."""
    t = thresholds
    switched = (
        t.template_titles,
        t.exact_duplicates,
        t.longest_text,
        t.duplicate_text,
        t.near_texts,
        t.near_images,
    )
    local = [step.name for step in steps_of(t) if step.rule is not None]
    position = local.index(UNSCORED) if UNSCORED in local else len(local)
    local[position:position] = extra
    return local + [
        name for name, on in zip(GLOBAL_RULES, switched, strict=True) if on is not None and on is not False
    ]
