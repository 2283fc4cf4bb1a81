"""What a run of Snakemake shows: a line for each stage that ends, those at work with their progress, a closing table.

The engine's own words stay in its file below .snakemake/log; `snakemake --verbose` (or `-p`) shows them instead. On a
terminal the stages at work stand below the others, and change; in a file they are told of twice a minute.
"""

import logging
import re
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.errors import ERROR_LINE
from pipeline.progress import EVERY, clock

IDLE = "Nothing to be done"  # how the engine says so
STOPPED = "Terminating processes on user request"
PROGRESS = re.compile(r"(\d+/\d+)  (?:.*  )?(\d+:\d\d:\d\d) left")  # as pipeline/progress.py writes it
WIDTH = 40  # of a stage's name, in a terminal of 80 columns
TAIL = 2000  # bytes at a log's end that hold its last line of progress


@dataclass
class Work:
    """A job of the engine that runs a stage."""

    log: Path
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    error: str = ""

    @property
    def stage(self) -> str:
        return self.log.stem if self.log.parent.name != "report" else "report"

    def __str__(self) -> str:
        """Experiment, seed and arm, by the path law, and the stage."""
        return f"{'/'.join(self.log.parent.parts[2:])} {self.stage}".strip()

    def progress(self) -> str:
        """How far it is, and the time left, as its log says."""
        found = PROGRESS.findall(tail(self.log))
        return "{}, {} left".format(*found[-1]) if found else clock(time.monotonic() - self.started)

    def why(self) -> str:
        """Why it failed, as its log says."""
        said = ERROR_LINE.findall(tail(self.log))
        return said[-1] if said else "ended without a word: killed, or out of memory"


class Screen(logging.Handler):
    """Takes the place of the engine's handler for the terminal.

    Args:
        silent: rules that are no stages.
        report: the page that the run makes, or an earlier one made.
        console: where it speaks (default: standard error).
    """

    def __init__(self, silent: Collection[str], report: Path, console: Console | None = None) -> None:
        super().__init__()
        self.silent, self.report = silent, report
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        self.total, self.started = 0, time.monotonic()
        self.working, self.failed = dict[int, Work](), dict[int, Work]()  # by the engine's numbers of jobs
        self.ended = list[Work]()
        self.stopped = False  # by its user
        self.over = threading.Event()
        self.live = Live(console=self.console, get_renderable=self.at_work, refresh_per_second=2, transient=True)

    def replace(self, logger: logging.Logger) -> None:
        """Speak in place of the engine's own handler for the terminal, where it has one."""
        for handler in [each for each in logger.handlers if each.name == "DefaultStreamHandler"]:
            logger.removeHandler(handler)
            logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        event, content = getattr(record, "event", None), vars(record)
        if event is not None:
            react = getattr(self, f"on_{event.value}", None)
            if react is not None:
                react(content)
        elif record.levelno >= logging.WARNING:
            self.say(record.getMessage(), "red" if record.levelno >= logging.ERROR else "yellow")
        elif str(record.msg).startswith(STOPPED):
            self.stopped = True
            self.say("stopping: what trains keeps its state; the same command goes on")
        elif str(record.msg).startswith(IDLE):
            self.say("nothing to do: all is up to date")
            self.say_report()

    def on_run_info(self, content: dict[str, Any]) -> None:
        """The jobs to come are known."""
        self.total = sum(count for rule, count in content["stats"].items() if rule not in self.silent)
        self.say(f"{self.total} stages to run")
        if self.console.is_terminal:
            self.live.start()
        else:
            threading.Thread(target=self.tell, daemon=True).start()

    def on_job_info(self, content: dict[str, Any]) -> None:
        """A job starts; one that failed may be tried again, and counts once."""
        if failed := self.failed.pop(content["jobid"], None):
            self.ended.remove(failed)
        if content["log"]:
            self.working[content["jobid"]] = Work(Path(content["log"][0]))

    def on_job_finished(self, content: dict[str, Any]) -> None:
        if work := self.end(content["job_id"]):
            self.say(self.line(work, clock(work.seconds)))

    def on_job_error(self, content: dict[str, Any]) -> None:
        if work := self.end(content["jobid"]):
            work.error = work.why()
            self.failed[content["jobid"]] = work
            self.say(f"{self.so_far()}  {work} failed: {work.error} ({work.log})", "red")

    def end(self, job: int) -> Work | None:
        if work := self.working.pop(job, None):
            work.seconds = time.monotonic() - work.started
            self.ended.append(work)
        return work

    def so_far(self) -> str:
        """The time since the start, and how many stages have ended."""
        return f"{clock(time.monotonic() - self.started)} {len(self.ended):>{len(str(self.total))}}/{self.total}"

    def line(self, work: Work, what: str) -> str:
        return f"{self.so_far()}  {work!s:<{WIDTH}}  {what}"

    def at_work(self) -> Text:
        """A line for each stage at work."""
        return Text("\n".join(self.line(work, work.progress()) for work in list(self.working.values())), style="cyan")

    def tell(self) -> None:
        """Tell now and then what is at work, where the terminal does not show it."""
        while not self.over.wait(EVERY):
            if self.working:
                self.say(self.at_work().plain)

    def say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style))

    def say_report(self) -> None:
        if self.report.exists():
            self.console.print(Text(f"The report: {self.report.resolve()}"), soft_wrap=True)  # whole, to be copied

    def close_run(self) -> None:
        """What ran and how long, and where the report is."""
        self.over.set()
        self.live.stop()
        table, rows = Table(box=None, padding=(0, 2), show_header=True), dict[str, list[Work]]()
        for work in self.ended:
            rows.setdefault(work.stage, []).append(work)
        for heading in ("stage", "jobs", "failed", "together", "longest"):
            table.add_column(heading, justify="left" if heading == "stage" else "right")
        for stage, works in sorted(rows.items(), key=lambda each: -sum(work.seconds for work in each[1])):
            seconds, failed = [work.seconds for work in works], sum(bool(work.error) for work in works)
            table.add_row(stage, str(len(works)), str(failed or ""), clock(sum(seconds)), clock(max(seconds)))
        if self.ended:
            self.console.print(table)
        self.say(f"{len(self.ended)} stages in {clock(time.monotonic() - self.started)}")
        self.say_report()


def tail(path: Path) -> str:
    """The end of a file, and nothing of one that is not there."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
