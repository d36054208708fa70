"""A fit as a model of MLflow, "from code": the fit's own folder and this script, and no pickle.

MLflow runs a script that ends in ``set_model``. Log it beside the folder that ``fit.save`` wrote, with MLflow 2.12.2 or newer:

    mlflow.pyfunc.log_model(name="digits", python_model="11_mlflow_model.py", artifacts={"fit": "model/"})
    mlflow.pyfunc.load_model("models:/digits/1").predict(rows)

Without MLflow, ``python 11_mlflow_model.py`` does what it would do. ``--small`` is for tests.
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import bll_pyro as bll

HAS_MLFLOW = find_spec("mlflow") is not None
if HAS_MLFLOW:
    import mlflow
Base: type = mlflow.pyfunc.PythonModel if HAS_MLFLOW else object


class BayesianLastLayer(Base):
    """Rows in, a table with probabilities or mean and scale, all uncertainties, and the alarm out."""

    def load_context(self, context: Any) -> None:
        """Read the fit; MLflow has put the folder where ``context`` says."""
        self.fit = bll.load(context.artifacts["fit"])

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """A pandas frame, one line for each row; ``params={"interval": 0.9}`` adds an interval to numbers."""
        return self.fit.predict(model_input).to_pandas((params or {}).get("interval"))


def main() -> None:
    """Fit, save, and serve as MLflow does."""
    num_rows = 300 if "--small" in sys.argv else 1200
    pixels, digit = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32)
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(num_classes=10))
    fit = bll.fit(layer, (pixels[:num_rows], digit[:num_rows]), inference=bll.Laplace())
    fit = fit.with_detector(
        bll.ood.Detector(bll.ood.Leverage()).calibrate(fit, pixels[num_rows : num_rows + 300])
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        fit.save(folder)
        model, context = BayesianLastLayer(), SimpleNamespace(artifacts={"fit": str(folder)})
        model.load_context(context)
    table = model.predict(context, pixels[-5:])
    print(table)
    expected = fit.predict(pixels[-5:])
    assert table["label"].tolist() == expected.label.tolist()
    assert np.allclose(table["ood_p_value"], expected.ood.p_value)


if __name__ == "__main__":
    main()
elif HAS_MLFLOW:
    mlflow.models.set_model(model=BayesianLastLayer())
