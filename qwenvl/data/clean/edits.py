"""Texts made clean rather than dropped: HTML and irregular patterns (Appendix A.1, rules 7 and 8).

Every pattern has a cheap guard before it, because most captions need none of them: a caption without a defect costs
a few microseconds.
"""

import html
import re
from collections.abc import Callable
from operator import eq
from typing import NamedTuple

from qwenvl.tokenizer import nfc

LONGEST_RAW = 10_000
"""Characters beyond which a text is not edited at all: the length rule drops it, and no pattern has to read it."""

_INLINE = "a abbr b big cite code del em font i ins label mark nobr q s small span strike strong sub sup tt u"
_BLOCK = (
    "article aside blockquote body br button center dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 "
    "h6 head header hr html iframe img input li link main meta nav ol option p pre section select source table tbody "
    "td textarea tfoot th thead title tr ul video"
)
_HIDDEN = re.compile(r"<(!--|(?:script|style)\b)", re.IGNORECASE)
_ENDINGS = {
    "!--": re.compile("-->"),
    "script": re.compile(r"</script\s*>", re.IGNORECASE),
    "style": re.compile(r"</style\s*>", re.IGNORECASE),
}
_LONG_ENTITY = re.compile(r"&#[0-9]{9,};?")  # no character, and more digits than Python reads
_INLINE_TAG = re.compile(rf"</?(?:{'|'.join(_INLINE.split())})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"</?(?:{'|'.join(_BLOCK.split())})(?:\s[^<>]*)?/?>", re.IGNORECASE)


def without_html(text: str) -> str:
    """Entities decoded (twice where crawlers escaped twice), tags removed; `<3`, `a < b` and `<PERSON>` stay."""
    if "&" in text:
        for _ in range(2):
            decoded = html.unescape(_LONG_ENTITY.sub(" ", text))
            if decoded == text:
                break
            text = decoded
    if "<" not in text:
        return text
    bare = _BLOCK_TAG.sub(" ", _INLINE_TAG.sub("", _without_hidden(text)))
    return " ".join(bare.split()) if bare != text else text


def _without_hidden(text: str) -> str:
    """Without comments, scripts and styles; one that is not closed stays, and no other of its kind is looked for."""
    kept: list[str] = []
    at, open_ended = 0, set[str]()
    while found := _HIDDEN.search(text, at):
        kind = found[1].lower()
        end = None if kind in open_ended else _ENDINGS[kind].search(text, found.end())
        if end is None:
            open_ended.add(kind)
        kept += [text[at : found.start()], " " if end else found[0]]
        at = end.end() if end else found.end()
    return "".join([*kept, text[at:]])


def plain(text: str) -> str:
    """NFC, no control or invisible characters, single spaces: done to every text before any rule sees it."""
    text = nfc(text)
    if not text.isprintable():
        text = _INVISIBLE.sub("", _CONTROL.sub(" ", text))
    return " ".join(text.split())


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_INVISIBLE = re.compile("[\u00ad\u200b\u200c\u200e\u200f\u202a-\u202e\u2060\ufeff]+")


class Pattern(NamedTuple):
    """One kind of irregularity that is cut out of texts."""

    name: str
    guard: Callable[[str], object]
    """False for most texts that do not have it, and quick."""
    regex: re.Pattern[str]
    replacement: str


_TOP = "com|net|org|info|biz|edu|gov|io|cn|ru|de|fr|jp|co|uk|tv|me"
_FILE = "jpe?g|png|gif|bmp|tiff?|webp|svg|psd|pdf|docx?|mp4|html?|php|aspx?"
_EXTENSION = re.compile(rf"\.(?:{_FILE})\b", re.IGNORECASE)
_DOMAIN = re.compile(rf"\w\.(?:{_TOP})\b", re.IGNORECASE)
_NAMED_AFTER = (
    r"(?!(?-i:(?<!\S)(?<![-–—|:/@] )(?<!(?i:from) )(?<!(?i:by|on|at|in) )(?<!(?i:via) )"
    rf"[A-Z][\w-]*\.(?:{_TOP})(?= [^\W\d_]| ?$)(?! (?:[-–—|:]))))"
)
"""Not before a name that happens to be a domain ("OpenOffice.org logo"); in "cat | Example.com" it is none."""

_CAMERA = re.compile(
    r"(?:IMG|DSC|PICT|MVI|GOPR|image|img|pic|photo|untitled|screenshot|Screenshot|mmexport)[-_ ]?\(?\d{3,}"
)
_BOILERPLATE = re.compile(
    r"image results? for|(?:royalty[- ]free )?stock (?:photo|image|vector|illustration|footage)s?(?: and images)?|"
    r"royalty[- ]free|click (?:here )?(?:on (?:the )?(?:image|photo) )?(?:to|for) (?:enlarge|zoom|view|see|a larger)"
    r"(?: (?:the )?(?:image|photo|picture|version|view))?|photo (?:credit|courtesy)\b[^.|]*|\bgetty images\b|"
    r"\bshutterstock\b|\balamy\b|\bpinterest\b|\bwallpaper download\b|all rights reserved|free download|"
    r"©(?: ?\d{4})?|点击(?:查看|放大)(?:大图|原图)?|图片(?:来源|来自)[:：]?\S*|(?:高清)?图片素材|免费下载|版权所有",
    re.IGNORECASE,
)
_HINTS = (
    "image result", "stock ", "royalty", "click", "Click", "hoto c", "getty", "Getty", "hutterstock", "lamy",
    "interest", "wallpaper d", "all rights", "free down", "©", "点", "图", "免", "版", "STOCK", "ROYALTY", "Stock ",
    "Royalty", "Image Result", "Image result", "All Rights", "All rights", "Free Down", "Free down", "ALL RIGHTS",
)  # fmt: skip


def _hints_at_boilerplate(text: str) -> bool:
    return any(hint in text for hint in _HINTS)


PATTERNS: tuple[Pattern, ...] = (
    Pattern(
        "url", lambda t: "://" in t or "www." in t, re.compile(r"(?:https?|ftp)://\S+|www\.\S+", re.I), " "
    ),
    Pattern("mail", lambda t: "@" in t, re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+|(?<!\w)@\w+"), " "),
    Pattern(
        "file name",
        _EXTENSION.search,
        re.compile(rf"(?<![^\s/\\|,;()])[^\s/\\|,;()]+\.(?:{_FILE})\b", re.I),
        " ",
    ),
    Pattern(
        "domain",
        lambda t: "." in t and _DOMAIN.search(t),
        re.compile(rf"{_NAMED_AFTER}(?<![\w-])(?<![\w-]\.)(?:[\w-]+\.)+(?:{_TOP})\b(?:/\S*)?", re.I),
        " ",
    ),
    Pattern("camera name", _CAMERA.search, re.compile(rf"{_CAMERA.pattern}\w*\)?"), " "),
    Pattern("hashtag", lambda t: "#" in t, re.compile(r"#(?=[^\W\d])"), ""),
    Pattern("boilerplate", _hints_at_boilerplate, _BOILERPLATE, " "),
    Pattern(
        "repeated signs",
        re.compile(r"[!?,_=*~|+#-]{3,}|\.{4,}").search,
        re.compile(r"([!?,_=*~|+#-])\1{2,}|(\.\.\.)\.+"),  # three dots are a sign: "Some like it hot..."
        r"\1\2",
    ),
)
"""What is cut out, in this order."""

_EMPTY_BRACKETS = re.compile(
    r"(?i)\(\s*(?:(?:e-?mail|mail|url|web|www|source|via|from)\s*:?)?\s*\)|\[\s*\]|\{\s*\}|（\s*）|【\s*】|\"\s*\""
)
_ENDS = " \t|-–—_,;:/\\•·*~=>+&，、；："
_HAN_REPEATED = re.compile(r"([^\s\d]{2,8}?)\1{2,}")


def without_patterns(text: str) -> str:
    """URLs, addresses, file names, boilerplate, repeated signs and phrases cut out, and what they leave hanging."""
    before = text
    for pattern in PATTERNS:
        if pattern.guard(text):
            text = pattern.regex.sub(pattern.replacement, text)
    text = without_repeats(text)
    if text != before:
        text = " ".join(_EMPTY_BRACKETS.sub(" ", text).split()).strip(_ENDS)
    return text


def without_repeats(text: str) -> str:
    """A phrase of up to four words (eight Chinese characters) said three times or more in a row is said once."""
    words = text.split()
    if len(words) - len(set(words)) >= 2 and _says_a_phrase_thrice(words):
        text = " ".join(_collapsed(words))
    if not text.isascii() and len(text) - len(set(text)) >= 4:
        text = _HAN_REPEATED.sub(r"\1", text)
    return text


def _says_a_phrase_thrice(words: list[str], longest: int = 4) -> bool:
    """Whether twice as many words as a phrase has, in a row, are each the one that stands a phrase further on."""
    for size in range(1, longest + 1):
        further = words[size:]
        if any(map(eq, words, further)) and b"\1" * (2 * size) in bytes(map(eq, words, further)):
            return True
    return False


def _collapsed(words: list[str], longest: int = 4) -> list[str]:
    kept: list[str] = []
    position = 0
    while position < len(words):
        for size in range(1, longest + 1):
            phrase = words[position : position + size]
            end = position + size
            while words[end : end + size] == phrase:
                end += size
            if end - position >= 3 * size:
                kept += phrase
                position = end
                break
        else:
            kept.append(words[position])
            position += 1
    return kept
