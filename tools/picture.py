"""Draws the family tree as an SVG: lanes are areas, columns are years, lines lead to parents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape

from keifu.catalog import System, areas, systems

YEARS = ((1986, 2012), (2013, 2016), *((year, year) for year in range(2017, 2024)), (2024, 2026))
LANE, DOT, ROWS, LEFT, TOP, GAP = 40, 13, 3, 310, 46, 56
NAMED = 5  # a system with this many children or more gets its name written
COLOURS = ("#4c78a8", "#b8621b", "#3f8f52", "#b03a48", "#7558a5", "#806048")
Place = tuple[float, float]


def columns(rows: Mapping[str, System]) -> dict[int, tuple[float, float]]:
    """Left edge and width of each column: its fullest cell, three dots high, fits in."""
    cells = Counter((column(row.year), row.area) for row in rows.values())
    edges: dict[int, tuple[float, float]] = {}
    at = float(LEFT)
    for number in range(len(YEARS)):
        most = max((n for (c, _), n in cells.items() if c == number), default=1)
        width = max(-(-most // ROWS) * DOT, 2 * DOT)
        edges[number] = (at, width)
        at += width + GAP
    return edges


def column(year: int) -> int:
    """The column of a year."""
    return next(i for i, (first, last) in enumerate(YEARS) if first <= year <= last)


def places(rows: Mapping[str, System]) -> dict[str, Place]:
    """Where each system's dot is: its cell filled downwards, then to the right."""
    edges, lanes = columns(rows), {name: i for i, name in enumerate(areas())}
    filled: Counter[tuple[int, str]] = Counter()
    found = {}
    for row in sorted(rows.values(), key=lambda r: (r.year, r.id)):
        cell = column(row.year), row.area
        across, down = divmod(filled[cell], ROWS)
        filled[cell] += 1
        x = edges[cell[0]][0] + (across + 0.5) * DOT
        found[row.id] = (x, TOP + lanes[row.area] * LANE + (down + 0.5) * DOT)
    return found


def lines(rows: Mapping[str, System], at: Mapping[str, Place]) -> Iterator[str]:
    """A curve from every parent to its child, in the colour of the child's lane."""
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(areas())}
    for row in rows.values():
        for parent in row.parents:
            (x, y), (u, v) = at[parent], at[row.id]
            middle = (x + u) / 2
            yield (
                f'<path d="M{x:g} {y:g}C{middle:g} {y:g} {middle:g} {v:g} {u:g} {v:g}" '
                f'stroke="{colour[row.area]}"/>'
            )


def dots(rows: Mapping[str, System], at: Mapping[str, Place]) -> Iterator[str]:
    """Each system, with its idea as a tooltip."""
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(areas())}
    for row in rows.values():
        x, y = at[row.id]
        told = escape(f"{row.name} ({row.year}): {row.idea}")
        yield (
            f'<circle cx="{x:g}" cy="{y:g}" r="4" fill="{colour[row.area]}">'
            f"<title>{told}</title></circle>"
        )


def names(rows: Mapping[str, System], at: Mapping[str, Place]) -> Iterator[str]:
    """The names of those with the most children."""
    children = Counter(parent for row in rows.values() for parent in row.parents)
    for name, count in children.most_common():
        if count >= NAMED:
            x, y = at[name]
            yield f'<text class="name" x="{x + 6:g}" y="{y + 3:g}">{escape(rows[name].name)}</text>'


def picture() -> str:
    """The whole tree."""
    rows, titles = systems(), areas()
    at, edges = places(rows), columns(rows)
    width, height = sum(edges[len(YEARS) - 1]) + GAP, TOP + len(titles) * LANE + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" '
        'font-family="sans-serif" font-size="12">',
        "<style>.name{font-size:10px;font-weight:600;paint-order:stroke;stroke:#fff;"
        "stroke-width:3px;stroke-linejoin:round}</style>",
        f"<title>The family tree of language models: {len(rows)} systems</title>",
        f'<rect width="{width:g}" height="{height}" fill="#fff"/>',
    ]
    for number, (first, last) in enumerate(YEARS):
        label = str(first) if first == last else f"{first}–{last % 100:02d}"
        parts.append(f'<text x="{edges[number][0]:g}" y="24" fill="#555">{label}</text>')
    for number, title in enumerate(titles.values()):
        y = TOP + number * LANE - 1
        if number % 2 == 0:
            parts.append(f'<rect y="{y}" width="{width:g}" height="{LANE}" fill="#f4f4f4"/>')
        parts.append(f'<text x="8" y="{y + 24}">{escape(title)}</text>')
    parts += ['<g fill="none" stroke-opacity=".28">', *lines(rows, at), "</g>"]
    return "\n".join([*parts, *dots(rows, at), *names(rows, at), "</svg>", ""])
