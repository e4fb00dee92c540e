"""What the pages say: passages from a folder of .txt files, or made up in English and Chinese (paper A.4).

The paper does not name its corpus. The built-in generator needs no download: sentences, names, dates, prices,
codes and addresses; for Chinese, half of the text is characters drawn evenly from GB 2312 level 1, so that rare
ones are seen as often as common ones.
"""

import codecs
import unicodedata
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

PATIENCE = 50
"""Passages in turn that may be of no use before a page is given up."""

HAN = range(0x4E00, 0xA000)
"""CJK Unified Ideographs: what makes a text Chinese here."""

LEVEL_1 = bytes(b for k in range(3755) for b in (0xB0 + k // 94, 0xA1 + k % 94)).decode("gb2312")
"""The 3,755 common characters of GB 2312, in its own order (by pronunciation)."""

ENGLISH = {
    "det": "the a this every our their one another each that",
    "adj": "annual quiet small second early public green heavy open common narrow modern bright local final short "
    "careful northern white ordinary private complete useful warm ancient broken simple rapid late gentle",
    "noun": "report river house company engine letter window school bridge market station garden library journey "
    "council harbour method number picture problem question season teacher theatre village winter machine record "
    "language kitchen history forest doctor contract chapter building address account agreement railway island "
    "museum invoice paper mountain factory answer morning evening product service customer department result",
    "verb": "describes follows opens carries reaches leaves shows receives covers changes supports explains needs "
    "holds measures protects returns includes presents connects considers improves becomes requires finds keeps",
    "adv": "slowly again often quickly together usually clearly nearly always later almost rather carefully",
    "prep": "in of on under near behind beside after before with without from across between for by",
    "name": "Anna Smith Brown Oxford London Maria Carter Wilson Berlin Peter Clark Boston Taylor Laura Evans Dublin",
    "month": "January February March April May June July August September October November December",
    "unit": "kg cm pcs km hours pages boxes USD EUR %",
    "label": "Total Date Invoice Price Name Address Phone Quantity Amount Subject Page Table Figure Order Section",
}
"""Words by their place in a sentence."""

CHINESE = {
    "who": "我们 他们 公司 学校 老师 学生 政府 作者 客户 医生 工程师 大家 市场部 北京 上海 广州 研究人员 人民",
    "when": "今天 昨天 去年 目前 上午 下午 最近 春天 冬季 同时 后来 周一 月底",
    "verb": "发现 提供 使用 完成 介绍 研究 支持 提高 收到 表示 决定 参加 继续 说明 需要 管理 建设 讨论",
    "adj": "新的 重要的 主要的 美丽的 不同的 简单的 传统的 完整的 安静的 公共的 有效的 古老的",
    "noun": "问题 方法 文化 技术 产品 服务 报告 合同 数据 经济 历史 语言 城市 桥梁 图书馆 火车站 花园 教育 "
    "环境 项目 计划 结果 信息 生活 工作 时间 价格 地址 电话 机器",
    "label": "合计 日期 姓名 地址 电话 数量 单价 金额 备注 编号 名称 规格 第一章 目录 表 图",
}
"""Words by their place in a clause."""

_WORDS = {
    language: {part: words.split() for part, words in table.items()}
    for language, table in (("en", ENGLISH), ("zh", CHINESE))
}
_SYLLABLES = ("ba", "ker", "lin", "mo", "ra", "ton", "ves", "tri", "an", "der", "pol", "sta", "ne", "gi", "hu", "wil",
              "co", "fer", "ma", "so", "pe", "dul", "ex", "am", "ry")  # fmt: skip


def is_chinese(text: str) -> bool:
    """Whether more than a tenth of the characters are Han: such a line needs a Chinese font."""
    return sum(ord(character) in HAN for character in text) > len(text) / 10


class NoText(ValueError):
    """No passage of a folder of texts can be drawn; costs the page that asked for it."""


class TextSource:
    """Passages of a folder's .txt files, or made up; which one is a function of the generator handed in.

    `faults` says of a file of the folder why it, or some of it, is not used: {path: reason}.
    """

    def __init__(self, folder: Path | None = None, *, chinese: float = 0.5) -> None:
        """`chinese` is the share of made-up passages in Chinese; a folder's files are in whatever they are in.

        Raises ValueError where the folder has no text.
        """
        if not 0 <= chinese <= 1:
            raise ValueError(f"the share of Chinese passages is {chinese}; expected 0 to 1.")
        self._chinese = chinese
        self.faults: dict[Path, str] = {}
        self._files: Sequence[tuple[Path, int]] = ()
        if folder is not None:
            found = sorted(files_in(folder, {".txt"})) if folder.is_dir() else []
            self._files = [(path, size) for path in found if (size := path.stat().st_size)]
            if not self._files:
                raise ValueError(f"{folder} has no .txt file with text; give a folder of UTF-8 .txt files.")

    def in_languages(self, languages: Collection[str]) -> "TextSource":
        """The same source on a machine whose fonts serve these languages: made-up text is in English without "zh"."""
        return self if "zh" in languages or self._files else TextSource(chinese=0.0)

    def passage(
        self,
        rng: np.random.Generator,
        length: int,
        language: str | None = None,
        drawn: Callable[[str], str] = str,
    ) -> str:
        """About `length` characters on one line, single spaces between words; never empty.

        `language` ("en", "zh") is what a made-up passage is in; a folder's passages are in whatever they are in.
        `drawn` takes out of a text what the caller cannot draw. A passage of which it leaves nothing is passed over,
        noted in `faults`, and another is drawn from the folder; raises NoText where many in turn are of no use.
        """
        if not self._files:
            chinese = rng.random() < self._chinese if language is None else language == "zh"
            return drawn(_chinese(rng, length) if chinese else _english(rng, length))
        for _ in range(PATIENCE):
            path, text = self._excerpt(rng, length)
            left = drawn(text)
            if len(left) < len(text):
                self._note(path, text, left)
            if left:
                return left
        raise NoText(f"{PATIENCE} passages in turn are of no use; the last: {path}: {self.faults[path]}")

    def _note(self, path: Path, text: str, left: str) -> None:
        lost = max(set(text) - set(left), default=text[0])
        name = unicodedata.name(lost, "a character without a name")
        self.faults.setdefault(path, f"no font here draws {lost!a} ({name}): words with such are left out")

    def _excerpt(self, rng: np.random.Generator, length: int) -> tuple[Path, str]:
        """A file, and its text from a random place on; files count by their size."""
        sizes = np.cumsum([size for _, size in self._files])
        at = int(rng.integers(sizes[-1]))
        path, size = self._files[int(np.searchsorted(sizes, at, side="right"))]
        start = int(rng.integers(size))
        if size - start < length:
            start = max(0, size - 3 * length)  # near the end: the tail of the file
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(3 * length)
        try:
            text = _decoded(data, begins=start == 0, ends=start + len(data) >= size)
        except UnicodeDecodeError as error:
            byte, place = data[error.start], start + error.start
            self.faults.setdefault(
                path, f"it is no UTF-8 (byte 0x{byte:02x} at {place}), so it is not used; save it as UTF-8"
            )
            return path, ""
        if start and not is_chinese(text):
            text = text.partition(" ")[2] or text  # not from the middle of a word
        if not (text := _one_line(text)):
            self.faults.setdefault(path, "it holds nothing but white space at some places")
        return path, text


def _decoded(data: bytes, *, begins: bool, ends: bool) -> str:
    """UTF-8 that may be cut at its ends in the middle of a character; raises UnicodeDecodeError for anything else."""
    if not begins:
        cut = next((k for k, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
        data = bytes(cut) + data[cut:]  # as long as it was: places in an error are right
    return codecs.getincrementaldecoder("utf-8")().decode(data, final=ends).lstrip("\0")


def _one_line(text: str) -> str:
    """Composed characters, single spaces; what has no ink of its own (marks of order and joining, controls) is gone."""
    composed = unicodedata.normalize("NFC", text)
    if not composed.isprintable():
        kinds = {c: unicodedata.category(c) for c in set(composed)}
        composed = "".join(" " if kinds[c] == "Cc" else "" if kinds[c] == "Cf" else c for c in composed)
    return " ".join(composed.split())


def files_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Files below a folder with one of these suffixes (lower case), in order; hidden ones (`._a.jpg`) are none."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


# === English ===


def _english(rng: np.random.Generator, length: int) -> str:
    draws = _Draws(rng, _WORDS["en"])
    parts: list[str] = []
    size = 0
    while size < length:
        parts.append(_english_sentence(draws))
        size += len(parts[-1]) + 1
    return " ".join(parts)


def _english_sentence(draw: "_Draws") -> str:
    kind = draw.below(10)
    if kind == 0:
        return f"{draw.word('label')}: {_figure(draw)}"
    if kind == 1:
        day, year = draw.below(28) + 1, 1900 + draw.below(150)
        return f"{draw.word('name')} {draw.word('name')}, {day} {draw.word('month')} {year}."
    words = [draw.word("det"), draw.word("adj"), draw.word("noun"), draw.word("verb")]
    words += [draw.word("det"), draw.word("adj"), draw.word("noun")]
    if kind in (2, 3):
        words[1] = "".join(
            draw.pick(_SYLLABLES) for _ in range(2 + draw.below(2))
        )  # no word a model can guess
    if kind > 3:
        words += [draw.word("prep"), draw.word("det"), draw.word("noun")]
    if kind > 6:
        words[4:4] = [draw.word("adv")]
    if kind == 8:
        words[-1] = f"({_figure(draw)})"
    sentence = " ".join(words)
    return sentence[0].upper() + sentence[1:] + draw.pick("..,;?!")


def _figure(draw: "_Draws") -> str:
    """A price, a date, a code, a telephone number, a share, a measure."""
    number = draw.below(100000)
    return (
        f"${number / 100:,.2f}",
        f"{draw.below(28) + 1:02d}/{draw.below(12) + 1:02d}/{1990 + draw.below(40)}",
        f"{draw.pick('ABCDEFGHJKLMNPQRSTUVWXYZ')}{draw.pick('ACEHKMPRT')}-{number:05d}",
        f"+{draw.below(89) + 10} {draw.below(900) + 100} {number:05d}",
        f"{number / 1000:.1f}%",
        f"{number // 10} {draw.word('unit')}",
        f"{draw.pick(_SYLLABLES)}{draw.pick(_SYLLABLES)}@{draw.pick(_SYLLABLES)}.com",
    )[draw.below(7)]


# === Chinese ===


def _chinese(rng: np.random.Generator, length: int) -> str:
    draw = _Draws(rng, _WORDS["zh"])
    parts: list[str] = []
    size = 0
    while size < length:
        parts.append(_chinese_clause(draw))
        size += len(parts[-1])
    return "".join(parts)


def _chinese_clause(draw: "_Draws") -> str:
    kind = draw.below(6)
    if kind == 0:
        date = f"{1980 + draw.below(60)}年{draw.below(12) + 1}月{draw.below(28) + 1}日"
        return (
            draw.word("label")
            + "："
            + draw.pick([f"￥{draw.below(99999) / 100:.2f}", date, _figure_zh(draw)])
            + " "
        )
    if kind in (1, 2, 3):
        characters = "".join(draw.pick(LEVEL_1) for _ in range(5 + draw.below(12)))
        return characters + draw.pick("，。，、")
    clause = draw.word("who") + draw.word("when") * (kind == 4) + draw.word("verb") + "了" * draw.below(2)
    return clause + draw.word("adj") + draw.word("noun") + draw.pick("，。，；！？")


def _figure_zh(draw: "_Draws") -> str:
    return f"{draw.below(90) + 10}-{draw.below(9000) + 1000}{draw.below(9000) + 1000}"


class _Draws:
    """Random words and numbers, drawn in bulk: one call of the generator for thousands of choices."""

    def __init__(self, rng: np.random.Generator, words: dict[str, list[str]]) -> None:
        self._rng, self._words = rng, words
        self._values: list[float] = []

    def below(self, limit: int) -> int:
        if not self._values:
            self._values = self._rng.random(512).tolist()
        return int(self._values.pop() * limit)

    def pick(self, choices: Sequence[str]) -> str:
        return choices[self.below(len(choices))]

    def word(self, part: str) -> str:
        return self.pick(self._words[part])
