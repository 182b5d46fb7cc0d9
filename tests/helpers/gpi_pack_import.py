"""`gpi_pack` as the tests and the validation study use it."""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType

import diffusers
import matplotlib
import transformers

TRANSFORMERS = ["AutoTokenizer", "AutoModelForCausalLM", "CLIPTextModel", "CLIPTokenizer"]
DIFFUSERS = ["AutoencoderKL", "UNet2DConditionModel", "DDIMScheduler"]


def import_gpi_pack() -> ModuleType:
    """The real `gpi_pack`, also where torchvision is missing or does not load beside this build of torch.

    `gpi_pack` imports torchvision for three transforms of its own extraction, which no estimate uses: while it is
    imported, an empty module stands in their place.
    """
    matplotlib.use("agg")  # it shows a figure after each training
    # Both look for torchvision, so all that gpi_pack takes from them is loaded before a stand-in is there.
    for library, names in ((transformers, TRANSFORMERS), (diffusers, DIFFUSERS)):
        for name in names:
            getattr(library, name)
    with contextlib.suppress(ImportError, RuntimeError):
        import torchvision.transforms

        assert torchvision.transforms
        import gpi_pack

        return gpi_pack
    stand_in = ModuleType("torchvision")
    stand_in.transforms = ModuleType("torchvision.transforms")
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "torchvision"}
    sys.modules |= {"torchvision": stand_in, "torchvision.transforms": stand_in.transforms}
    try:
        import gpi_pack
    finally:
        del sys.modules["torchvision"], sys.modules["torchvision.transforms"]
        sys.modules |= before
    return gpi_pack
