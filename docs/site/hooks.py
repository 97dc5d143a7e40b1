"""What the site has beside the pages of docs/: files of the repository, all commands, the tutorial.

README.md is the first page. Links that are right in the repository are made right in the site; what
they name and the site lacks becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parents[1]
TOP = DOCS.parent
# Pages made from files outside docs/.
OUTSIDE = {
    "index.md": "README.md",
    "measured.md": "benchmarks/RESULTS.md",
    "store-layout.md": "store/LAYOUT.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
TUTORIAL = DOCS / "tutorial.ipynb"
# The tutorial works without the internet, or the site is not built.
NO_NETWORK = """
import socket


def refuse(self, address):
    raise OSError(f"no network here, but {address} was asked for")


socket.socket.connect = socket.socket.connect_ex = refuse
"""
_LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for name, source in OUTSIDE.items():
        text = (TOP / source).read_text("utf-8")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "commands.md", content="\n".join(_commands())))
    for name, content in _tutorial().items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links name pages of the site."""
    del config, files
    if page.file.src_uri == "tutorial.md":
        return f"{markdown}\n\n[This page as a notebook](tutorial.ipynb)"
    source = OUTSIDE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return _LINK.sub(lambda match: _link(match, posixpath.dirname(source)), markdown)


def _link(match: re.Match[str], folder: str) -> str:
    text, target, anchor = match[1], match[2], match[3] or ""
    path = posixpath.normpath(posixpath.join(folder, target))
    pages = {source: name for name, source in OUTSIDE.items()}
    pages["docs/tutorial.ipynb"] = "tutorial.md"
    if path in pages:
        return f"[{text}]({pages[path]}{anchor})"
    if path.startswith("docs/"):
        return f"[{text}]({path.removeprefix('docs/')}{anchor})"
    if (TOP / path).exists():
        return text if text.startswith("`") else f"{text} (`{path}`)"
    return match[0]  # mkdocs refuses it


# --- the commands


def _commands() -> Iterator[str]:
    """Write a page with every command and option, as --help has them."""
    if str(TOP) not in sys.path:
        sys.path.insert(0, str(TOP))
    import typer

    from toptune.cli.app import app

    group: Any = typer.main.get_command(app)
    yield "# Commands\n"
    yield "The same as `toptune COMMAND --help`. Exit codes: 0 done, 1 failed, 2 wrong usage or"
    yield "input, 3 some recordings failed and were listed. Results are printed on stdout, as pure"
    yield "JSON with `--json`; everything else goes to stderr.\n"
    for name, command in group.commands.items():
        yield f"## toptune {name} {{: #{name} }}\n"
        yield from _command(name, command)


def _command(name: str, command: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=f"toptune {name}")
    yield f"{_escaped(command.help)}\n"
    if command.epilog:
        yield f"```bash\n{command.epilog.removeprefix('Example: ')}\n```\n"
    panels: dict[str, list[Any]] = defaultdict(list)
    for one in command.get_params(context):
        if not getattr(one, "hidden", False):
            panels[getattr(one, "rich_help_panel", None) or "Arguments"].append(one)
    for panel, options in sorted(panels.items(), key=lambda item: item[0] != "Arguments"):
        yield f'<div class="options" markdown>\n\n| {panel} | | |\n|---|---|---|'
        for one in options:
            flags = ", ".join(f"`{flag}`" for flag in (*one.opts, *one.secondary_opts))
            if one.param_type_name == "argument":
                flags = f"`{one.opts[0].upper()}`"
            yield f"| {flags} | {_kind(one, context)} | {_escaped(one.help or '')}{_default(one)} |"
        yield "\n</div>\n"


def _kind(option: Any, context: Any) -> str:
    """Give an option's type, as --help shows it."""
    if hasattr(option, "display_type"):  # typer from 0.26 on
        shown = option.metavar or option.display_type(context)
    else:
        shown = option.make_metavar(context)
    words = str(shown).strip("<>.").removeprefix("list[").strip("[]").split("|")
    return "" if words == ["bool"] else " \\| ".join(f"`{word}`" for word in words)


def _default(option: Any) -> str:
    value = option.default
    if option.required:
        return " **Required.**"
    if value in (None, False, True, (), []) or callable(value):
        return ""
    shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return f" Default: `{shown}`."


def _escaped(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").strip()


# --- the tutorial


def _executed() -> Any:
    """Run the notebook without network, and give it with what it printed and drew."""
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = nbformat.read(TUTORIAL, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(NO_NETWORK))
    with tempfile.TemporaryDirectory() as folder:
        # Told what to do by files, not by ports: there may be no network at all.
        place = {"transport": "ipc", "ip": f"{folder}/kernel"}
        kernel = AsyncKernelManager(kernel_name="python3", **place)
        here = {"metadata": {"path": folder}}
        NotebookClient(notebook, km=kernel, timeout=300, resources=here).execute()
    del notebook.cells[0]
    return notebook


def _tutorial() -> dict[str, str | bytes]:
    """Give the executed tutorial as Markdown, and its pictures, by name."""
    from nbconvert import MarkdownExporter

    exporter = MarkdownExporter(raw_mimetypes=[])
    given = {"output_files_dir": "tutorial_files", "unique_key": "tutorial"}
    text, resources = exporter.from_notebook_node(_executed(), resources=given)
    return {"tutorial.md": text, **resources["outputs"]}
