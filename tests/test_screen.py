"""What a newcomer sees while Snakemake runs: a line a stage, an error in a sentence, a closing table, in 80 columns."""

import io
import logging
import re
from pathlib import Path

import pytest
from rich.console import Console
from snakemake_interface_logger_plugins.common import LogEvent

from pipeline.screen import Screen

ENGINE = "DefaultStreamHandler"  # Snakemake's name of its own handler for the terminal
MISSING = "error: cifar10.npz is missing; put it into data/"


class Place:
    """A logger with a screen of 80 columns in place of the engine's handler, in a folder with logs."""

    def __init__(self, folder: Path, terminal: bool):
        self.out = io.StringIO()
        console = Console(file=self.out, width=80, force_terminal=terminal, color_system=None)
        self.screen, self.log = Screen({"params", "total"}, folder / "index.html", console), logging.Logger("engine")
        handler = logging.StreamHandler()
        handler.name = ENGINE
        self.log.addHandler(handler)
        self.screen.replace(self.log)
        self.folder = folder

    def tell(self, event: LogEvent | None, text: str = "", level: int = logging.INFO, **content: object) -> None:
        self.log.log(level, text, extra={"event": event, **content} if event else None)

    def start(self, job: int, place: str, *lines: str) -> None:
        path = Path("build/quick", place)
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text("\n".join(lines))
        self.tell(LogEvent.JOB_INFO, jobid=job, log=[str(path)])

    @property
    def said(self) -> str:
        """All that was printed, without the codes that move a terminal's cursor."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.out.getvalue())


@pytest.fixture(params=[False, True], ids=["file", "terminal"])
def place(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, request.param)


def test_a_run_is_a_line_a_stage_and_a_table(place: Place) -> None:
    place.tell(None, "Building DAG of jobs...")
    place.tell(LogEvent.RUN_INFO, "Job stats: ...", stats={"data": 1, "joint": 2, "params": 7, "total": 10})
    place.start(1, "ring/data.log")
    place.tell(LogEvent.JOB_INFO, jobid=9, log=[])  # of a rule that is no stage
    place.tell(LogEvent.SHELLCMD, "python -m fce data")
    place.tell(LogEvent.JOB_FINISHED, job_id=9)
    place.tell(LogEvent.JOB_FINISHED, job_id=1)
    place.start(2, "digits/seed-0/tilted/joint.log", "12:00:01 INFO 120/150  V -2.3  300/s  0:00:12 left")
    place.tell(LogEvent.JOB_FINISHED, job_id=2)
    place.start(3, "digits/seed-0/joint/joint.log", "Traceback ...", MISSING)
    place.tell(LogEvent.JOB_ERROR, "Error in rule joint", logging.ERROR, jobid=3)
    (report := place.folder / "index.html").write_text("")
    place.screen.close_run()
    lines = place.said.splitlines()
    assert "3 stages to run" in lines[0] and "Building" not in place.said and "fce data" not in place.said
    assert [line.split()[1:-1] for line in lines if line.startswith("0:00:00") and "failed" not in line][:2] == [
        ["1/3", "ring", "data"], ["2/3", "digits/seed-0/tilted", "joint"]]
    told = " ".join(place.said.split())
    assert f"digits/seed-0/joint joint failed: {MISSING.removeprefix('error: ')} (build/quick" in told
    assert "joint 2 1 0:00:00 0:00:00" in told and "3 stages in 0:00:00" in told and f"The report: {report}" in told
    assert all(len(line) <= 80 or str(report) in line for line in lines)


def test_what_is_at_work_shows_how_far_it_is_and_the_time_left(place: Place) -> None:
    place.tell(LogEvent.RUN_INFO, stats={"joint": 1})
    place.start(1, "digits/seed-0/joint/joint.log", "warm start", "12:00 INFO 120/150  V -2.3  300/s  0:00:12 left", "")
    work = place.screen.working[1]
    assert (str(work), work.progress()) == ("digits/seed-0/joint joint", "120/150, 0:00:12 left")
    place.start(2, "report/../../report/quick.log")
    assert str(place.screen.working[2]).endswith("report")
    place.screen.close_run()
    assert "The report" not in place.said


def test_what_the_engine_warns_of_is_shown_and_that_there_is_nothing_to_do(place: Place) -> None:
    place.tell(None, "MissingInputException in rule fid", logging.ERROR)
    (place.folder / "index.html").write_text("")
    place.tell(None, "Nothing to be done (all requested files are present and up to date).")
    assert "MissingInputException" in place.said and "all is up to date" in place.said and "The report" in place.said


def test_a_stage_that_was_killed_says_so(place: Place) -> None:
    place.start(1, "digits/seed-0/joint/joint.log", "12:00:01 INFO 120/150  0:00:12 left")
    place.tell(LogEvent.JOB_ERROR, "Error", logging.ERROR, jobid=1)
    assert "ended without a word" in " ".join(place.said.split())


def test_a_stage_that_is_tried_again_counts_once(place: Place) -> None:
    place.tell(LogEvent.RUN_INFO, stats={"joint": 1})
    place.start(1, "digits/seed-0/joint/joint.log", MISSING)
    place.tell(LogEvent.JOB_ERROR, "Error", logging.ERROR, jobid=1)
    place.start(1, "digits/seed-0/joint/joint.log")
    place.tell(LogEvent.JOB_FINISHED, job_id=1)
    place.screen.close_run()
    told = " ".join(place.said.split())
    assert "failed: " in told and "1/1 digits/seed-0/joint joint 0:00:00" in told and "1 stages in" in told


def test_another_loggers_terminal_is_left_alone() -> None:
    log, handler = logging.Logger("engine"), logging.StreamHandler()
    log.addHandler(handler)
    Screen(set(), Path("none"), Console(file=io.StringIO())).replace(log)
    assert log.handlers == [handler]
