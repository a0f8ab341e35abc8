"""Writes README's table of models anew: run it after a change of the rows."""

import re
from pathlib import Path

from hotset.architectures.listing import markdown

README = Path(__file__).parents[2] / "README.md"
TABLE = re.compile(r"(<!-- models.*?-->\n)(.*?)(\n<!-- end of models -->)", re.DOTALL)

if __name__ == "__main__":
    README.write_text(TABLE.sub(lambda found: found[1] + markdown() + found[3], README.read_text()))
