"""What MkDocs cannot do by itself: pages made of files outside docs/, and links that hold in both places.

The Markdown of this repository is read on its own, in the repository, and as a site. So its links are
those of the repository, and `on_page_markdown` turns them into those of the site. The API reference has a
page for each line of the map in CONTRIBUTING.md, made of the docstrings.
"""

from __future__ import annotations

import ast
import json
import os.path
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
PACKAGES = ("cdrl_infer", "cdrl_train")
LISTED_EARLY = {
    "likelihood.md",
    "methods.md",
    "stationarity.md",
}  # until they are written

# Files of the repository that are pages of the site.
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
    **{
        f"{card.parent.relative_to(ROOT)}/README.md": f"models/{card.parent.name}.md"
        for card in sorted((ROOT / "cdrl_infer" / "models").glob("*/README.md"))
    },
}
NOTEBOOKS = {
    f"examples/{file.name}": f"notebooks/{file.stem}.md"
    for file in sorted((ROOT / "examples").glob("*.ipynb"))
}
SCRIPTS = {
    f"examples/{file.name}": f"examples/{file.name}"
    for file in sorted((ROOT / "examples").glob("*.py"))
}
PLACES = {**OUTSIDE, **NOTEBOOKS, **SCRIPTS}


def api_pages() -> dict[str, list[str]]:
    """The modules of each page of the API reference; private ones and the command lines are left out."""
    pages: dict[str, list[str]] = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            if len(parts) == 1 or any(part.startswith(("_", "cli")) for part in parts[1:]):
                continue
            pages.setdefault(f"api/{parts[0]}/{parts[1]}.md", []).append(".".join(parts))
    return pages


def summary(module: str) -> str:
    """The first line of a module's docstring."""
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def api_index() -> str:
    """A table of the pages of the API reference."""
    lines = [
        "# API reference",
        "",
        "Made of the docstrings. A page has a module, or a folder with all its modules.",
    ]
    for package in PACKAGES:
        lines += ["", f"## {package}", "", "| | |", "|---|---|"]
        for page, modules in api_pages().items():
            if page.startswith(f"api/{package}/"):
                name = modules[0]
                lines.append(f"| [`{name}`]({page.removeprefix('api/')}) | {summary(name)} |")
    return "\n".join(lines) + "\n"


def notebook_page(file: Path) -> str:
    """A notebook as Markdown, with its texts and pictures."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                png = "".join(data["image/png"]).replace("\n", "")
                parts.append(f"![The picture of this cell](data:image/png;base64,{png})")
            elif text := "".join(output.get("text", data.get("text/plain", ()))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the navigation."""
    sections: dict[str, Any] = {
        name: pages for entry in config.nav for name, pages in entry.items()
    }
    sections["Examples"] += NOTEBOOKS.values()
    sections["Use"] += [page for page in OUTSIDE.values() if page.startswith("models/")]
    (api,) = (entry["API"] for entry in sections["Reference"] if "API" in entry)
    api.append("api/index.md")
    for package in PACKAGES:
        pages = [page for page in api_pages() if page.startswith(f"api/{package}/")]
        api.append({package: [{Path(page).stem: page} for page in pages]})
    for pages in sections.values():
        pages[:] = [
            page
            for page in pages
            if isinstance(page, dict)
            or page not in LISTED_EARLY
            or (Path(config.docs_dir) / page).is_file()
        ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    made = {"api/index.md": api_index()}
    for page, modules in api_pages().items():
        named = "\n\n".join(f"::: {module}" for module in modules)
        made[page] = f"# {modules[0]}\n\n{named}\n"
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        made[page] = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    for source, page in NOTEBOOKS.items():
        made[page] = notebook_page(ROOT / source)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    for source, place in SCRIPTS.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for card in (name for name in OUTSIDE if name.startswith("cdrl_infer/models/")):
        picture = (ROOT / card).with_name("samples.png")
        place = f"models/{picture.parent.name}/samples.png"
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    here = page.file.src_uri
    origin = {place: source for source, place in PLACES.items()}.get(here, f"docs/{here}")

    def to_page(found: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(os.path.dirname(origin), found[2]))
        place = PLACES.get(target, target.removeprefix("docs/"))
        if origin.startswith("cdrl_infer/models/") and found[2] == "samples.png":
            place = f"{here.removesuffix('.md')}/samples.png"
        elif target not in PLACES and not target.startswith("docs/"):
            return found[0]  # MkDocs says that there is no such page
        return f"{found[1]}{os.path.relpath(place, os.path.dirname(here) or '.')}{found[3]}"

    if here.startswith("api/"):
        return markdown
    fences = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    fences[::2] = [LINK.sub(to_page, text) for text in fences[::2]]
    return "".join(fences)


def on_post_build(config: MkDocsConfig) -> None:
    """The theme's scripts may ask another host for parts that old browsers lack: they do without."""
    scripts = Path(config.site_dir) / "assets" / "javascripts"
    for file in scripts.rglob("*.js"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("https://unpkg.com/", "not-loaded/"), encoding="utf-8")
    for file in scripts.rglob("*.map"):
        file.unlink()
