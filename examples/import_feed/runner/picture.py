"""The timeline as a picture: who imported which feed when."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import isfinite

from runner.analysis import Interval, overlaps
from runner.report import short
from runner.scene import Outcome

LEFT, TOP, ROW, WIDTH = 92, 34, 30, 720
FILLS = ["#2f7fb8", "#d9822b"]  # one for each worker
RED, GREY, INK = "#c62828", "#dddddd", "#333333"


def draw(outcome: Outcome, feeds: list[str]) -> str:
    """An SVG: one row per feed, one bar per import, in the colour of its worker and with the number of its child."""
    height = TOP + ROW * len(feeds) + 34
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}">',
            '<g font-family="DejaVu Sans, Verdana, sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
            *_axis(outcome, TOP + ROW * len(feeds)),
            *_bars(outcome, feeds),
            *_legend(outcome, height - 12),
            "</g></svg>\n",
        ]
    )


def _x(moment: float, outcome: Outcome) -> float:
    share = (moment - outcome.began) / max(outcome.ended - outcome.began, 0.001)
    return LEFT + (WIDTH - LEFT - 12) * min(1.0, max(0.0, share))


def _axis(outcome: Outcome, bottom: int) -> Iterator[str]:
    seconds = int(outcome.ended - outcome.began)
    for second in range(0, seconds + 1, next(step for step in (1, 2, 5, 10, 60, 600) if seconds / step <= 12)):
        x = _x(outcome.began + second, outcome)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom}" stroke="{GREY}"/>'
        yield f'<text x="{x:.1f}" y="{TOP - 14}" text-anchor="middle" fill="{INK}">{second} s</text>'


def _bars(outcome: Outcome, feeds: list[str]) -> Iterator[str]:
    crew, children = _crew(outcome.found)
    for number, feed in enumerate(feeds):
        y = TOP + ROW * number
        yield f'<text x="8" y="{y + 19}" fill="{INK}">{escape(short(feed))}</text>'
        for one in (interval for interval in outcome.found if interval.feed == feed):
            x, end = _x(one.begin, outcome), _x(one.end if isfinite(one.end) else outcome.ended, outcome)
            width = max(2.0, end - x)
            look = f'fill="{FILLS[crew.index(one.worker) % 2]}"' + (' opacity="0.45"' if one.error else "")
            yield f'<rect x="{x:.1f}" y="{y + 5}" width="{width:.1f}" height="{ROW - 10}" rx="3" {look}/>'
            if width > 12:
                yield _text(x + width / 2, y + 19, str(children[one.worker, one.pid]), "#ffffff")
        for pair in (pair for pair in overlaps(outcome.found) if pair.feed == feed):
            x, end = _x(pair.begin, outcome), _x(min(pair.end, outcome.ended), outcome)
            yield f'<rect x="{x:.1f}" y="{y + 2}" width="{max(3.0, end - x):.1f}" height="{ROW - 4}" fill="{RED}"/>'
        if outcome.kill and outcome.kill.feed == feed:
            yield _text(_x(outcome.kill.sent, outcome), y + 21, "✗", RED, 'font-size="18" font-weight="bold"')


def _crew(found: list[Interval]) -> tuple[list[str], dict[tuple[str, int], int]]:
    """The workers, and a number for each child, counted by worker."""
    crew = sorted({interval.worker for interval in found})
    children: dict[tuple[str, int], int] = {}
    for worker in crew:
        pids = dict.fromkeys(interval.pid for interval in found if interval.worker == worker)
        children |= {(worker, pid): number for number, pid in enumerate(pids, 1)}
    return crew, children


def _text(x: float, y: float, said: str, fill: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y}" text-anchor="middle" fill="{fill}" {more}>{escape(said)}</text>'


def _legend(outcome: Outcome, y: int) -> Iterator[str]:
    crew, _ = _crew(outcome.found)
    signs = [(worker.partition("@")[0], FILLS[number % 2]) for number, worker in enumerate(crew)]
    for number, (said, fill) in enumerate([*signs, ("two at once", RED)]):
        x = LEFT + 120 * number
        yield f'<rect x="{x}" y="{y - 10}" width="12" height="12" rx="2" fill="{fill}"/>'
        yield f'<text x="{x + 18}" y="{y}" fill="{INK}">{escape(said)}</text>'
    x = LEFT + 120 * (len(signs) + 1)
    yield f'<text x="{x}" y="{y}" fill="{RED}" font-weight="bold">✗</text>'
    yield f'<text x="{x + 18}" y="{y}" fill="{INK}">killed   (pale: ended in an error)</text>'
