"""What a run says reaches the person, the log file, or both."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from selfdet.errors import UserError
from selfdet.training import log
from selfdet.training.log import Reporter, duration, plural

Capture = pytest.CaptureFixture[str]


def on_a_terminal(reporter: Reporter) -> io.StringIO:
    """Let the reporter believe that somebody is watching; returns what they see."""
    screen = io.StringIO()
    reporter.console = Console(file=screen, force_terminal=True, width=80, highlight=False)
    return screen


def test_durations_are_said_as_a_person_would() -> None:
    told = {0.4: "0 s", 8: "8 s", 59.7: "1 min 00 s", 200: "3 min 20 s", 7500: "2 h 05 min", 200_000: "2 d 7 h"}
    assert {seconds: duration(seconds) for seconds in told} == told


def test_one_is_no_plural() -> None:
    assert [plural(count, "image") for count in (0, 1, 1200)] == ["0 images", "1 image", "1,200 images"]
    assert plural(2, "box", "boxes") == "2 boxes"


def test_a_line_goes_to_stderr_and_to_the_log_unbroken_and_as_it_is(tmp_path: Path, capfd: Capture) -> None:
    reporter = Reporter(tmp_path / "log.txt")
    text = "a/long/path [bold] λ = 0.5 :smile: " + "x" * 200
    reporter.line(text)
    reporter.record("only in the file")
    assert capfd.readouterr() == ("", f"{text}\n")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == f"{text}\nonly in the file\n"


def test_a_quiet_reporter_says_and_writes_nothing(tmp_path: Path, capfd: Capture) -> None:
    reporter = Reporter(tmp_path / "log.txt", quiet=True)
    reporter.line("a")
    reporter.record("b")
    with reporter.steps(3) as display:
        display.logged(1, 0, {"loss": 1.0}, 1.0, 0.0, 2.0)
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "log.txt").exists()


def test_without_a_terminal_a_logged_step_is_one_plain_line(tmp_path: Path, capfd: Capture) -> None:
    reporter = Reporter(tmp_path / "log.txt")
    with reporter.steps(20) as display:
        for step in (1, 2):
            display.advance(step)
        display.logged(2, 0, {"loss": 1.23456, "lr": 3e-05}, rate=12.345, wait=0.07, left=130.0)
        display.logged(20, 4, {"loss": 1.0}, rate=1234.0, wait=0.0, left=0.0)
    lines = [
        "step 2/20  epoch 1  loss 1.235  lr 3e-05  12.3 images/s  data wait 7%  2 min 10 s left",
        "step 20/20  epoch 5  loss 1  1,234 images/s  data wait 0%",
    ]
    assert capfd.readouterr().err.splitlines() == lines
    assert (tmp_path / "log.txt").read_text().splitlines() == lines


def test_on_a_terminal_a_bar_moves_and_the_log_gets_the_plain_lines(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path / "log.txt")
    screen = on_a_terminal(reporter)
    with reporter.steps(20, start=1) as display:
        display.advance(2)
        display.logged(2, 0, {"loss": 1.23456}, rate=12.345, wait=0.07, left=130.0)
        reporter.line("said in between")
    shown = screen.getvalue()
    for part in ("step 2/20", "loss 1.235", "2 min 10 s left", "said in between"):
        assert part in shown
    assert (tmp_path / "log.txt").read_text().splitlines() == [
        "step 2/20  epoch 1  loss 1.235  12.3 images/s  data wait 7%  2 min 10 s left",
        "said in between",
    ]


def test_a_count_is_a_bar_on_a_terminal(tmp_path: Path) -> None:
    reporter = Reporter()
    screen = on_a_terminal(reporter)
    with reporter.counting(5, "images") as seen:
        seen(3)
    assert "3/5 images" in screen.getvalue()


def test_a_count_is_a_line_now_and_then_elsewhere(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with Reporter().counting(100, "images") as seen:
        for second in range(1, 26):
            now[0] = 15.0 + second  # the first answer comes late, as processes start
            seen(2 * second)
    assert capfd.readouterr().err.splitlines() == [
        "22/100 images  2.0/s  39 s left",
        "42/100 images  2.0/s  29 s left",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_log_that_cannot_be_written_is_told() -> None:
    with pytest.raises(UserError, match="/dev/full cannot be written: No space left on device"):
        Reporter(Path("/dev/full")).line("words")
