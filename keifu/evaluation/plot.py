"""Findings as a picture: a heat map, or lines. Needs matplotlib (`pip install 'keifu[plot]'`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keifu.core.atomic import written as whole
from keifu.core.errors import KeifuError
from keifu.evaluation.findings import Column, Findings, Heat, Lines, Row, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
_LABELS = {
    "bytes": "bytes", "seconds": "seconds", "rate": "tokens a second", "percent": "per cent",
    "share": "share", "nats": "nats", "count": "", "name": "",
}  # fmt: skip


def check(path: Path) -> None:
    """Refuse what `draw` could not do, before anything is measured."""
    if path.suffix.lower() not in FORMATS:
        raise KeifuError(f"--plot {path}: the name must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise KeifuError(f"--plot {path}: there is no folder {path.parent}")
    blank()


def draw(findings: Findings, path: Path) -> None:
    """Write the picture of these findings.

    Raises:
        KeifuError: matplotlib is not installed, or the file cannot be written.
    """
    check(path)
    picture = findings.picture
    if isinstance(picture, Heat):
        figure = _heat(findings, picture)
    else:
        figure = _lines(findings, picture)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all; its name says how."""
    with whole(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)


def blank(**settings: Any) -> Figure:
    """An empty one; KeifuError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as missing:
        raise KeifuError(
            f"a plot needs {missing.name}: pip install 'keifu[plot]', or leave --plot out"
        ) from None
    return Figure(**settings, layout="constrained")


def _heat(findings: Findings, picture: Heat) -> Figure:
    """One panel a model: depth downwards, as the text runs."""
    names = findings.values("model")
    xs, ys = findings.values(picture.x), findings.values(picture.y)
    size = (
        min(24.0, len(names) * (1.6 + 0.9 * max(len(xs), 3)) + 1.2),
        1.6 + 0.5 * max(len(ys), 4),
    )
    figure = blank(figsize=size)
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for name, panel in zip(names, panels, strict=True):
        cells = {
            (row[picture.x], row[picture.y]): row[picture.value]
            for row in findings.rows
            if row["model"] == name
        }
        grid = [[_number(cells.get((x, y))) for x in xs] for y in ys]
        image = panel.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for row, line in enumerate(grid):
            for at, value in enumerate(line):
                ink = "black" if 0.1 < value < 0.9 else "white"
                panel.text(at, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
        panel.set_xticks(range(len(xs)), [written(x, findings.column(picture.x).kind) for x in xs])
        panel.set_yticks(range(len(ys)), [written(y, findings.column(picture.y).kind) for y in ys])
        panel.set_xlabel(f"{picture.x} (tokens)")
        panel.set_title(str(name), fontsize=10)
    panels[0].set_ylabel(picture.y)
    figure.colorbar(image, ax=list(panels), label=picture.value)
    figure.suptitle(findings.title, fontsize=11)
    return figure


def _lines(findings: Findings, picture: Lines) -> Figure:
    """One panel a measure, one line a model."""
    values = [v for v in picture.values if any(r.get(v) is not None for r in findings.rows)]
    figure = blank(figsize=(1.2 + 4.2 * len(values), 3.8))
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    others = [c.name for c in findings.axes if c.name != picture.x]
    series = list(dict.fromkeys(tuple(row[o] for o in others) for row in findings.rows))
    for value, panel in zip(values, panels, strict=True):
        for place in series:
            rows = [
                row
                for row in findings.rows
                if tuple(row[o] for o in others) == place and row.get(value) is not None
            ]
            label = ", ".join(map(str, place))
            panel.plot(_column(rows, picture.x), _column(rows, value), marker="o", label=label)
        _dress(panel, findings, picture, findings.column(value))
    panels[0].legend(fontsize=8)
    figure.suptitle(findings.title, fontsize=11)
    return figure


def _dress(panel: Axes, findings: Findings, picture: Lines, column: Column) -> None:
    """Scales, ticks and names."""
    kind = findings.column(picture.x).kind
    xs = sorted({_number(row[picture.x]) for row in findings.rows})
    if picture.log:
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
    panel.set_xticks(xs, [written(x, kind) for x in xs])
    panel.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    if column.kind == "share":
        panel.set_ylim(-0.03, 1.03)
    unit = _LABELS[column.kind]
    panel.set_xlabel(picture.x)
    panel.set_ylabel(f"{column.name} ({unit})" if unit else column.name)
    panel.grid(True, alpha=0.3)


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [_number(row[name]) for row in rows]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
