"""The colours of blame: from the white of a usual service to the brown of the worst."""

import base64
import io

import matplotlib.image
import numpy as np
from markupsafe import Markup

from ssad_jax.report import svg

# Light to dark, so that order survives colour blindness and grey print (after Brewer's YlOrBr, from white).
RAMP = ((255, 255, 255), (254, 240, 201), (254, 205, 110), (246, 148, 44), (208, 84, 8), (140, 45, 4), (84, 24, 4))
USUAL = 0.12  # of the ramp, where it begins: at what most normal runs stay below


def pixels(share: np.ndarray) -> np.ndarray:
    """[...] in 0..1 to [..., 4] uint8 along `RAMP`; 0 is transparent."""
    share = np.clip(np.nan_to_num(np.asarray(share, np.float64)), 0, 1)
    places = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(share, places, [c[i] for c in RAMP]) for i in range(3)]
    return np.stack([*channels, np.where(share > 0, 255, 0)], axis=-1).astype(np.uint8)


def colour(share: float) -> str:
    return "#" + "".join(f"{c:02x}" for c in pixels(np.array(share))[:3])


def ink_on(share: float) -> str:
    """The class of text that is readable on `colour(share)`."""
    return "light" if share > 0.55 else "dark"


def blame_share(blame, top: float):
    """Blame on the ramp: 0 up to what most normal runs stay below (1), then logarithmic up to `top`."""
    top = max(top, 10.0)
    return np.clip(USUAL + (1 - USUAL) * np.log(np.maximum(blame, 1e-9)) / np.log(top), 0, 1) * (np.asarray(blame) > 1)


def png(image: np.ndarray) -> str:
    """A data URI of [rows, columns, 4] uint8."""
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, image, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def legend(top: float) -> Markup:
    """The colours of blame, with a few of its values."""
    width, height = 200.0, 10.0
    shares = np.linspace(USUAL, 1, 120)
    image = np.repeat(pixels(shares)[None], 2, axis=0)
    parts = [svg.element("image", href=png(image), x=0, y=0, width=width, height=height, preserveAspectRatio="none")]
    values = [v for v in (1, 3, 10, 30, 100, 300, 1000) if v <= top]
    for value in values:
        x = width * (blame_share(value * (1 + 1e-9), top) - USUAL) / (1 - USUAL)
        parts.append(svg.label(float(x), height + 11, f"{value}", class_="tick", text_anchor="middle"))
    shifted = svg.element("g", *parts, transform="translate(8 0)")
    return svg.picture(width + 16, height + 14, "Colours of blame", [shifted], "legend")
