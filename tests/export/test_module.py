"""Exported modules say what the fit says: probabilities, entropies, scores and p-values, through a graph in a file too."""

from pathlib import Path

import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro import ood
from bll_pyro.gaussian import OutputCoupled
from bll_pyro.inference.base import Inference
from bll_pyro.likelihoods import Categorical, Likelihood, Ordinal
from bll_pyro.prediction import Prediction
from bll_pyro.scope import generator

NUM_CLASSES = 4
FEATURES = torch.randn(300, 3, generator=generator(1))
LABELS = torch.bucketize(
    FEATURES @ torch.tensor([1.0, -0.5, 0.3]) + 0.5 * torch.randn(300, generator=generator(2)),
    torch.tensor([-1.0, 0.0, 1.0]),
)
ROWS = torch.cat([FEATURES[200:260], 6 * FEATURES[260:]])
COUPLED = bll.Laplace(curvature=bll.curvatures.Full())
CASES = {
    "classes, independent weights": (Categorical(NUM_CLASSES), bll.SVI(num_epochs=30)),
    "ordered, independent weights": (Ordinal(NUM_CLASSES), bll.SVI(num_epochs=30)),
    "ordered, a point": (Ordinal(NUM_CLASSES), bll.SVI(guide=bll.guides.MAP(), num_epochs=30)),
    "ordered, cutpoints and weights tied": (Ordinal(NUM_CLASSES), COUPLED),
}


def fit_of(likelihood: Likelihood, inference: Inference) -> bll.Fit:
    layer = bll.LastLayer(
        likelihood, bll.priors.HierarchicalNormal() if inference is COUPLED else bll.priors.Normal()
    )
    return bll.fit(layer, (FEATURES[:200], LABELS[:200]), inference=inference)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.thinned(4)
def test_exported_and_native_predictions_agree(name: str, tmp_path: Path) -> None:
    plain = fit_of(*CASES[name])
    assert isinstance(plain.posterior.outputs(ROWS), OutputCoupled) == ("tied" in name)
    score = ood.PredictiveEntropy() if "point" in name else ood.Combination((ood.Leverage(), ood.Epistemic()))
    tempered = bll.calibrate(plain, FEATURES[200:], LABELS[200:])
    for fit in (plain, tempered):
        train = (FEATURES[:100], LABELS[:100])
        watched = fit.with_detector(ood.Detector(score, 0.1).calibrate(fit, FEATURES[100:200], train=train))
        native, module = watched.predict(ROWS), bll.export.as_module(watched)
        compare(module(ROWS), native)
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    graph = torch.export.export(module, (ROWS[:3],), dynamic_shapes=sizes, strict=False)
    torch.export.save(graph, tmp_path / "model.pt2")
    compare(torch.export.load(tmp_path / "model.pt2").module()(ROWS), native)


def compare(found: dict[str, torch.Tensor], native: Prediction) -> None:
    for key in ("probs", "total", "aleatoric", "epistemic"):
        torch.testing.assert_close(found[key], getattr(native, key), rtol=0, atol=3e-6)
    assert native.ood is not None and 0 < int(native.ood.is_ood.sum()) < len(ROWS)
    torch.testing.assert_close(found["score"], native.ood.score, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["p_value"], native.ood.p_value, rtol=0, atol=1e-9)
    assert torch.equal(found["is_ood"], native.ood.is_ood)


def test_a_backbone_comes_along() -> None:
    backbone = nn.Linear(5, 3)
    inputs = torch.randn(50, 5, generator=generator(3))
    labels = torch.arange(50) % NUM_CLASSES
    fit = bll.fit(bll.LastLayer(Ordinal(NUM_CLASSES)), (inputs, labels), backbone, bll.SVI(num_epochs=5))
    found = bll.export.as_module(fit)(inputs)["probs"]
    torch.testing.assert_close(found, fit.predict(inputs).probs, rtol=0, atol=3e-6)
