"""Mutations that keep the form of the input, so that the fuzzer gets past the parser: a cell, a JSON value, a line."""

import json
import random

HUGE = "9" * 5000
NASTY = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 1.5, -0.0, 1e30, 1e308,
    -1e308,
    1_700_000_000, 1_700_000_000_000_000, 1_700_000_000_000_000_000, 4_102_444_800_000_000_000, "", " ", "NaN", "-inf",
    "1e999", HUGE, "\u0663", "\x00", "\ufeff", "\ufffd", "\u2028", "a" * 3000, "2019-11-25T16:12:29.58+01:00",
    "9999-12-31T23:59:59.999999999-23:59", "0001-01-01T00:00:00+23:59", "2019-02-30 25:61:61", "{", "[]", '"', "'",
    ",", "\r", "\n", "..", "../..", "%s", "(?:", "-", "root", [], {}, [None], [[]], {"": None}, [1, "2"], {"a": [{}]},
)  # fmt: skip


def mutated(data: bytes, form: str, seed: int) -> bytes:
    """`data` with some of its pieces changed; the same for the same seed."""
    draw = random.Random(seed)
    try:
        out = _FORMS[form](data, draw)
    except (ValueError, RecursionError, IndexError):
        return data
    if draw.random() < 0.05:
        out = _encoded(out, draw)
    return out


def _json(data: bytes, draw: random.Random) -> bytes:
    value = json.loads(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        value = _changed(value, draw)
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5)
    if draw.random() < 0.02:  # nested deeper than any parser recurses
        depth = draw.choice((200, 900, 1000, 1100, 2000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")


def _changed(value, draw: random.Random):
    """`value` with one place in it changed: replaced, removed, repeated, or moved."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key, out = draw.choice(list(value)), dict(value)
        what = draw.random()
        if what < 0.8:
            out[key] = _changed(value[key], draw)
        elif what < 0.9:
            del out[key]
        else:
            out[draw.choice((key + "x", "", draw.choice(list(value))))] = value[key]
        return out
    if isinstance(value, list) and value and draw.random() < 0.85:
        at, out = draw.randrange(len(value)), list(value)
        what = draw.random()
        if what < 0.8:
            out[at] = _changed(value[at], draw)
        elif what < 0.9:
            del out[at]
        else:
            out += [value[at]] * draw.choice((1, 2, 20))
        return out
    if isinstance(value, str) and draw.random() < 0.3:
        return _changed_text(value, draw)
    return draw.choice(NASTY)


def _changed_text(text: str, draw: random.Random) -> str:
    at, to = sorted((draw.randint(0, len(text)), draw.randint(0, len(text))))
    piece = draw.choice((text[at:to], "", str(draw.choice(NASTY)), chr(draw.randrange(0x250))))
    return text[:at] + piece * draw.choice((1, 1, 2)) + text[to:]


def _csv(data: bytes, draw: random.Random) -> bytes:
    rows = [line.split(b",") for line in data.split(b"\n")]
    for _ in range(draw.choice((1, 1, 2, 4))):
        row = draw.choice(rows)
        at, what = draw.randrange(len(row)), draw.random()
        if what < 0.6:
            nasty = str(draw.choice(NASTY)).encode()
            row[at] = draw.choice((nasty, b'"' + nasty.replace(b'"', b'""') + b'"'))
        elif what < 0.7:
            row[at] = _changed_text(row[at].decode("latin-1"), draw).encode("latin-1", "replace")
        elif what < 0.8:
            row[at], other = draw.choice(row), row[at]
            row[-1] = other
        elif what < 0.9:
            rows.insert(draw.randrange(len(rows) + 1), list(row))
        else:
            row.pop(at) if len(row) > 1 else rows.remove(row)
        rows = rows or [[b""]]
    return draw.choice((b"\n", b"\n", b"\n", b"\r\n")).join(b",".join(row) for row in rows)


def _text(data: bytes, draw: random.Random) -> bytes:
    lines = data.decode("utf-8").split("\n")
    for _ in range(draw.choice((1, 1, 2, 4))):
        at, what = draw.randrange(len(lines)), draw.random()
        if what < 0.7:
            lines[at] = _changed_text(lines[at], draw)
        elif what < 0.85:
            lines.insert(draw.randrange(len(lines) + 1), lines[at])
        else:
            lines[at] = draw.choice(lines)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _bytes(data: bytes, draw: random.Random) -> bytes:
    at, to = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
    piece = draw.choice((b"", data[at:to] * 2, draw.randbytes(min(to - at, 16)), draw.randbytes(4)))
    return data[:at] + piece + (data[to:] if draw.random() < 0.8 else b"")


def _encoded(data: bytes, draw: random.Random) -> bytes:
    """As other programs and broken copies write it."""
    how = draw.randrange(5)
    if how == 0:
        return data.decode("utf-8", "replace").encode("utf-16")
    if how == 1:
        return data.decode("utf-8", "replace").encode("latin-1", "replace")
    if how == 2:
        return b"\xef\xbb\xbf" + data
    if how == 3:
        return data[: draw.randint(0, len(data))]
    return data.replace(b"a", b"\x00" if draw.random() < 0.5 else b"\xff")


_FORMS = {"json": _json, "csv": _csv, "text": _text, "bytes": _bytes}
