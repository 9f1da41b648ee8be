"""What `keifu bench` found as a picture: bars a subject, the machine's limit as a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keifu.evaluation.plot import blank, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = {
    "decode": "decoding (tokens a second)",
    "prefill": "reading prompts (tokens a second)",
    "first_token": "first token (seconds)",
    "memory": "peak memory (MB)",
}
UNITS = {"memory": 1e6}
_LIMIT = "black"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """One panel a measure; of a grid, one row of panels a context, with groups of bars by streams.

    Raises:
        KeifuError: matplotlib is not installed, or the file cannot be written.
    """
    cells = _cells(found)
    contexts = sorted({cell["context"] for cell in cells})
    subjects = list(dict.fromkeys(name for cell in cells for name in cell["subjects"]))
    figure = blank(figsize=(1.0 + 3.6 * len(MEASURES), 0.9 + 2.9 * len(contexts)))
    panels = figure.subplots(len(contexts), len(MEASURES), squeeze=False)
    for line, context in zip(panels, contexts, strict=True):
        here = [cell for cell in cells if cell["context"] == context]
        for panel, measure in zip(line, MEASURES, strict=True):
            _bars(panel, here, subjects, measure)
        line[0].set_title(f"after {context} tokens", fontsize=10, loc="left")
    marks = dict(zip(*reversed(panels[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(marks.values(), marks, loc="outside lower center", ncols=len(marks), fontsize=8)
    settings = found["settings"]
    title = f"{settings['model']}, {settings['threads']} threads, {found['machine']['processor']}"
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def _cells(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """By streams and context, each subject's measures and the limits."""
    if "rows" not in found:
        alone = {"batch": 1, "context": found["settings"]["prompt"], "limits": found["limits"]}
        return [{**alone, "subjects": found["subjects"]}]
    return [
        {
            "batch": limits["batch"],
            "context": limits["context"],
            "limits": limits,
            "subjects": {
                row["subject"]: row
                for row in found["rows"]
                if all(row[axis] == limits[axis] for axis in ("batch", "context"))
            },
        }
        for limits in found["limits"]
    ]


def _bars(
    panel: Axes, cells: Sequence[Mapping[str, Any]], subjects: Sequence[str], measure: str
) -> None:
    """A group of bars for each number of streams; the limit lies across the group."""
    wide = 0.8 / len(subjects)
    for place, name in enumerate(subjects):
        rows = [(at, cell["subjects"].get(name)) for at, cell in enumerate(cells)]
        spots = [at - 0.4 + wide * (place + 0.5) for at, row in rows if row]
        tall = [row[measure] / UNITS.get(measure, 1.0) for _, row in rows if row]
        bars = panel.bar(spots, tall, wide, label=name, color=f"C{place}")
        panel.bar_label(bars, [_short(value) for value in tall], fontsize=6, rotation=90, padding=2)
    for at, cell in enumerate(cells):
        if measure in cell["limits"]:
            label = "limit of the machine" if at == 0 else ""
            most = cell["limits"][measure]
            panel.hlines(most, at - 0.45, at + 0.45, _LIMIT, linewidth=1.5, label=label)
    names = [f"{cell['batch']} stream{'s' * (cell['batch'] > 1)}" for cell in cells]
    panel.set_xticks(range(len(cells)), names, fontsize=8)
    panel.tick_params(axis="y", labelsize=8)
    panel.margins(y=0.18)
    panel.set_ylim(bottom=0)
    panel.set_ylabel(MEASURES[measure], fontsize=8)
    panel.grid(True, axis="y", alpha=0.3)
    panel.set_axisbelow(True)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
