"""The page in a browser: narrow, in the dark, sorted, filtered, and printed."""

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from test_report import fids, rendered

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
PAINTED = {"light": 1, "dark": 0}  # as Chromium counts preferred colour schemes


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("page")
    fids(root)
    seed = root / "full" / "svhn" / "seed-0"
    pd.DataFrame({"step": [1, 2, 3], "validation": [3.0, 2.5, 2.25]}).to_csv(seed / "pretrain.csv")
    pd.DataFrame({"ebm_updates": [10, 20], "flow_updates": 1, "value": -1.4, "accuracy_data": 0.5, "accuracy_gen": 0.5}
                 ).to_csv(seed / "joint" / "joint.csv")
    rendered(root, "full")
    return root / "report" / "index.html"


def browse(page: Path, *flags: str, scheme: str = "light") -> str:
    """What Chromium prints; a request or an error of the page's is in it too."""
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000",
               f"--user-data-dir={page.parent / 'chromium'}", "--enable-logging=stderr",
               f"--blink-settings=preferredColorScheme={PAINTED[scheme]}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def said(page: Path, script: str, *flags: str, scheme: str = "light") -> str:
    """What an expression is on a copy of the page, which alone lets a second script run."""
    html, n = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    assert n == 1
    copy = page.with_name("copy.html")
    copy.write_text(html.replace("</body>", f"<script>document.title = ({script})</script></body>"))
    return re.findall("<title>(.*?)</title>", browse(copy, "--dump-dom", *flags, scheme=scheme))[0]


def test_its_own_script_runs_and_nothing_else_is_asked_for(page):
    dom = browse(page, "--dump-dom")
    assert "<button>" in dom and "Content-Security-Policy" in dom
    assert said(page, "performance.getEntriesByType('resource').map(each => each.name.slice(0, 5)).join()") in (
        "", *(",".join(["data:"] * n) for n in range(1, 99)))


def test_another_script_is_refused(page):
    copy = page.with_name("attacked.html")
    copy.write_text(page.read_text().replace("</body>", "<script>document.title = 'attacked'</script></body>"))
    with pytest.raises(AssertionError, match="Content Security Policy"):
        browse(copy, "--dump-dom")


def test_a_curve_tells_its_numbers_to_a_pointer(page):
    """At the point that the page has for the loss of step 3, and nowhere else."""
    move = """(() => {
      const plot = document.querySelector("[data-points]"), box = plot.firstElementChild.getBoundingClientRect();
      const [x, y] = JSON.parse(plot.dataset.points).find(each => each[2].includes("step 3"));
      const at = (x, y) => new PointerEvent("pointermove", {clientX: box.left + x, clientY: box.top + y});
      const seen = [[x * box.width + 3, y * box.height], [0, 0]].map(([x, y]) => {
        plot.dispatchEvent(at(x, y));
        return plot.lastElementChild.hidden ? "nothing" : plot.lastElementChild.textContent;
      });
      return seen.join(" | ");
    })()"""
    assert said(page, move) == "MLE, step 3: 2.250 | nothing"


def test_a_phone_scrolls_tables_and_not_the_page(page):
    opened = "document.querySelectorAll('details').forEach(each => { each.open = true; })"
    root = "document.documentElement"
    beyond = f"{root}.scrollWidth - {root}.clientWidth"  # in a frame, since a window is never so narrow
    frame = page.with_name("frame.html")
    frame.write_text("<title></title><iframe width=360 height=800 src=copy.html></iframe>"
                     "<script>addEventListener('message', each => { document.title = each.data; })</script>")
    said(page, f"{opened}, parent.postMessage({beyond} + ' beyond ' + innerWidth, '*')")
    assert "<title>0 beyond 360</title>" in browse(frame, "--dump-dom")


def test_headers_sort_by_number_and_filters_hide_rows(page):
    column = "[...table.tBodies[0].rows].map(row => row.cells[2].innerText).join(' ')"
    click = "table.tHead.rows[0].cells[2].querySelector('button').click()"
    found = said(page, "(() => { const table = document.getElementById('table1'), seen = [];"
                 f"for (const n of [1, 2]) {{ {click}; seen.push({column}, table.tHead.rows[0].cells[2].ariaSort); }}"
                 "return seen.join('; '); })()")
    up = ["20.19", "21.40", "37.30", "37.70", "41.70", "45.99"]
    assert found == f"{' '.join(up)}; ascending; {' '.join(reversed(up))}; descending"
    shown = said(page, "(() => { const input = document.querySelector('input'), table = input.closest('label')"
                 ".nextElementSibling.querySelector('table'); input.value = 'SPIRAL'; input.oninput();"
                 "return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.textContent).join('|');"
                 "})()")
    assert shown and all("spiral" in row for row in shown.split("|"))


def test_a_verdict_opens_to_its_numbers(page):
    text = said(page, "document.querySelector('#claims-table-1 dl').textContent.replace(/\\s+/g, ' ')")
    assert "By seed0: 9.000 (MLflow run run-id-of-mlflow)" in text and "Minus0: 41.00" in text and "0: −32.00" in text
    assert said(page, "(location.hash = 'svhn-mle-fid-0', reveal(), "
                "document.querySelector('#provenance').closest('details').open)") == "true"


@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(21, 24, 28)")])
def test_it_follows_the_readers_colours(page, scheme, paper):
    assert said(page, "getComputedStyle(document.body).backgroundColor", scheme=scheme) == paper


def test_headings_go_down_by_one(page):
    levels = [int(level) for level in re.findall(r"<h(\d)>", page.read_text())]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_it_prints(page):
    pdf = page.with_name("page.pdf")
    browse(page, f"--print-to-pdf={pdf}")
    assert pdf.read_bytes().startswith(b"%PDF")
