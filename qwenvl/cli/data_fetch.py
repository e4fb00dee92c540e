"""`qwenvl data fetch`: real images with the names that people gave them, out of packages."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from qwenvl.data.drawings.index import Made
    from qwenvl.data.drawings.packages import Got


def data_fetch(
    what: Literal["drawings"],
    /,
    *,
    out: Path = Path("drawings"),
    only: Literal["npm", "debian"] | None = None,
    archives: Path | None = None,
    side: int = 224,
    processes: int = 2,
    json: bool = False,
) -> int:
    """Get drawings with their names (emoji, icons, clip art) as shards that `data clean` reads.

    Packages come through npm and apt-get, are checked by digest and are got only once; a set that is there is not made
    again. What a machine cannot get is named, and the rest is made. Exit status 3: some of it is missing.

      qwenvl data fetch drawings --only npm --out data/drawings

    Args:
        what: The only collection there is: drawings.
        out: Folder for packages, shards, index and attribution.
        only: Packages of one registry; both if left out.
        archives: Folder of packages got before, for a machine without a network: no client is called.
        side: Pixels of the longer side of every image.
        processes: Processes that render.
        json: Print the counts as JSON.
    """
    import sys
    from functools import partial

    from qwenvl.data.drawings import debian, fonts, iconify, index, maps, packages
    from qwenvl.files import owned

    if not 8 <= side <= 4096 or processes < 1:
        raise ValueError(
            f"--side {side} --processes {processes}; expected 8 to 4096 pixels, and processes from 1."
        )
    tell = partial(print, file=sys.stderr if json else sys.stdout, flush=True)
    wanted = [package for package in packages.known() if only in (None, package.registry)]
    collections = (*iconify.collections(), *debian.collections(), *maps.collections())
    with owned(out):
        tell(f"packages  {len(wanted)}, {sum(package.bytes for package in wanted) / 1e6:.0f} MB")
        got = packages.get(wanted, out / "packages", archives=archives, report=partial(_tell_package, tell))
        there = {each.package.name: each.path for each in got if each.path is not None}
        if not there:
            raise ValueError(f"no package could be had: {got[0].problem}; see `qwenvl data fetch --help`.")
        table = {package.name: package for package in packages.known()}
        if letters := fonts.keep(there, out):
            tell(f"fonts     {letters} that draw Chinese, for signs in scenes")
        asked = {package.name for package in wanted}
        made = index.make(
            collections, table, there, out,
            asked=asked, side=side, processes=processes, report=partial(_tell_set, tell),
        )  # fmt: skip
    return _summary(made, [each for each in got if each.path is None], out, json)


def _tell_package(tell: Callable[[str], None], got: "Got") -> None:
    if got.problem:
        tell(f"  {got.package.name} {got.package.version}: missing, {got.problem}")
    elif got.news:
        tell(f"  {got.package.name} {got.package.version}  {got.package.bytes / 1e6:.1f} MB")


def _tell_set(tell: Callable[[str], None], made: "Made") -> None:
    if made.missing:
        tell(f"  {made.source}: left out, without {', '.join(made.missing)}")
    elif made.news:
        refused = "; ".join(f"{count} {reason}" for reason, count in made.refused.most_common(4))
        line = f"  {made.source:28}{made.drawings:6} drawings, {made.chinese:5} with a Chinese name"
        tell(f"{line}  ({refused})" if refused else line)


def _summary(made: Sequence["Made"], missing: Sequence["Got"], out: Path, as_json: bool) -> int:
    from qwenvl.terminal import printable, printable_json

    drawings, chinese = sum(each.drawings for each in made), sum(each.chinese for each in made)
    news, lost = sum(each.news for each in made), [each.source for each in made if each.missing]
    if as_json:
        sets = {each.source: {"drawings": each.drawings, "refused": each.refused} for each in made}
        gone = {each.package.name: each.problem for each in missing}
        counts = {"drawings": drawings, "chinese": chinese, "news": news}
        print(printable_json({**counts, "sets": sets, "missing": gone, "left_out": lost}))
    else:
        said = f"{news} sets made now" if news else "nothing to do, all of it is there"
        print(f"drawings  {drawings} in {len(made) - len(lost)} sets, {chinese} with a Chinese name: {said}")
        print(printable(f"written   {out}/*.tar, {out}/index.jsonl, {out}/ATTRIBUTION.md"))
        if missing:
            lost_now = f"{len(missing)} packages, so {len(lost)} sets"
            print(f"missing   {lost_now}; the same command adds them once they are to be had")
    return 3 if missing else 0
