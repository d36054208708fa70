"""A backbone runs on a batch; what does not come out as [N, D] is refused with a remedy."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from bll_pyro.features.forward import compute_features, feature_width


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


def test_width_comes_from_a_dry_run_that_leaves_no_trace():
    module = nn.Sequential(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert feature_width(module, torch.zeros(2, 1, 8, 8)) == 20
    assert all(before[name].equal(tensor) for name, tensor in module.state_dict().items())
    assert all(part.training for part in module.modules())


def test_without_a_backbone_the_inputs_are_the_features():
    x = torch.randn(4, 3)
    assert feature_width(None, x) == 3
    assert compute_features(None, x) is x
    with pytest.raises(ValueError, match=r"there is no backbone.*\[N, D\], got torch.float32 of shape \[4\]"):
        feature_width(None, torch.zeros(4))
    with pytest.raises(ValueError, match=r"got torch.uint8.*convert to floats"):
        feature_width(None, torch.zeros(4, 3, dtype=torch.uint8))


def test_inputs_take_the_dtype_of_the_backbone_and_gradients_flow():
    module = nn.Linear(3, 2)
    x = torch.randn(4, 3, dtype=torch.float64)
    features = compute_features(module, x)
    assert features.dtype == torch.float32
    assert features.requires_grad
    assert compute_features(module.double(), x.float()).dtype == torch.float64
    embedding = nn.EmbeddingBag(5, 2)
    assert compute_features(embedding, torch.tensor([[1, 2], [3, 4]])).shape == (2, 2)  # integers stay


def test_inputs_may_have_several_parts():
    Pair = namedtuple("Pair", ["a", "b"])

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, parts):
            a, b = parts.values() if isinstance(parts, dict) else parts
            assert a.dtype == torch.float32
            return self.layer(a) + b[:, None]

    a, b = torch.randn(4, 3, dtype=torch.float64), torch.arange(4)
    results = [compute_features(Two(), inputs) for inputs in ({"a": a, "b": b}, (a, b), [a, b], Pair(a, b))]
    assert all(result.shape == (4, 2) for result in results)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((4, 8, 2, 2), r"global_pool='avg'.*mean\(\(2, 3\)\)"),
        ((4, 7, 8), r"pool the tokens"),
        ((4,), r"one row of features"),
        ((3, 8), r"expected floats of shape \[4, D\].*one row of features for each input"),
        ((4, 0), r"one row of features"),
    ],
)
def test_outputs_of_other_shapes(shape, remedy):
    with pytest.raises(ValueError, match=remedy):
        feature_width(Returns(torch.zeros(shape)), torch.zeros(4, 3))


def test_outputs_of_other_types():
    with pytest.raises(ValueError, match="convert to floats"):
        feature_width(Returns(torch.zeros(4, 3, dtype=torch.int64)), torch.zeros(4, 3))
    for output in ((torch.zeros(4, 3), None), {"features": torch.zeros(4, 3)}):
        with pytest.raises(TypeError, match=r"backbone Returns: expected one tensor.*got (tuple|dict); wrap"):
            feature_width(Returns(output), torch.zeros(4, 3))


def test_inputs_that_the_backbone_cannot_take():
    with pytest.raises(
        ValueError, match=r"Linear: expected inputs that it can run on, got torch.float32 of shape \[4, 5\]"
    ):
        feature_width(nn.Linear(3, 2), torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"got torch.uint8 of shape .*images need floats"):
        feature_width(nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
