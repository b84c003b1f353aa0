"""Tables of a comparison of detectors or of ablations that lies beside the report (`python -m ssad_jax.compare`).

`comparison.md` is what the comparison shows to people, so its tables are shown as they stand. Where there is only
`comparison.json`, every list or mapping of flat records in it becomes a table.
"""

import dataclasses
import json
import re
from pathlib import Path

ROWS, COLUMNS = 60, 16  # shown of a table
RULE = re.compile(r"^\|?[\s:|-]*-[\s:|-]*\|?$")  # between head and rows


@dataclasses.dataclass(frozen=True)
class Table:
    """Text cells; they come from a file, so whoever shows them must escape them."""

    title: str
    head: list[str]
    rows: list[list[str]]
    left_out: int  # rows that are not among `rows`
    source: str


def find(directory: Path) -> list[Table]:
    """Tables of the comparison in `directory`, else in the directory above; [] where there is none or it is damaged."""
    for folder in (Path(directory), Path(directory).parent):
        if not (folder / "comparison.json").is_file():
            continue
        try:
            if (folder / "comparison.md").is_file():
                return from_markdown((folder / "comparison.md").read_text(encoding="utf-8"), "comparison.md")
            return from_records(json.loads((folder / "comparison.json").read_text(encoding="utf-8")), "comparison.json")
        except (OSError, ValueError):
            return []
    return []


def from_markdown(text: str, source: str) -> list[Table]:
    """Every pipe table, under its last heading or line of text."""
    tables, title, block = [], "", []
    for line in [*text.splitlines(), ""]:
        if line.lstrip().startswith("|"):
            block.append(line.strip())
            continue
        if len(block) > 2 and RULE.match(block[1]):
            head, *rows = ([_plain(c) for c in _cells(row)] for row in (block[0], *block[2:]))
            tables.append(_table(title, head, rows, source))
        block = []
        title = _plain(line.strip().lstrip("#").strip()) or title
    return tables


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _plain(text: str) -> str:
    return re.sub(r"[*`]+", "", text)


def from_records(value, source: str, title: str = "") -> list[Table]:
    """Tables of the lists and mappings of flat records anywhere in a JSON value."""
    members = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        members = [("", record) for record in value]
    records = [(name, _flat(record)) for name, record in members if isinstance(record, dict)]
    flat = [(name, record) for name, record in records if record]
    if members and len(flat) == len(members):
        named = [n for n, _ in flat if n]
        keys = list(dict.fromkeys(key for _, record in flat for key in record))
        rows = [([n] if named else []) + [_text(r.get(k)) for k in keys] for n, r in flat]
        return [_table(title, ([""] if named else []) + keys, rows, source)]
    tables = []
    for name, member in members:
        tables += from_records(member, source, f"{title} {name}".strip())
    return tables


def _flat(record: dict) -> dict:
    return {k: v for k, v in record.items() if v is None or isinstance(v, (str, int, float))}


def _text(value) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(title: str, head: list[str], rows: list[list[str]], source: str) -> Table:
    rows = [row[:COLUMNS] + [""] * (min(len(head), COLUMNS) - len(row)) for row in rows]
    return Table(title, head[:COLUMNS], rows[:ROWS], max(len(rows) - ROWS, 0), source)
