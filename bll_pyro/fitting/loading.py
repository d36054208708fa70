"""``load``: a fit that was saved."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bll_pyro import archive, artefact, sharing
from bll_pyro.features.recorded import Recorded
from bll_pyro.fitting.result import Fit
from bll_pyro.scope import own_modes


@own_modes()
def load(path: str | Path, *, backbone: nn.Module | None = None, head_only: bool = False) -> Fit:
    """Read a fit that :meth:`Fit.save` wrote.

    Parameters
    ----------
    path
        The folder, or the one file ``.bll``; or ``"hf://owner/name"`` or ``"hf://owner/name@revision"`` on the Hugging Face Hub,
        whose client keeps a copy.
    backbone
        A module of the same architecture as the saved backbone, to be filled with the saved weights. Those of timm and
        transformers are rebuilt by themselves; other code is never stored, so other modules have to be given.
    head_only
        Leave the backbone out: the fit then takes features.

    Raises
    ------
    ValueError
        When a file is missing, cut or altered, the backbone does not fit, or the hub cannot be reached and has no copy here.
    ModuleNotFoundError
        For an address of the hub without the package huggingface-hub.
    """
    if str(path).startswith(sharing.SCHEME):
        path = sharing.downloaded(str(path), head_only=head_only)
    with artefact.as_folder(path) as folder:
        parts = archive.load_parts(folder, backbone=backbone, head_only=head_only)
    network = parts.get("backbone")
    return Fit(**parts, recorded=None if network is None else Recorded(network))
