"""Fits on the Hugging Face Hub: ``fit.push_to_hub("me/model")``, and ``bll.load("hf://me/model")``."""

from bll_pyro.sharing.card import model_card
from bll_pyro.sharing.hub import SCHEME, downloaded, push

__all__ = ["SCHEME", "downloaded", "model_card", "push"]
