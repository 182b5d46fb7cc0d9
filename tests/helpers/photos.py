"""Real photographs that come with packages of the tests."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import sklearn

PHOTOS = [
    Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",
    Path(sklearn.__file__).parent / "datasets/images/china.jpg",
    Path(sklearn.__file__).parent / "datasets/images/flower.jpg",
]
