"""A plot of ratios as SVG: a bar each, a line from the lowest to the highest, readable in light and dark."""

from html import escape
from math import ceil

from results_rows import Row

STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #222; } .title { font-size: 14px; font-weight: 600; }
.bar { fill: #ff9b50; }
.range { stroke: #5b2c00; stroke-width: 2; } .one { stroke: #777; stroke-dasharray: 3 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #eee; } .bar { fill: #b35c16; } .range { stroke: #ffe0c2; } .one { stroke: #aaa; }
}
</style>"""
LEFT, WIDTH, STEP, TOP = 440, 300, 20, 34


def plot(title: str, rows: list[Row]) -> str:
    """One bar for each row's ratio; the dashed line is 1, where both are equal."""
    shown = [row for row in rows if row.ratio is not None]
    most = max(1, *(row.high or row.ratio or 0 for row in shown))
    scale = WIDTH / (ceil(most * 2) / 2)
    height = TOP + STEP * len(shown) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 60} {height}" role="img" '
        f'aria-label="{escape(title)}">',
        STYLE,
        f'<text class="title" x="8" y="18">{escape(title)}</text>',
    ]
    others = {row.other for row in shown}
    for place, row in enumerate(shown):
        y = TOP + STEP * place
        ratio = row.ratio or 0
        lines.append(f'<text x="8" y="{y + 11}">{escape(_label(row, len(others) > 1))}</text>')
        lines.append(f'<rect class="bar" x="{LEFT}" y="{y}" width="{ratio * scale:.1f}" height="14"/>')
        end = LEFT + ratio * scale
        if row.low is not None and row.high is not None:
            low, high = LEFT + row.low * scale, LEFT + row.high * scale
            end = max(end, high)
            lines.append(f'<line class="range" x1="{low:.1f}" y1="{y + 7}" x2="{high:.1f}" y2="{y + 7}"/>')
        lines.append(f'<text x="{end + 6:.1f}" y="{y + 11}">{ratio:.2f}</text>')
    one = LEFT + scale
    lines.append(f'<line class="one" x1="{one:.1f}" y1="{TOP - 6}" x2="{one:.1f}" y2="{height - 8}"/>')
    return "\n".join([*lines, "</svg>", ""])


def _label(row: Row, named: bool) -> str:
    """Model and test; and what it is compared with, where that is `named`, as rows of a plot differ in it."""
    test = row.test.removeprefix("decode, ").removeprefix("prefill, ")
    label = f"{test}; {row.other}" if named else f"{row.model}, {test}"
    return label if len(label) <= 68 else label[:67] + "…"
