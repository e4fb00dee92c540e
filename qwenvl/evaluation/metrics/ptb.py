"""Penn Treebank words of captions, as the COCO caption kit sees them (paper 4.1), without Java.

pycocoevalcap pipes captions through the tokeniser of CoreNLP 3.4.1, lower-cased, and drops punctuation. That behaviour
is reproduced by a table of patterns found by probing the tokeniser: at each place the longest match wins, the first
on a tie. A pattern may end with what must follow; that counts towards its length, but only its group is the word.
Looking ahead crosses the end of a caption: `... and a.` keeps its period or loses it depending on the *next* one.

Quotes, dashes, single full stops and the like are dropped in the end, so their exact spelling is not reproduced.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise

from qwenvl.evaluation.metrics.ptb_characters import DIGIT, LETTER, PLAIN, SPACE, SYMBOL

_DROPPED = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
REACH = 500
"""Characters of the longest word, with what is looked at behind it: the time stays in proportion to the text."""

PUNCTUATION = frozenset(_DROPPED.split())

_ANY = f"(?:{LETTER}|\\d)"
_SIMPLE = f"(?:{PLAIN}|\\d)"
_APOS = "(?:['\u2019\x92]|&apos;)"
_QUOTE = "(?:['\u2019\x92`\u2018\x91\u201b]|&apos;)"
_EXTENSION = (
    "(?i:bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar"
    "|txt|wav|x|xml|zip)"
)
_ENCLITIC = "(?i:[msd]|re|ve|ll)"
_HYPHEN = "[-_\u058a\u2010\u2011]"
_BLANK = f"[{SPACE}\n\r\x0b\x0c\x85\u2028\u2029]"
_WORD = f"{LETTER}{_ANY}*(?:[.!?]{LETTER}{_ANY}*)*"
_PART = f"(?:[dDoOlL]{_QUOTE}{_SIMPLE})?{_SIMPLE}+"
_THING = f"{_PART}(?:{_HYPHEN}{_PART})*"
_INITIALS = r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+"
_NAME = "[A-Za-z][A-Za-z0-9:.-]*"
_TAG = (
    rf"<(?:[!?][A-Za-z-][^>\r\n]*|/?{_NAME}"
    rf"(?: +(?:{_NAME} *= *(?:'[^'\r\n]*'|\"[^\"\r\n]*\")|{_NAME}))* */?)>"
)
_ACRONYM = r"(?:(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(?:U\.K|U\.S\.S\.R)|[A-Za-z](?:\.[A-Za-z])+)"
_COMPOUND = rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:{_ACRONYM}\.|[A-Za-z0-9\u00ad]+))+"
_URL_END = r'[^ \t\n\f\r"<>|.!?(){},-]'
_URL_PATH = rf'(?:/[^ \t\n\f\r"<>|()]+{_URL_END})?'
_STARTERS = """
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More
    Mr. Ms. Now Once One Other Our She Since So Some Such That The Their Then There These They This We What
    When While Yet You
"""
_STARTER = "|".join(re.escape(form) for word in _STARTERS.split() for form in (word, word.upper()))
_SENTENCE_NEXT = f"{_BLANK}+(?:{_STARTER}|{_TAG}){_BLANK}"

# Abbreviations that keep their period, in any case; a capital in a pattern must be a capital, and after = only the
# first letter may be one. Those of the first list may end a sentence and then cut off what follows without a space, if
# that is a single character: etc.A -> etc. a
_MAY_END = """
    jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu thurs? fri ala ariz Az Ark calif colo conn dak
    Del fla ga Ill ind kans? ky La Mass md mich minn Miss mo mont neb nev okla Ore Pa penn tenn Tex va vt
    Wash wisc? wyo inc cos? corp ltd plc bancorp bhd assn univ intl sys =ptys? =pte tel est ext sq jr sr bros
    esq blvd rd rt etc al seq bldg ct ed\\.d ph\\.d
"""
_NEVER_END = """
    dept invt elec natl =mfg =mtg ph ft ste? ave mrs? ms drs? profs? sens? reps? attys? lt col gen messrs
    govs? adm rev maj sgt cpl pvt capt pres lieut hon brig co?mdr pfc spc supts? det mt adj adv asst assoc
    ens insp mlle mme msgr sfc vs cf
    alex wm jos treas
"""


def _any_of(words: str) -> str:
    return "|".join(map(_cased, words.split()))


def _cased(word: str) -> str:
    if word.startswith("="):
        return f"[{word[1].upper()}{word[1]}]{word[2:]}"
    return f"{word[0]}(?i:{word[1:]})" if word[0].isupper() else f"(?i:{word})"


_BEFORE_NUMBER = ["nos?", "prop", "ca", "figs?", "art", "pp", "op"]
_SPLIT = ["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"]
"""Written as one, read as two words: after the third letter."""


def _brackets(token: str) -> str:
    return token.replace("(", "-lrb-").replace(")", "-rrb-")


def _fixed(text: str) -> Callable[[str], str]:
    return lambda token: text


_DROP = _fixed("")
_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_BRACKET_NAMES = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_AS_IS = str


def _word(token: str) -> str:
    return token.replace("&amp;", "&").replace("\u00ad", "")


def _apostrophe(token: str) -> str:
    return re.sub(_QUOTE, lambda mark: mark[0] if mark[0] == "`" else "'", token)


_QUOTES = {
    **dict.fromkeys("`\u2018\u201b\u2039\x91", "`"),
    **dict.fromkeys("\u2019\u203a\x92", "'"),
    **dict.fromkeys("\u201c\u00ab\x93", "``"),
    **dict.fromkeys("\u201d\u00bb\x94", "''"),
}


def _quotes(pair: str) -> str:
    return "".join(_QUOTES.get(quote, quote) for quote in pair)


# (pattern, what the matched text becomes; several words are separated by a space, none is the empty text)
_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    (_TAG, lambda tag: tag.replace(" ", "\u00a0")),
    (r"-{5,}", _AS_IS),
    (r"-{1,4}|&(?:MD|mdash|ndash);|[\x96\x97\u2013-\u2015]", _DROP),
    (r"(?i:-[lr][rsc]b-)", _AS_IS),
    # words
    (f"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*)[nN]{_QUOTE}[tT]", _word),
    (f"[nN]{_QUOTE}[tT]", _apostrophe),
    (f"(?i:{'|'.join(_SPLIT)})", lambda word: f"{word[:3]} {word[3:]}"),
    ("('(?i:t))(?i:is|was)", _AS_IS),
    (f"({_WORD}){_APOS}{_ENCLITIC}", _word),
    (_WORD, _word),
    (rf"({_APOS}{_ENCLITIC})[^A-Za-z]", _apostrophe),
    (rf"{_APOS}[nN]{_APOS}?|{_APOS}(?:(?i:em|till?|cause)|[2-9]0[sS])|[lLdDjJ]{_APOS}", _AS_IS),
    (rf"({_APOS}\d\d){_BLANK}", _AS_IS),
    (
        rf"(?i:ol{_APOS}|dunkin{_APOS}|somethin{_APOS}|o{_APOS}er|cap{_APOS}n|o{_QUOTE}o"
        "|c'mon|nor'easter|e'er|s'mores|ev'ry|li'l|nat'l)",
        _AS_IS,
    ),
    (rf"(?:{PLAIN})+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z](?:{PLAIN})*", _AS_IS),
    (f"(')[A-Za-z][^{SPACE}\n\r]", _DROP),
    (rf"{_APOS}{_ENCLITIC}", _apostrophe),
    (f"([yY]{_APOS})(?:{PLAIN})", _word),
    (_THING, _word),
    (_INITIALS, _word),
    (f"[A-HJ-XZn]{_QUOTE}(?:{PLAIN}){{2,}}", _AS_IS),
    (r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", _word),
    (r"[cC]\+\+|[cCfF]#", _word),
    # periods
    (rf"{_ACRONYM}\.", _AS_IS),
    (rf"([A-Za-z])\.{_SENTENCE_NEXT}", _AS_IS),
    (r"[A-Za-z]\.", _AS_IS),
    (rf"(?:{_any_of(_MAY_END + _NEVER_END)})\.", _AS_IS),
    (rf"((?i:{'|'.join(_BEFORE_NUMBER)})\.){_BLANK}?\d", _AS_IS),
    (rf"((?:{_WORD}|{_THING}|{_INITIALS}|{_COMPOUND})\.)[,;:\u3001]", _word),
    (r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|\u2026|\u0085|\.", _DROP),
    # addresses
    (rf'(?i:https?://)[^ \t\n\f\r"<>|(){{}}]+{_URL_END}', _AS_IS),
    (rf'(?i:www)\.(?:[^ \t\n\f\r"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{_URL_PATH}', _AS_IS),
    (rf"(?:[^ \t\n\f\r\"`'<>|.!?(){{}},-_$]+\.)+(?i:com|net|org|edu){_URL_PATH}", _AS_IS),
    (
        r'(?:&lt;|<)?[a-zA-Z0-9][^ \t\n\f\r"<>|(){}\u00a0]*@(?:[^ \t\n\f\r"<>|(){}.\u00a0]+\.)*'
        r'[^ \t\n\f\r"<>|(){}.\u00a0]+(?:&gt;|>)?',
        _AS_IS,
    ),
    ("@[a-zA-Z_][a-zA-Z_0-9]*", _AS_IS),
    (f"#{LETTER}+", _AS_IS),
    (rf"((?:{_any_of(_MAY_END)})\.)[\s\S]{{2}}", _AS_IS),
    (rf"({_ANY}+(?:\.{_ANY}+)*\.{_EXTENSION})[\s.,?!]", _AS_IS),
    (_COMPOUND, _word),
    # numbers
    (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", _AS_IS),
    ("[-+]?(?:\\d*(?:[.:,\u00ad\u066b\u066c]\\d+)+|\\d+)", _word),
    ("(?:\\d{1,4}[- \u00a0])?\\d{1,4}(?:\\\\?/|\u2044)\\d{1,4}", lambda part: part.replace(" ", "\u00a0")),
    (
        "(?:\\(\\d{2,3}\\)[ \u00a0]?|(?:\\+\\+?)?(?:\\d{2,4}[- \u00a0])?\\d{2,4}[- \u00a0])\\d{3,4}[- \u00a0]?\\d{3,5}"
        "|(?:(?:\\+\\+?)?\\d{2,4}\\.)?\\d{2,4}\\.\\d{3,4}\\.\\d{3,5}",
        lambda phone: _brackets(phone).replace(" ", "\u00a0"),
    ),
    ("[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)", _AS_IS),
    (f"[{''.join(_FRACTIONS)}]", lambda half: _FRACTIONS[half]),
    (r"[A-Z]*\$", _AS_IS),
    ("\u00a2", _fixed("cents")),
    ("\u00a3", _fixed("#")),
    ("[\x80\u00a4\u20a0\u20ac]", _fixed("$")),
    # faces
    (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _brackets),
    (r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)", _brackets),
    # signs
    ("&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#\\d+);", _AS_IS),
    ("&amp;", _fixed("&")),
    ("&lt;", _fixed("<")),
    ("&gt;", _fixed(">")),
    ("&quot;|&nbsp;", _DROP),
    (r"[][(){}]", lambda bracket: _BRACKET_NAMES[bracket]),
    (r"[?!]{2,}|<<|>>|_+|\*+|(?:\\\*){1,3}|@+|#+", _AS_IS),
    (f"[{''.join(_QUOTES)}\u201a\u201e\u201f]{{1,2}}", _quotes),
    ("[,;:?!\"]|''?|&apos;", _DROP),
    (SYMBOL, _AS_IS),
)


@cache
def _compiled() -> tuple[list[tuple[re.Pattern[str], Callable[[str], str]]], re.Pattern[str]]:
    """The rules, and a fast path: a plain word before a space, with or without a mark that would be dropped."""
    special = "|".join([*_SPLIT, *_BEFORE_NUMBER, *(_MAY_END + _NEVER_END).lower().replace("=", "").split()])
    plain = rf"(?!(?i:{special})\b)([A-Za-z]{{2,}})[.,?!]?(?: (?=[A-Za-z])|$)|([aA]) (?=[A-Za-z])"
    rules = [(re.compile(pattern.replace(r"\d", DIGIT)), becomes) for pattern, becomes in _RULES]
    return rules, re.compile(plain)


def _words(text: str, end: int) -> Iterable[str]:
    """The words of text[:end]; what lies beyond is only looked at."""
    rules, plain = _compiled()
    at = 0
    while at < end:
        if quick := plain.match(text, at, end):
            yield quick[quick.lastindex or 1]
            at = quick.end()
            continue
        longest, best, becomes = at, None, _DROP
        for pattern, rule in rules:
            found = pattern.match(text, at, at + REACH)
            if found and found.end() > longest:
                longest, best, becomes = found.end(), found, rule
        if best is None:
            at += 1
            continue
        token = best[best.lastindex or 0]
        at += len(token)
        yield from becomes(token).split(" ")


def _line(text: str, following: str | None) -> str:
    ahead = text if following is None else f"{text}\n{following}\n"
    words = (word.lower() for word in _words(ahead, len(text)))
    return " ".join(word for word in words if word and word not in PUNCTUATION)


def tokenise(captions: Sequence[str]) -> list[str]:
    """Each caption as lower-case words separated by single spaces, without punctuation.

    Order matters, if rarely: the end of a caption is read with the next one in sight.
    """
    lines = [caption.replace("\n", " ") for caption in captions]
    return [_line(line, following) for line, following in pairwise([*lines, None]) if line is not None]


def tokenise_groups(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """`tokenise` over all captions of all groups in a row (the references of one image after another's)."""
    words = iter(tokenise([caption for group in groups for caption in group]))
    return [[next(words) for _ in group] for group in groups]
