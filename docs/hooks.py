"""The API reference of `make docs`: a page for every package and module, from the docstrings; none may be missing."""

from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = "qwenvl"


def on_config(config: MkDocsConfig) -> None:
    """Require a docstring of every public name, and put a page for each package into the navigation."""
    package = griffe.load(PACKAGE, search_paths=[str(ROOT)])
    if bare := undocumented(package):
        raise PluginError(f"{len(bare)} public names have no docstring: {', '.join(bare[:10])}.")
    pages = [{name: f"api/{name}.md"} for name in pages_of(package)]
    assert config.nav is not None, "mkdocs.yml has one"
    config.nav.append({"API reference": pages})


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages themselves, which are nowhere on the disk."""
    for name, modules in pages_of(griffe.load(PACKAGE, search_paths=[str(ROOT)])).items():
        text = f"# {name}\n\n" + "\n".join(f"::: {module}\n" for module in modules)
        files.append(File.generated(config, f"api/{name}.md", content=text))
    return files


def pages_of(package: Any) -> dict[str, list[str]]:
    """Page -> the modules on it: one page for the front modules, one for each package below."""
    pages: dict[str, list[str]] = {PACKAGE: [PACKAGE]}
    for name, member in sorted(package.members.items()):
        if not member.is_alias and member.is_module and not name.startswith("_"):
            if member.is_package:
                pages[f"{PACKAGE}.{name}"] = [module.path for module in modules_of(member)]
            else:
                pages[PACKAGE].append(member.path)
    return pages


def modules_of(package: Any) -> list[Any]:
    """The package and every module below it."""
    found = [package]
    for name, member in sorted(package.members.items()):
        if not member.is_alias and member.is_module and not name.startswith("_"):
            found += modules_of(member)
    return found


def undocumented(thing: Any) -> list[str]:
    """Public modules, classes, functions and methods below without a docstring; `forward` is its class's."""
    found = []
    for name, member in thing.members.items():
        if member.is_alias or name.startswith("_"):
            continue
        if member.is_module or member.is_class or member.is_function:
            is_forward = name == "forward" and thing.is_class
            found += [] if member.has_docstring or is_forward else [member.path]
        if member.is_module or member.is_class:
            found += undocumented(member)
    return found
