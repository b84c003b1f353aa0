"""Elements of inline SVG. Whatever goes in as text or attribute is escaped; only `element`'s own result is not."""

from collections.abc import Iterable

import numpy as np
from markupsafe import Markup, escape


def element(name: str, *children, **attributes) -> Markup:
    """<name attributes>children</name>; `_` in an attribute's name stands for `-`, None leaves it out.

    Strings among the children are escaped, elements are not.
    """
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(v))}"' for key, v in attributes.items() if v is not None
    )
    inner = "".join(str(escape(child)) for child in children)
    return Markup(f"<{name}{text}>{inner}</{name}>")


def _value(value) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{value:.1f}".removesuffix(".0")
    return str(value)


def picture(width: float, height: float, title: str, children: Iterable, klass: str = "") -> Markup:
    """An <svg> that scales with the page; `title` is what a screen reader says."""
    return element(
        "svg", *children, viewBox=f"0 0 {_value(float(width))} {_value(float(height))}", role="img", aria_label=title,
        class_=klass or None,
    )  # fmt: skip


def label(x: float, y: float, text: str, **attributes) -> Markup:
    return element("text", text, x=float(x), y=float(y), **attributes)


def tooltip(text: str) -> Markup:
    """Shown by browsers over the element that it is a child of."""
    return element("title", text)


def polyline(x, y, **attributes) -> Markup:
    points = " ".join(f"{_value(float(a))},{_value(float(b))}" for a, b in zip(x, y, strict=True))
    return element("polyline", points=points, fill="none", **attributes)
