"""Findings on a terminal: a table of all columns, or a map where there are two axes."""

from __future__ import annotations

import shutil

from keifu.cli.table import table
from keifu.evaluation.findings import Findings, Heat, Value, written

_RED, _YELLOW, _GREEN = "\033[30;41m", "\033[30;43m", "\033[30;42m"
_END = "\033[0m"
_CELL = 8


def drawn(findings: Findings, *, colours: bool, width: int | None = None) -> str:
    """The findings as text that fits the terminal.

    Args:
        colours: whether cells of a map are red, yellow or green.
        width: columns (default: the terminal's).
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    parts = [findings.title]
    if isinstance(findings.picture, Heat):
        parts += _maps(findings, findings.picture, colours, width)
    else:
        parts.append(_table(findings, width))
    parts += ["\n".join(findings.notes)] if findings.notes else []
    return "\n\n".join(parts)


def _table(findings: Findings, width: int) -> str:
    columns = findings.shown()
    if len(findings.values("model")) == 1:
        columns = [c for c in columns if c.name != "model"]
    rows = [[written(row[c.name], c.kind) for c in columns] for row in findings.rows]
    return table([c.name for c in columns], rows, width)


def _maps(findings: Findings, picture: Heat, colours: bool, width: int) -> list[str]:
    """One map a model and share: y downwards, as the text runs."""
    xs, ys = findings.values(picture.x), findings.values(picture.y)
    shares = [c for c in findings.shown() if c.kind == "share"]
    lead = max(len(picture.y), *(len(written(y, findings.column(picture.y).kind)) for y in ys)) + 2
    many = max(1, (width - lead) // _CELL)
    parts: list[str] = []
    for model in findings.values("model"):
        cells = {(r[picture.x], r[picture.y]): r for r in findings.rows if r["model"] == model}
        for share in shares:
            lines = [f"{model}: {share.name}, {share.about}"]
            for start in range(0, len(xs), many):
                block = xs[start : start + many]
                kind = findings.column(picture.x).kind
                head = "".join(f"{written(x, kind):>{_CELL}}" for x in block)
                lines.append(f"{picture.y:<{lead}}{head}")
                for y in ys:
                    row = written(y, findings.column(picture.y).kind)
                    found = [cells.get((x, y), {}).get(share.name) for x in block]
                    lines.append(f"{row:>{lead - 2}}  " + "".join(_cell(v, colours) for v in found))
            parts.append("\n".join(lines))
    return parts


def _cell(value: Value, colours: bool) -> str:
    text = f"{written(value, 'share'):>{_CELL}}"
    if not colours or not isinstance(value, int | float):
        return text
    paint = _GREEN if value >= 0.75 else _YELLOW if value >= 0.25 else _RED
    return f" {paint}{text[1:]}{_END}"
