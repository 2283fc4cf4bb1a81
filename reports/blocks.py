"""What a report is made of, and its Markdown."""

from html import escape
from typing import Any, NamedTuple

import pandas as pd


class Text(NamedTuple):
    text: str
    kind: str = "text"  # or: missing, code, note, heading


class Table(NamedTuple):
    """A frame of text, written beside the page as <name>.csv; a cell may be a list of links, (text, anchor).

    Attributes:
        folded: the page shows it when it is opened.
        inside: the columns that a row's verdict opens to; Markdown leaves them to the CSV.
        parts: what page and Markdown show in its stead.
    """

    name: str
    title: str
    frame: pd.DataFrame
    note: str = ""
    folded: bool = False
    inside: tuple[str, ...] = ()
    parts: "tuple[Block, ...]" = ()

    @property
    def shown(self) -> pd.DataFrame:
        return self.frame.drop(columns=list(self.inside))


class Figure(NamedTuple):
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


def markdown(block: Block) -> str:
    """A block of the report's Markdown twin; provenance stays in its CSV."""
    if isinstance(block, Text):
        text = block.text if block.kind == "code" else escape(block.text, quote=False)
        forms = {"text": "{}", "note": "{}", "heading": "### {}", "missing": "> {}", "code": "```sh\n{}\n```"}
        return forms[block.kind].format(text)
    if isinstance(block, Table) and block.parts:
        return "\n\n".join(map(markdown, block.parts))
    if isinstance(block, Table):
        body = f"See {block.name}.csv." if block.name == "provenance" else markdown_table(block.shown)
        return "\n\n".join(filter(None, (f"**{block.title}**", body, block.note)))
    if block.why:
        return f"> {block.title}: {inline(block.why)}"
    return f"![{block.title}]({block.name}.png)\n\n*{block.title}.* {block.caption}"
