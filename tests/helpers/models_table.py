"""Writes the table of docs/guide/models.md again: run it after a change of the rows."""

import re
from pathlib import Path

from hotset.architectures.listing import markdown

PAGE = Path(__file__).parents[2] / "docs/guide/models.md"
TABLE = re.compile(r"(<!-- models.*?-->\n)(.*?)(\n<!-- end of models -->)", re.DOTALL)

if __name__ == "__main__":
    PAGE.write_text(TABLE.sub(lambda found: found[1] + markdown() + found[3], PAGE.read_text()))
