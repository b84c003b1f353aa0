"""Arrays in an .npz file as this program writes it: plain, and stored as they are."""

from pathlib import Path

import numpy as np


def load(path: Path | str) -> dict[str, np.ndarray]:
    """All arrays of the file.

    Raises ValueError, or what numpy raises, if it is damaged, holds objects (which would have to be unpickled), or is
    compressed: a small file must not fill the memory.
    """
    with np.load(path, allow_pickle=False) as file:
        if sum(entry.file_size for entry in file.zip.infolist()) > Path(path).stat().st_size:
            raise ValueError("it is compressed, as this program writes none")
        return dict(file)
