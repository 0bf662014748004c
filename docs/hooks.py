"""Hooks of `make docs`: add linked repository files to the site, and all options to a page."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)([^)]*)\)")
"""A link to a file; groups: `!` for an image, text, path, the rest."""


def linked(file: File, path: str) -> str:
    """Return the site path of a link in `file`; docs/ is the root of the site."""
    folder = Path(str(file.abs_src_path)).parent.relative_to(ROOT).as_posix()
    return posixpath.normpath(posixpath.join(folder, path)).removeprefix("docs/")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add linked files outside docs/; Markdown files become pages that the menu omits."""
    pages = list(files.documentation_pages())
    for page in pages:
        for _, _, path, _ in LINK.findall(page.content_string):
            uri = linked(page, path)
            if files.get_file_from_path(uri) is None and (ROOT / uri).is_file():
                file = File.generated(config, uri, abs_src_path=str(ROOT / uri))
                file.inclusion = InclusionLevel.NOT_IN_NAV
                files.append(file)
                if file.is_documentation_page():
                    pages.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to the files in the site; replace links to folders with their names."""

    def moved(link: re.Match[str]) -> str:
        image, text, path, rest = link.groups()
        uri = linked(page.file, path)
        if files.get_file_from_path(uri) is None:
            return f"{text} (`{uri}`)" if (ROOT / uri).is_dir() else link[0]
        target = posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"{image}[{text}]({target}{rest})"

    if page.file.src_uri == "options.md":
        markdown += options()
    return LINK.sub(moved, markdown)


def options() -> str:
    """Return conf/config.yaml and every option of its groups as Markdown."""
    conf = ROOT / "conf"
    first = conf / "config.yaml"
    parts = []
    for path in (first, *sorted(set(conf.rglob("*.yaml")) - {first})):
        group = path.parent.relative_to(conf).as_posix()
        title = "All settings" if path == first else f"{group}={path.stem}"
        parts.append(f"\n\n## {title}\n\n```yaml\n{path.read_text().strip()}\n```")
    return "".join(parts)
