"""A learned scale of a point estimate is that of the highest evidence, and never just where it starts."""

from dataclasses import replace

import pytest
import torch

import bll_pyro as bll

POINT = bll.SVI(bll.guides.MAP(), scale_criterion=bll.criteria.Evidence())


def linear(true_scale, num_rows=300, num_features=30):
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(num_features, num_features, generator=random)
    inputs = torch.randn(num_rows, num_features, generator=random) @ mixing / num_features**0.5
    targets = true_scale * inputs @ torch.randn(num_features, generator=random)
    return inputs, targets + torch.randn(num_rows, generator=random)


@pytest.mark.parametrize("true_scale", [0.1, 1.0])
@pytest.mark.parametrize("num_features", [30, 400])
def test_it_is_that_of_the_exact_evidence(true_scale, num_features):
    """With known Gaussian noise; columns are correlated, and of 400 some have no row of their own."""
    data = linear(true_scale, num_features=num_features)
    layer = bll.LastLayer(bll.likelihoods.Gaussian(1.0))
    exact = bll.fit(layer, data, inference=bll.Exact())
    found = bll.fit(layer, data, inference=POINT)
    assert float(found.posterior.learned["tau"]) == pytest.approx(
        float(exact.posterior.learned["tau"]), rel=0.05
    )


def test_classes_have_a_scale_near_that_of_laplace():
    """With a diagonal curvature in principal axes, a little below that of the full one."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(600, 12, generator=random)
    logits = inputs @ (0.3 * torch.randn(12, 3, generator=random))
    gumbel = -(-torch.rand(600, 3, generator=random).log()).log()
    labels = (logits + gumbel).argmax(-1)
    layer = bll.LastLayer(bll.likelihoods.Categorical(3))
    laplace = bll.Laplace(bll.curvatures.Full(), scale_criterion=bll.criteria.Evidence())
    expected = float(bll.fit(layer, (inputs, labels), inference=laplace).posterior.learned["tau"])
    found = float(bll.fit(layer, (inputs, labels), inference=POINT).posterior.learned["tau"])
    assert 0.65 * expected < found < 1.05 * expected and expected < 0.6


def test_features_that_explain_nothing_get_a_small_scale():
    inputs, _ = linear(1.0)
    targets = torch.randn(300, generator=torch.Generator().manual_seed(7))
    layer = bll.LastLayer(bll.likelihoods.Gaussian(1.0), replace(bll.priors.Normal(), per_output=True))
    found = bll.fit(layer, (inputs, targets), inference=POINT).posterior.learned["tau"]
    assert found.shape == (1,) and float(found) < 0.1
