"""Elements of inline SVG. Whatever goes in as text or attribute is escaped; only `element`'s own result is not."""

from collections.abc import Iterable

import numpy as np
from markupsafe import Markup, escape

# Light to dark, so that order survives colour blindness and grey print (after Brewer's YlOrBr, from white).
RAMP = ((255, 255, 255), (254, 240, 201), (254, 205, 110), (246, 148, 44), (208, 84, 8), (140, 45, 4), (84, 24, 4))


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


def heat(share: np.ndarray) -> np.ndarray:
    """[...] in 0..1 to [..., 4] uint8 along `RAMP`; 0 is transparent."""
    share = np.clip(np.nan_to_num(np.asarray(share, np.float64)), 0, 1)
    places = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(share, places, [c[i] for c in RAMP]) for i in range(3)]
    return np.stack([*channels, np.where(share > 0, 255, 0)], axis=-1).astype(np.uint8)


def colour(share: float) -> str:
    return "#" + "".join(f"{c:02x}" for c in heat(np.array(share))[:3])


def ink_on(share: float) -> str:
    """The class of text that is readable on `colour(share)`."""
    return "light" if share > 0.55 else "dark"


def blame_share(blame, top: float):
    """Blame on the ramp: 0 up to what 5% of normal windows exceed (1), then logarithmic up to `top`."""
    top = max(top, 10.0)
    return np.clip(0.12 + 0.88 * np.log(np.maximum(blame, 1e-9)) / np.log(top), 0, 1) * (np.asarray(blame) > 1)
