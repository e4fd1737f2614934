"""What the manual takes from the code and from the other pages of the repository; a hook of mkdocs.

Pages made here: the settings from the schema, the options from the parser, a page per module from its docstrings, the
notebooks of runs/demo as they ran, and README, CONTRIBUTING, CHANGELOG and data/ with their links turned to the manual's.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[1]
RUN = ROOT / "runs" / "demo"
PAGES = {  # pages that lie elsewhere in the repository
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "data/README.md": "data-sets.md",
    "data/formats.md": "formats.md",
    "notebooks/recipes/README.md": "writing-recipes.md",
    "workflows/README.md": "workflows.md",
}
TURNED = PAGES | {"notebooks/README.md": "notebooks.md", "cellkit/__init__.py": "api/index.md"}
HERE_ONLY = re.compile(
    r"<!-- repository:begin -->.*?<!-- repository:end -->\n", re.DOTALL
)  # said of what the manual has
FILES = ("LICENSE", "CITATION.cff", "presentation/demo.png")  # copied beside the pages, as they are
FETCHED = re.compile(r"""<(?:script|link|img)\b[^>]*\b(?:src|href)="https?:[^>]*>""")
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?\)")


# ---- hooks ---------------------------------------------------------------------------------------------------------
def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to those of docs/."""
    from mkdocs.structure.files import File

    pages = {name: turned(ROOT / path) for path, name in PAGES.items()} | dict(reference()) | dict(notebooks())
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    for name in FILES:
        files.append(File.generated(config, f"files/{PurePosixPath(name).name}", abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the places that a page leaves open for what is generated; links of docs/ lead to pages of the manual."""
    if page.file.generated_by is None:
        markdown = turned(Path(page.file.abs_src_path), HERE_ONLY.sub("", markdown))
    for mark, make in {"settings": settings, "help": options, "readme:scores": scores}.items():
        if f"<!-- {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- {mark} -->", make())
    return markdown


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would fetch something from the network when it is opened."""
    from mkdocs.exceptions import PluginError

    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} would fetch {found[0]}")
    return output


# ---- what fills them -----------------------------------------------------------------------------------------------
def turned(path: Path, text: str | None = None) -> str:
    """Return a page of the repository with its links leading to pages and files of the manual."""

    def place(match: re.Match) -> str:
        target = os.path.relpath((path.parent / match[2]).resolve(), ROOT).replace(os.sep, "/")
        if target.startswith("docs/"):
            new = target.removeprefix("docs/")
        else:
            new = TURNED.get(target) or (f"files/{PurePosixPath(target).name}" if target in FILES else match[2])
        return f"{match[1]}{new}{match[3] or ''})"

    return LINK.sub(place, path.read_text(encoding="utf-8") if text is None else text)


def scores() -> str:
    """Return the score table of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split("<!-- scores:begin -->")[1].split("<!-- scores:end -->")[0].strip()


def settings() -> str:
    """Return a table of keys for the top of a configuration, and one for every section."""
    from cellkit.config.reading import known_keys
    from cellkit.settings import accepted, as_yaml, unit_of

    tables: dict[str, list[str]] = {"": []}
    about = {"": "Above all sections."}
    for key, field in known_keys().items():
        table, _, name = key.rpartition(".")
        if "properties" in field:
            tables[key], about[key] = [], f"{field['description']}."
            continue
        meaning = re.sub(r"([\[\]<>])", r"\\\1", field["description"])  # an expression in a meaning is no link
        cells = (
            f"`{key}`",
            accepted(field),
            unit_of(name),
            f"`{as_yaml(field['default'])}`",
            meaning,
        )
        tables[table].append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    head = "| key | type and bounds | unit | default | meaning |\n|---|---|---|---|---|\n"
    return "\n\n".join(
        f"{'##' if '.' not in key else '###'} {f'`{key}`' if key else 'Top of the file'}\n\n{about[key]}\n\n{head}"
        + "\n".join(rows)
        for key, rows in tables.items()
    )


def options() -> str:
    """Return what ``--help`` prints of every command."""
    commands = re.findall(r"^ {4}([a-z][a-z-]*)", help_of(), re.MULTILINE)
    return "\n\n".join(f"### cellkit {name}\n\n```text\n{help_of(name)}```" for name in commands)


def help_of(*command: str) -> str:
    """Return the help of the program, or of one of its commands."""
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [sys.executable, "-m", "cellkit", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return shown.stdout


def modules() -> list[tuple[str, str]]:
    """Return name and first line of the docstring of every public module, folder by folder."""
    found = []
    for path in sorted(
        (ROOT / "cellkit").rglob("*.py"), key=lambda path: (path.parent, path.stem != "__init__", path.stem)
    ):
        if path.stem.startswith("_") and path.stem != "__init__":
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found.append((".".join(parts).removesuffix(".__init__"), doc.split("\n\n")[0].replace("\n", " ")))
    return found


def reference() -> Iterator[tuple[str, str]]:
    """Yield a page per module and their list."""
    rows = [
        "# Reference",
        "",
        "Every public function and class, from its docstring. The notebooks import from `cellkit` itself.",
        "",
    ]
    rows += ["| module | what |", "|---|---|"]
    for name, about in modules():
        rows.append(f"| [`{name}`]({name}.md) | {about.replace('|', chr(92) + '|')} |")
        yield f"api/{name}.md", f"# {name}\n\n::: {name}\n"
    yield "api/index.md", "\n".join(rows) + "\n"


def notebooks() -> Iterator[tuple[str, str | bytes]]:
    """Yield the notebooks of the demonstration as they ran, with their pictures, and the page that lists them."""
    rows = ["## As they ran", ""]
    executed = sorted((RUN / "notebooks").glob("*.ipynb"))
    if not executed:
        rows.append("They are shown here once there is a run: `make demo`, then `make docs` again.")
    for path in executed:
        from nbconvert import MarkdownExporter

        text, resources = MarkdownExporter().from_filename(str(path), resources={"unique_key": path.stem})
        text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
        title = re.search(r"^# (.+)$", text, re.MULTILINE)[1]
        rows.append(f"- [{path.stem}](notebooks/{path.stem}.md): {title}")
        yield f"notebooks/{path.stem}.md", text
        for name, data in resources["outputs"].items():
            yield f"notebooks/{name}", data
    yield "notebooks.md", turned(ROOT / "notebooks" / "README.md") + "\n" + "\n".join(rows) + "\n"
