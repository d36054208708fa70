"""The No-U-Turn sampler: the Gaussian approximation that initializes and whitens, the chains, and their checks."""

from bll_pyro.inference.nuts.nuts import NUTS

__all__ = ["NUTS"]
