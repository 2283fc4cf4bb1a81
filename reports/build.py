"""The report of a profile: one HTML page with nothing outside it, its Markdown twin, tables and figures.

Renders whatever lies below build/<profile>/, or in an archive of that; what is missing is named, with the reason.
"""

import argparse
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from shlex import quote

import pandas as pd
from jinja2 import StrictUndefined, Template

from pipeline.errors import UserError, errors_in_one_line
from pipeline.files import write_bytes
from pipeline.params import PROFILES
from reports.archive import unpacked
from reports.blocks import Table, markdown, markdown_table, plain
from reports.page import content
from reports.verdicts import VERDICTS
from reports.words import PAPER


def render(profile: str, build: Path, page: Path, shown: tuple[Path, Path] | None = None) -> None:
    """Write the page and everything beside it; `shown` are the results and the page that its command names."""
    out, title = page.parent, f"Reproduction of “{PAPER['title']}”"
    results, target = (quote(str(path)) for path in shown or (build, page))
    again = f"python -m fce report --profile {profile} --build {results} --out {target}"
    with unpacked(build) as folder:
        sections = content(profile, folder, out, again)
    source = Path(__file__).with_name("template.html.j2").read_text("utf-8")
    script = source.partition("<script>")[2].partition("</script>")[0]
    template = Template(source, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    mlflow = {row: run for _, blocks in sections for table in blocks if isinstance(table, Table)
              for row, run in table.frame.get("MLflow run", pd.Series(dtype=str)).items()}
    html = template.make_module({
        "title": title, "url": PAPER["url"], "profile": profile, "sections": sections, "verdicts": VERDICTS,
        "mlflow": mlflow, "seal": b64encode(sha256(script.encode()).digest()).decode(),  # no other script may run
        "points": lambda name: place.read_text() if (place := out / f"{name}.points.json").exists() else "",
        "picture": lambda name: f"data:image/svg+xml;base64,{b64encode((out / f'{name}.svg').read_bytes()).decode()}"})
    text = f"# {title}\n\n" + ("" if profile == "full" else f"**{profile} profile: not the paper's sizes.**\n\n")
    for heading, blocks in sections:
        text += "\n\n".join((f"## {heading}", *map(markdown, blocks))) + "\n\n"
        for table in [block for block in blocks if isinstance(block, Table)]:
            write_bytes(out / f"{table.name}.csv", table.frame.map(plain).to_csv(index=False).encode())
            if table.name.startswith("table"):  # the paper's, as fragments for other pages
                write_bytes(out / f"{table.name}.md", markdown_table(table.shown).encode())
                fragment = html.__dict__["table"](table)  # by the template's macro
                write_bytes(out / f"{table.name}.html", str(fragment).encode())
    write_bytes(out / "report.md", text[:-1].encode())
    write_bytes(page, str(html).encode())


@errors_in_one_line
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fce report", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", required=True, choices=PROFILES, help="which results")
    parser.add_argument("--build", type=Path, default=Path("build"),
                        help="the folder of results, or an archive of it, as published (default: build)")
    parser.add_argument("--out", type=Path, required=True, help="the page; what belongs to it is written beside it")
    arguments = parser.parse_args(argv)
    if arguments.out.is_dir():
        raise UserError(f"--out: {arguments.out} is a folder, but the page is a file; add index.html")
    render(arguments.profile, arguments.build, arguments.out)
    print(arguments.out)
    return 0
