"""A backbone that runs through torch's compiler, tried before any work starts."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from bll_pyro.features.forward import compute_features, frozen
from bll_pyro.features.state import unwrapped
from bll_pyro.scope import without_validation


def compiled_backbone(backbone: nn.Module, example: Any, how: bool | str) -> nn.Module:
    """The backbone behind ``torch.compile``, with the same parameters; itself where ``how`` is False.

    It is run on the example, in eval mode, since the compiler does nothing before. ValueError if it cannot.
    """
    if how is False:
        return backbone
    plain = unwrapped(backbone)
    own = set(vars(plain))
    try:
        # the first use of the compiler in a process switches the checks of distributions off
        with without_validation(), frozen(plain):
            made: Any = torch.compile(plain) if how is True else torch.compile(plain, backend=how)
            compute_features(made, example)
    except Exception as error:  # whatever compilers raise; the plain backbone has run on this example
        cause = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"BackboneTraining(compile={how!r}): expected a backbone that torch.compile can compile, and a compiler (g++ for a "
            f"CPU, Triton for a GPU), got: {cause}; install the compiler, or leave compile at False"
        ) from error
    for name in vars(plain).keys() - own:  # marks of the compiler's, which the fit's copy should not have
        del vars(plain)[name]
    return cast(nn.Module, made)
