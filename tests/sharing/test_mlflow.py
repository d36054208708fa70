"""The script for MLflow's models from code, as MLflow runs it: by path, for what it sets, with the saved folder as an artefact."""

import runpy
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import bll_pyro as bll

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "11_mlflow_model.py"


class PythonModel:
    """Of ``mlflow.pyfunc``: what a model derives from."""


def test_the_model_that_the_script_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in: MLflow itself cannot be installed beside the pinned packages."""
    made: list[PythonModel] = []
    mlflow = ModuleType("mlflow")
    mlflow.__spec__ = ModuleSpec("mlflow", None)
    mlflow.pyfunc = SimpleNamespace(PythonModel=PythonModel)
    mlflow.models = SimpleNamespace(set_model=lambda model: made.append(model))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    runpy.run_path(str(SCRIPT))
    (model,) = made
    assert isinstance(model, PythonModel)

    features, noise = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(0))
    layer = bll.LastLayer(bll.likelihoods.Gaussian())
    fit = bll.fit(layer, (features, (features + noise).sum(1)), inference=bll.Exact())
    fit.save(tmp_path / "model")
    context = SimpleNamespace(artifacts={"fit": str(tmp_path / "model")})
    model.load_context(context)
    table = model.predict(context, features[:4].numpy(), params={"interval": 0.9})
    expected = fit.predict(features[:4])
    torch.testing.assert_close(torch.tensor(table["mean"].to_numpy()), expected.mean, check_dtype=False)
    assert {"lower", "upper", "epistemic"} <= set(table)
    assert "lower" not in model.predict(context, features[:4].numpy())
