"""Pages (HTML) without links and scripts: each can be mailed or kept as it is."""

import base64
import html
from collections.abc import Iterable, Sequence

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --line: #d5dae0; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ec; --soft: #9aa4af; --line: #3a424b; --page: #14181c; }
}
body { margin: 2rem auto; padding: 0 1rem; max-width: 62rem; color: var(--text); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; }
.facts, figcaption { color: var(--soft); }
figure { margin: 2.5rem 0; }
img { display: block; width: 100%; height: auto; border-radius: 8px; background: #fff; }
figcaption { margin-top: .5rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
code { overflow-wrap: anywhere; }
"""


def document(title: str, body: Iterable[str]) -> str:
    """A page of HTML; `title` is escaped already."""
    lines = "\n".join(body)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
{lines}
</body>
</html>
"""


def figure(name: str, png: bytes, caption: str) -> str:
    """A picture and what it shows."""
    data = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{name}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, which are escaped already."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    lines = "\n".join(row(cells, "td") for cells in rows)
    return (
        f'<div class="table"><table>\n<thead>{row(header, "th")}</thead>\n<tbody>\n{lines}\n'
        "</tbody>\n</table></div>"
    )
