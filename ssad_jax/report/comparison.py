"""Tables of a comparison of detectors and of ablations (`python -m ssad_jax.compare`) that lies near the report."""

import dataclasses
import html
import re
from pathlib import Path

ROWS, COLUMNS = 60, 16  # shown of a table
RULE = re.compile(r"^\|?[\s:|-]*-[\s:|-]*\|?$")  # between head and rows


@dataclasses.dataclass(frozen=True)
class Table:
    """Text cells; they come from a file, so whoever shows them must escape them."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]
    left_out: int  # rows that are not among `rows`
    first: bool  # of its chapter
    source: str  # the file


def find(workdir: Path) -> list[Table]:
    """Tables of the first comparison in `workdir`, `<workdir>_compare` or the directory above; [] without any.

    A finished comparison has a `comparison.json`; the tables are those of the `comparison.md` written with it.
    """
    workdir = Path(workdir).absolute()
    for folder in (workdir, workdir.with_name(f"{workdir.name}_compare"), workdir.parent):
        path = folder / "comparison.md"
        if (folder / "comparison.json").is_file() and path.is_file():
            try:
                return from_markdown(path.read_text(encoding="utf-8"), f"{folder.name}/{path.name}")
            except (OSError, ValueError):
                return []
    return []


def from_markdown(text: str, source: str) -> list[Table]:
    """Every pipe table, titled by the headings that it stands under, with the text before it as a note."""
    tables, headings, notes, block = [], [], [], []
    chapters = set()
    for line in [*text.splitlines(), ""]:
        if line.lstrip().startswith("|"):
            block.append(line)
            continue
        if len(block) > 2 and RULE.match(block[1].strip()):
            chapter = tuple(headings[:2])
            tables.append(_table(headings[1:] or headings, notes, block, chapter not in chapters, source))
            chapters.add(chapter)
            notes = []
        block = []
        if line.startswith("#"):
            depth = len(line) - len(line.lstrip("#"))
            headings = [*headings[: depth - 1], _plain(line.lstrip("#"))]
            notes = notes if depth > 2 else []
        elif line.strip():
            notes.append(_plain(line))
    return tables


def _table(headings: list[str], notes: list[str], block: list[str], first: bool, source: str) -> Table:
    head, *rows = (_cells(line) for line in (block[0], *block[2:]))
    width = min(len(head), COLUMNS)
    rows = [[*row, *[""] * len(head)][:width] for row in rows]
    left_out = max(len(rows) - ROWS, 0)
    return Table(": ".join(headings), " ".join(notes), head[:width], rows[:ROWS], left_out, first, source)


def _cells(line: str) -> list[str]:
    """What the cells of a row say, without Markdown's escapes."""
    cells = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return [_plain(html.unescape(re.sub(r"\\([\\|])", r"\1", cell))) for cell in cells]


def _plain(text: str) -> str:
    return re.sub(r"\*\*|`", "", text).strip()
