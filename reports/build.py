"""The report of a profile: one HTML page with nothing outside it, its Markdown twin, tables and figures.

Renders whatever lies below build/<profile>/; what is missing is named, with the reason.
"""

import argparse
import base64
import sys
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.params import PROFILES
from reports.blocks import Table, markdown, markdown_table, plain
from reports.page import content, read_paper
from reports.verdicts import VERDICTS


def render(profile: str, build: Path, page: Path) -> None:
    """Write the page and everything beside it."""
    out, paper = page.parent, read_paper()
    sections = content(profile, build, out)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["picture"] = lambda name: "data:image/svg+xml;base64," + base64.b64encode(
        (out / f"{name}.svg").read_bytes()).decode()
    title = f"Reproduction of “{paper['title']}”"
    html = environment.get_template("template.html.j2").make_module(
        {"title": title, "url": paper["url"], "profile": profile, "sections": sections, "verdicts": VERDICTS})
    fragment = html.__dict__["table"]  # the template's macro
    for table in [block for _, blocks in sections for block in blocks if isinstance(block, Table)]:
        write_bytes(out / f"{table.name}.csv", table.frame.map(plain).to_csv(index=False).encode())
        if table.name.startswith("table"):  # the paper's, as fragments for other pages
            write_bytes(out / f"{table.name}.md", markdown_table(table.frame).encode())
            write_bytes(out / f"{table.name}.html", str(fragment(table)).encode())
    banner = "" if profile == "full" else f"**{profile} profile: not the paper's sizes.**\n\n"
    write_bytes(out / "report.md", f"# {title}\n\n{banner}{markdown(sections)}".encode())
    write_bytes(page, str(html).encode())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fce report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True, choices=PROFILES, help="which results")
    parser.add_argument("--build", type=Path, default=Path("build"), help="the folder of results (default: build)")
    parser.add_argument("--out", type=Path, required=True, help="the page; what belongs to it is written beside it")
    arguments = parser.parse_args(argv)
    try:
        if not arguments.build.is_dir():
            raise UserError(f"--build: {arguments.build} is no folder; name the one of results, which snakemake makes")
        if arguments.out.is_dir():
            raise UserError(f"--out: {arguments.out} is a folder, but the page is a file; add index.html")
        render(arguments.profile, arguments.build, arguments.out)
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print(arguments.out)
    return 0
