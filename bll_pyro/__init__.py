"""Bayesian last layers: any torch backbone, and on top a last layer declared as a Pyro model.

Names are loaded when they are first used, so that ``import bll_pyro`` costs little more than torch and Pyro.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS = {
    "LastLayer": "layer",
    "Model": "model",
    "Fit": "fitting",
    "fit": "fitting",
    "ELBO": "fitting",
    "fit_from_draws": "fitting",
    "FitWarning": "inference.base",
    "SVI": "inference.svi",
    "BackboneTraining": "inference.svi",
    "Imported": "inference.svi",
    "Exact": "inference.exact",
    "Laplace": "inference.laplace",
    "NUTS": "inference.nuts",
    "noises": "inference",
    "criteria": "inference",
    "QuasiMonteCarlo": "prediction",
    "Probit": "prediction",
    "Data": "features.columns",
    "class_weights": "features.columns",
    "Features": "features.store",
    "extract": "features.extraction",
    "from_arrow": "features.exchange",
    "from_parquet": "features.exchange",
    "to_arrow": "features.exchange",
    "to_parquet": "features.exchange",
    "predict_store": "fitting.scoring",
    "split_last_layer": "features.splitting",
    "timm_backbone": "features.from_timm",
    "transformers_backbone": "features.from_transformers",
    "random_features": "features.random_fourier",
    "AUTOMATIC": "fitting",
    "load": "fitting",
    "from_pyro": "datatree",
    "loo": "elpd",
    "prior_predictive": "datatree",
    "compare": "comparison",
    "choose": "comparison",
    "recommend": "comparison",
    "Stack": "comparison",
    "diagnose": "diagnostics",
    "sbc": "simulation",
    "calibrate": "recalibrate",
    "bayesianize": "trained_network",
    "evaluate": "evaluation",
    "report": "reporting",
    "observe": "observation",
    "Record": "observation",
    "StopTraining": "observation",
}
_MODULES = (
    "priors",
    "likelihoods",
    "guides",
    "curvatures",
    "metrics",
    "conformal",
    "plots",
    "ood",
    "export",
    "sklearn",
    "loggers",
    "runtime",
    "distributed",
)

if TYPE_CHECKING:
    from bll_pyro import (
        conformal,
        curvatures,
        distributed,
        export,
        guides,
        likelihoods,
        loggers,
        metrics,
        ood,
        plots,
        priors,
        runtime,
    )
    from bll_pyro.comparison import Stack, choose, compare, recommend
    from bll_pyro.datatree import from_pyro, prior_predictive  # type: ignore[no-redef]
    from bll_pyro.diagnostics import diagnose
    from bll_pyro.elpd import loo
    from bll_pyro.evaluation import evaluate
    from bll_pyro.features.columns import Data, class_weights
    from bll_pyro.features.exchange import from_arrow, from_parquet, to_arrow, to_parquet
    from bll_pyro.features.extraction import extract
    from bll_pyro.features.from_timm import timm_backbone
    from bll_pyro.features.from_transformers import transformers_backbone
    from bll_pyro.features.random_fourier import random_features
    from bll_pyro.features.splitting import split_last_layer
    from bll_pyro.features.store import Features
    from bll_pyro.fitting import AUTOMATIC, ELBO, Fit, fit, fit_from_draws, load
    from bll_pyro.fitting.scoring import predict_store
    from bll_pyro.inference import criteria, noises
    from bll_pyro.inference.base import FitWarning
    from bll_pyro.inference.exact.exact import Exact
    from bll_pyro.inference.laplace.laplace import Laplace
    from bll_pyro.inference.nuts.nuts import NUTS
    from bll_pyro.inference.svi.backbone_training import BackboneTraining
    from bll_pyro.inference.svi.imported import Imported
    from bll_pyro.inference.svi.svi import SVI
    from bll_pyro.layer import LastLayer
    from bll_pyro.model import Model
    from bll_pyro.observation import Record, StopTraining, observe
    from bll_pyro.prediction import Probit, QuasiMonteCarlo
    from bll_pyro.recalibrate import calibrate
    from bll_pyro.reporting import report
    from bll_pyro.simulation import sbc
    from bll_pyro.trained_network import bayesianize

__all__ = sorted([*_ROOMS, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"bll_pyro.{name}")
    if name in _ROOMS:
        value = globals()[name] = getattr(import_module(f"bll_pyro.{_ROOMS[name]}"), name)
        return value
    raise AttributeError(f"module 'bll_pyro' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
