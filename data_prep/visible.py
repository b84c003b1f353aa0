"""Text of unknown origin as it can be shown: in a terminal, a log, a page."""

import unicodedata


def visible(text) -> str:
    """The text with every character that is not seen (controls, terminal escapes, marks that reorder or hide what
    stands beside them) written as \\uXXXX; newlines and tabs stay."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else _code(c) for c in str(text))


def _code(character: str) -> str:
    value = ord(character)
    return f"\\u{value:04x}" if value < 0x10000 else f"\\U{value:08x}"
