"""What a report is made of, and its Markdown."""

from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Text:
    text: str
    kind: str = "text"  # or: missing, code


@dataclass(frozen=True)
class Table:
    """A frame of text, written beside the page as <name>.csv; a cell may be a list of links, (text, anchor)."""

    name: str
    title: str
    frame: pd.DataFrame
    note: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure: files <name>.svg, .png and .csv; or, where it could not be drawn, why."""

    name: str
    title: str
    caption: str
    why: str = ""


Block = Text | Table | Figure
Section = tuple[str, list[Block]]  # a heading, and what stands below it


def plain(cell: Any) -> str:
    """A cell as text, a list of links without its links."""
    return ", ".join(text for text, _ in cell) if isinstance(cell, list) else str(cell)


def inline(text: str) -> str:
    """Text as Markdown shows it on one line: no HTML, no new column, no new row."""
    return " ".join(escape(text, quote=False).replace("|", "\\|").split())


def markdown_table(frame: pd.DataFrame) -> str:
    rows = [list(frame.columns), ["---"] * frame.shape[1], *frame.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(inline(plain(cell)) for cell in row) + " |" for row in rows)


def markdown(sections: list[Section]) -> str:
    """The report's Markdown twin; provenance stays in its CSV."""
    parts = []
    for heading, blocks in sections:
        parts.append(f"## {heading}")
        for block in blocks:
            if isinstance(block, Table):
                body = f"See {block.name}.csv." if block.name == "provenance" else markdown_table(block.frame)
                parts += [f"**{block.title}**", body, block.note]
            elif isinstance(block, Text):
                text = block.text if block.kind == "code" else escape(block.text, quote=False)
                parts.append({"text": "{}", "missing": "> {}", "code": "```sh\n{}\n```"}[block.kind].format(text))
            elif block.why:
                parts.append(f"> {block.title}: {inline(block.why)}")
            else:
                parts += [f"![{block.title}]({block.name}.png)", f"*{block.title}.* {block.caption}"]
    return "\n\n".join(filter(None, parts)) + "\n"
