"""MkDocs hooks: pages that are computed in the build, and pages whose text stands at the repository's root."""

from __future__ import annotations

import json
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import adaptome as ad
from adaptome.recipe import recipe_json_schema

import generate
from evidence import evidence_page

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
    pages["reference/architectures.md"] = generate.architectures_page()
    pages["reference/benchmarks.md"] = evidence_page()
    pages["reference/cli.md"] = generate.commands_page()
    for name, cls in ad.list_methods().items():
        pages[f"methods/{name}.md"] = generate.method_page(cls)
    pages["systems/index.md"] = generate.systems_index()
    for name, system in generate.systems().items():
        pages[f"systems/{name}.md"] = generate.system_page(system)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    schema = json.dumps(recipe_json_schema(), indent=2)
    files.append(File.generated(config, "reference/recipe.schema.json", content=schema))
    section: list[Any] = next(entry["Methods"] for entry in config.nav or [] if "Methods" in entry)
    section += [{cls.__name__: f"methods/{name}.md"} for name, cls in ad.list_methods().items()]
    listed: list[Any] = next(entry["Systems"] for entry in config.nav or [] if "Systems" in entry)
    listed += [{system.title: f"systems/{name}.md"} for name, system in generate.systems().items()]
    return files


def from_root(name: str) -> str:
    """The text of a file at the repository's root, with its links as a page of the site needs them."""
    pages = ROOT_PAGES | {generate.source(cls): f"methods/{key}.md" for key, cls in ad.list_methods().items()}

    def relink(link: re.Match[str]) -> str:
        label, target, anchor = link[1], link[2], link[3] or ""
        page = pages.get(target, target.removeprefix("docs/"))
        # a file that is no page of the site, such as the licence, is named without a link
        return f"[{label}]({page}{anchor})" if page.endswith(".md") else label

    text = (generate.ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\[([^]]+)\]\(([^)#:\s]+)(#[^)]*)?\)", relink, text)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill what a page leaves to be computed."""
    for name, make in generate.PARTS.items():
        if f"<!-- generated: {name} -->" in markdown:
            markdown = generate.fill(markdown, name, make())
    return markdown
