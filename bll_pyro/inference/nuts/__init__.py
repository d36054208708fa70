"""The No-U-Turn sampler: a Gaussian approximation to start from and to whiten by, chains, and their checks."""

from bll_pyro.inference.nuts.nuts import NUTS

__all__ = ["NUTS"]
