"""What a run found, as text: medians, the middle half of the rounds, and ratios within the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stats import median, percentile, quartiles

Found = dict[str, dict[str, dict[str, list[Any]]]]
Row = tuple[float, list[str]]


def spread(values: list[float], digits: int = 1) -> str:
    low, high = quartiles(values)
    return f"({low:,.{digits}f} to {high:,.{digits}f})"


def _ratio(base: float | None, value: float) -> str:
    return f"{base / value:6.2f} x" if base and value else "       -"


def _raw(table: dict[str, list[Any]]) -> str | None:
    return next((name for name in table if name.startswith(("raw", "threading", "asyncio."))), None)


def _cycles(table: dict[str, list[float]]) -> tuple[str, list[Row]]:
    base = _raw(table)
    ground = median(table[base]) if base else None
    rows = []
    for name, values in table.items():
        middle = median(values)
        rows.append((middle, [name, f"{middle:,.1f}", spread(values), _ratio(ground, middle)]))
    return f"| µs per cycle | middle half of the rounds | speed against {base or 'nothing'}", rows


def _handoffs(table: dict[str, list[list[float]]]) -> tuple[str, list[Row]]:
    rows = []
    for name, rounds in table.items():
        every = [1000 * value for values in rounds for value in values]
        if every:
            half, most = median(every), percentile(every, 99)
            rows.append((half, [name, f"{half:,.2f}", f"{most:,.2f}", spread(every, 2), str(len(every))]))
        else:
            rows.append((1e9, [name, "none", "", "", "0"]))
    return "| p50 ms | p99 ms | middle half | handoffs seen", rows


def column(rounds: list[dict[str, Any]], what: str) -> list[float]:
    return [each[what] for each in rounds if each.get(what) is not None]


def _middle(rounds: list[dict[str, Any]], what: str, digits: int) -> str:
    values = column(rounds, what)
    return f"{median(values):,.{digits}f}" if values else "-"


def _contended(table: dict[str, list[dict[str, Any]]]) -> tuple[str, list[Row]]:
    rows = []
    for name, rounds in table.items():
        changes = column(rounds, "changes")
        words = [name, f"{median(changes):,.0f}", spread(changes, 0), _middle(rounds, "grants", 0)]
        words += [_middle(rounds, "jain", 2), _middle(rounds, "starved", 0), _middle(rounds, "requests", 2)]
        words += [_middle(rounds, "requests_per_change", 2), _middle(rounds, "drained", 1)]
        rows.append((-median(changes), words))
    header = "| owner changes/s | middle half | grants/s | Jain | starved | requests per grant | per owner change"
    return header + "| s until all had ended", rows


def _crowd(table: dict[str, list[dict[str, Any]]]) -> tuple[str, list[Row]]:
    rows = []
    for name, rounds in table.items():
        words = [name, _middle(rounds, "requests", 1), _middle(rounds, "cpu", 1)]
        words += [_middle(rounds, "descriptors", 0), _middle(rounds, "threads", 0)]
        rows.append((median(column(rounds, "requests") or [0]), words))
    return "| requests/s | client CPU % | descriptors | threads", rows


def _names(table: dict[str, list[dict[str, Any]]]) -> tuple[str, list[Row]]:
    rows = []
    for name, rounds in table.items():
        speed = median(column(rounds, "per_second"))
        left = ", ".join(f"{count:,} {kind}" for kind, count in rounds[-1]["left"].items()) or "-"
        rows.append((-speed, [name, f"{speed:,.0f}", f"{rounds[-1]['cycles']:,}", left]))
    return "| cycles/s | names | left behind", rows


def _held(table: dict[str, list[dict[str, Any]]]) -> tuple[str, list[Row]]:
    rows = []
    for name, rounds in table.items():
        words = [name] + [_middle(rounds, what, 0) for what in ("held", "traced", "threads")]
        words += [_middle(rounds, "cpu", 1), _middle(rounds, "requests", 0)]
        rows.append((median(column(rounds, "traced")), words))
    return "| held | bytes each, by tracemalloc | threads | CPU % | requests/s", rows


def _starts(table: dict[str, list[float]]) -> tuple[str, list[Row]]:
    rows = [(median(values), [name, f"{median(values):,.1f}", spread(values)]) for name, values in table.items()]
    return "| ms | middle half of the rounds", rows


SHAPES: dict[str, Callable[[dict[str, list[Any]]], tuple[str, list[Row]]]] = {
    "S1": _cycles,
    "S2": _handoffs,
    "S3,": _contended,
    "S3b": _crowd,
    "S4, names": _names,
    "S4, held": _held,
    "S5": _starts,
}
CAPTIONS = {
    "S1": "acquire + release, uncontended",
    "S2": "from release() in one to the return of acquire() in the next",
    "S3,": "all want the same lock, and again at once",
    "S3b": "100 wait for a lock that stays held",
}


def show(found: Found) -> str:
    """All tables."""
    text: list[str] = []
    for title, groups in found.items():
        caption = next((words for kind, words in CAPTIONS.items() if title.startswith(kind)), "")
        for group, table in groups.items():
            text += ["", f"{title}: {caption}" if caption else title, *lines(title, group, table)]
    return "\n".join(text)


def lines(title: str, group: str, table: dict[str, list[Any]]) -> list[str]:
    """One table, the best first."""
    header, rows = SHAPES[next(kind for kind in SHAPES if title.startswith(kind))](table)
    words = [[group or "fresh process", *(part.strip() for part in header.split("|")[1:])]]
    return aligned(words + [row for _, row in sorted(rows, key=lambda row: row[0])])


def aligned(rows: list[list[str]], left: int = 1) -> list[str]:
    """The columns below each other, as Markdown reads them. The first `left` hold words, the others figures."""
    width = max(len(row) for row in rows)
    rows = [row + [""] * (width - len(row)) for row in rows]
    widths = [max(len(row[at]) for row in rows) for at in range(width)]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.ljust(widths[at]) if at < left else cell.rjust(widths[at]) for at, cell in enumerate(row)]
        lines.append(f"| {' | '.join(cells)} |")
        if number == 0:
            lines.append("|-" + "-|-".join("-" * wide for wide in widths) + "-|")
    return lines
