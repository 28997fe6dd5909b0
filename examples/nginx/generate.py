"""Turns pages/*.md into a site: a page for each, an index over them, and nothing that a browser would have to run."""

from __future__ import annotations

import argparse
import html
import re
from pathlib import Path

PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><link rel="stylesheet" href="/style.css"></head>
<body>
<nav><a href="/">all pages</a></nav>
{body}
<footer>{footer}</footer>
</body>
</html>
"""


def render(text: str) -> str:
    """Headings, paragraphs, lists, `code` and [links](to): the Markdown that the pages use."""
    blocks = []
    for block in re.split(r"\n{2,}", text.strip()):
        if match := re.match(r"(#{1,3}) (.*)", block):
            level = len(match[1])
            blocks.append(f"<h{level}>{inline(match[2])}</h{level}>")
        elif block.startswith("- "):
            items = "".join(f"<li>{inline(line[2:])}</li>" for line in block.splitlines())
            blocks.append(f"<ul>{items}</ul>")
        else:
            blocks.append(f"<p>{inline(block)}</p>")
    return "\n".join(blocks)


def inline(text: str) -> str:
    escaped = html.escape(text, quote=True)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    return re.sub(r"\[([^]]+)\]\(([^)]+)\)", r'<a href="\2">\1</a>', escaped)


def title_of(text: str) -> str:
    return text.splitlines()[0].removeprefix("# ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--footer", default="")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    links = []
    for source in sorted(arguments.pages.glob("*.md")):
        text = source.read_text()
        page = PAGE.format(title=html.escape(title_of(text)), body=render(text), footer=html.escape(arguments.footer))
        (arguments.out / f"{source.stem}.html").write_text(page)
        links.append(f"- [{title_of(text)}](/{source.stem}.html)")
    index = PAGE.format(
        title="All pages", body=render("# All pages\n\n" + "\n".join(links)), footer=html.escape(arguments.footer)
    )
    (arguments.out / "index.html").write_text(index)
    print(f"{len(links)} pages")


if __name__ == "__main__":
    main()
