"""What the run looked like: a live line, then a table and a timeline, for a terminal as for a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, groupby
from string import ascii_letters
from urllib.parse import urlsplit

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from runner.analysis import Interval, Overlap, overlaps
from runner.scene import Outcome

COLOURS = ["green", "cyan", "blue", "magenta", "bright_green", "bright_cyan", "bright_blue", "bright_magenta"]
# What one cell of the timeline shows, and its style.
Cell = tuple[str, str]
OVERLAP: Cell = ("!", "bold white on red")
IDLE: Cell = (".", "dim")
LABEL = 11


def short(url: str) -> str:
    """The feed's name in tables: the last part of its address."""
    return urlsplit(url).path.rsplit("/", 1)[-1]


class Live:
    """A progress bar where there is a terminal, only the lines that are said where there is none."""

    def __init__(self, console: Console) -> None:
        self._console = console
        numbers = "[green]{task.fields[imports]} imports[/] {task.fields[skipped]} skipped {task.fields[overlaps]}"
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn(numbers),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, imports=0, skipped=0, overlaps="")

    @contextmanager
    def running(self) -> Iterator[Live]:
        """Shown until the block ends."""
        with self._bar:
            yield self

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, highlight=False, markup=False)

    def show(self, outcome: Outcome) -> None:
        """The numbers of this moment."""
        number = outcome.overlaps
        self._bar.update(
            self._task,
            completed=len(outcome.published) - len(outcome.unfinished),
            total=len(outcome.published),
            imports=sum(interval.imported for interval in outcome.found),
            skipped=outcome.skipped,
            overlaps=f"[bold red]{number} overlaps[/]" if number else "0 overlaps",
        )


def table(outcome: Outcome, feeds: dict[str, str]) -> Table:
    """One row per feed of `feeds` (what it is, by address), and their sums."""
    shown = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for heading in ("Feed", "Kind"):
        shown.add_column(heading, overflow="fold")
    for heading in ("Calls", "Imports", "Errors", "Skipped", "Killed", "Overlaps", "Takeover"):
        shown.add_column(heading, justify="right")
    after = f"{outcome.takeover_seconds:.2f} s" if outcome.takeover_seconds is not None else "none"
    victim = outcome.kill.feed if outcome.kill else None
    for url, kind in feeds.items():
        numbers = _numbers(outcome, {url})
        style = "bold red" if numbers[-1] else ""
        shown.add_row(short(url), kind, *map(str, numbers), after if url == victim else "", style=style)
    shown.add_section()
    shown.add_row("all", "", *map(str, _numbers(outcome, set(feeds))), "", style="bold")
    return shown


def _numbers(outcome: Outcome, feeds: set[str]) -> list[int]:
    found = [interval for interval in outcome.found if interval.feed in feeds]
    return [
        sum(feed in feeds for feed in outcome.published.values()),
        sum(interval.imported for interval in found),
        sum(bool(interval.error) for interval in found),
        sum(event["skipped"] and event["feed"] in feeds for event in outcome.done.values()),
        sum(interval.killed for interval in found),
        len(overlaps(found)),
    ]


def timeline(outcome: Outcome, feeds: list[str], width: int, killed_mark: str) -> Iterator[Text]:
    """Lines of at most `width` cells: the axis, one row per feed, and who the letters are."""
    names = _names(outcome.found)
    cells = max(20, width - LABEL - 1)
    scale = cells / max(outcome.ended - outcome.began, 0.001)
    yield Text(" " * LABEL) + _axis(cells, scale)
    pairs = overlaps(outcome.found)
    for feed in feeds:
        row = [IDLE] * cells
        _paint(row, [i for i in outcome.found if i.feed == feed], names, outcome.began, scale)
        _paint_overlaps(row, [pair for pair in pairs if pair.feed == feed], outcome.began, scale)
        if outcome.kill and outcome.kill.feed == feed:
            row[_cell(outcome.kill.sent, outcome.began, scale, cells)] = (killed_mark, "bold red")
        yield Text(f"{short(feed):{LABEL}}") + _text(row)
    yield Text("")
    yield from _legend(names, killed_mark)


def _text(row: list[Cell]) -> Text:
    """The row, with neighbours of one style as one piece, so that the colours take few codes."""
    pieces = groupby(row, key=lambda cell: cell[1])
    return Text.assemble(*(("".join(sign for sign, _ in cells), style) for style, cells in pieces))


def _names(found: list[Interval]) -> dict[tuple[str, int], Cell]:
    """A letter and a colour per child: capitals for the first worker, small letters for the second."""
    crew = sorted({interval.worker for interval in found})
    letters = dict(zip(crew, (ascii_letters[26:], ascii_letters[:26]), strict=False))
    numbers = {worker: count() for worker in crew}
    names: dict[tuple[str, int], Cell] = {}
    for worker, pid in dict.fromkeys((interval.worker, interval.pid) for interval in found):
        number = next(numbers[worker])
        colour = COLOURS[(number + 4 * crew.index(worker)) % len(COLOURS)]
        names[worker, pid] = (letters.get(worker, "?")[number % 26 : number % 26 + 1] or "?", f"bold {colour}")
    return names


def _cell(moment: float, began: float, scale: float, cells: int) -> int:
    return min(cells - 1, max(0, int((moment - began) * scale)))


def _axis(cells: int, scale: float) -> Text:
    """Seconds, at the finest round step at which the numbers do not touch."""
    step = next(step for step in (1, 2, 5, 10, 20, 60, 600) if step * scale >= 6)
    line = [" "] * cells
    for second in range(0, int(cells / scale) + 1, step):
        at = int(second * scale)
        label = f"|{second} s"
        if at + len(label) <= cells:
            line[at : at + len(label)] = label
    return Text("".join(line).rstrip(), style="dim")


def _paint(
    row: list[Cell],
    found: list[Interval],
    names: dict[tuple[str, int], Cell],
    began: float,
    scale: float,
) -> None:
    for interval in found:
        letter, style = names[interval.worker, interval.pid]
        end = min(interval.end, began + len(row) / scale)
        for cell in range(_cell(interval.begin, began, scale, len(row)), _cell(end, began, scale, len(row)) + 1):
            row[cell] = (letter, style)


def _paint_overlaps(row: list[Cell], pairs: list[Overlap], began: float, scale: float) -> None:
    for pair in pairs:
        end = min(pair.end, began + len(row) / scale)
        for cell in range(_cell(pair.begin, began, scale, len(row)), _cell(end, began, scale, len(row)) + 1):
            row[cell] = OVERLAP


def _legend(names: dict[tuple[str, int], Cell], killed_mark: str) -> Iterator[Text]:
    for crew in sorted({worker for worker, _ in names}):
        line = Text(f"{crew.partition('@')[0]}, its children by pid:")
        for (worker, pid), (letter, style) in names.items():
            if worker == crew:
                line.append(f" {letter}", style).append(f"={pid}")
        yield line
    yield Text(f"{killed_mark} killed   ! two at once   . nobody", style="dim")
