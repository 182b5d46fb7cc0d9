"""`gpi_pack`, also where torchvision is missing or does not load."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from gpi_latents.errors import DataError, first_line

INSTALL = (
    "run `make gpi`, or `pip install --no-deps gpi_pack==0.2.1` and `pip install scikit-learn patsy matplotlib`. "
    "Plain `pip install gpi_pack` may replace your torch by another build"
)
# What gpi_pack takes from libraries that look for torchvision themselves.
TRANSFORMERS = ["AutoTokenizer", "AutoModelForCausalLM", "CLIPTextModel", "CLIPTokenizer"]
DIFFUSERS = ["AutoencoderKL", "UNet2DConditionModel", "DDIMScheduler"]


def import_gpi_pack() -> ModuleType:
    """The real `gpi_pack`.

    It imports torchvision for three transforms of its own extraction, which no estimate uses. Where torchvision does
    not load, which is common beside a CPU build of torch, an empty module stands in its place during the import.

    Raises:
        DataError: `gpi_pack`, or a library that it needs, is not installed.
    """
    if "gpi_pack" in sys.modules:
        return sys.modules["gpi_pack"]
    if importlib.util.find_spec("gpi_pack") is None:
        raise DataError(f"gpi_pack is not installed: {INSTALL}")
    try:
        return importlib.import_module("gpi_pack") if _torchvision_loads() else _imported_with_stand_in()
    except ImportError as error:
        raise DataError(f"gpi_pack cannot be imported ({first_line(error)}): {INSTALL}") from error


def _torchvision_loads() -> bool:
    try:
        import torchvision.transforms
    except (ImportError, RuntimeError, OSError):  # missing, or built for another torch
        return False
    return torchvision.transforms is not None


def _imported_with_stand_in() -> ModuleType:
    import diffusers
    import transformers

    for library, names in ((transformers, TRANSFORMERS), (diffusers, DIFFUSERS)):
        for name in names:  # before they could find the stand-in
            getattr(library, name)
    stand_in, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    stand_in.transforms = transforms  # type: ignore[attr-defined]
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "torchvision"}
    sys.modules |= {"torchvision": stand_in, "torchvision.transforms": transforms}
    try:
        return importlib.import_module("gpi_pack")
    finally:
        del sys.modules["torchvision"], sys.modules["torchvision.transforms"]
        sys.modules |= before
