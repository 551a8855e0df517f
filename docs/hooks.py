"""MkDocs hooks: pages that are computed in the build, and pages whose text stands at the repository's root."""

from __future__ import annotations

import re
from typing import Any

import generate
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import adaptome as ad

#: file at the root -> page
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the computed pages, and the methods to the navigation."""
    pages = {page: from_root(name) for name, page in ROOT_PAGES.items()}
    pages["methods/index.md"] = generate.methods_index()
    pages["reference/cli.md"] = generate.commands_page()
    for name, cls in ad.list_methods().items():
        pages[f"methods/{name}.md"] = generate.method_page(cls)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    section: list[Any] = next(entry["Methods"] for entry in config.nav or [] if "Methods" in entry)
    section += [{cls.__name__: f"methods/{name}.md"} for name, cls in ad.list_methods().items()]
    return files


def from_root(name: str) -> str:
    """The text of a file at the repository's root, with its links as a page of the site needs them."""
    return re.sub(r"\]\(([^)#:\s]+)(#[^)]*)?\)", _relink, (generate.ROOT / name).read_text(encoding="utf-8"))


def _relink(link: re.Match[str]) -> str:
    target, anchor = link[1], link[2] or ""
    if target in ROOT_PAGES:
        return f"]({ROOT_PAGES[target]}{anchor})"
    if target.startswith("docs/"):
        return f"]({target.removeprefix('docs/')}{anchor})"
    method = re.fullmatch(r"src/adaptome/methods/(?:\w+/)*(\w+)\.py", target)
    by_module = {generate.source(cls): key for key, cls in ad.list_methods().items()}
    if method and target in by_module:
        return f"](methods/{by_module[target]}.md{anchor})"
    return f"](https://github.com/adaptome/adaptome/blob/main/{target}{anchor})"
