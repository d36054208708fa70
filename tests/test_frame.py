"""The frame: the same design matrix block by block, with gradients, and of any part of the rows."""

from dataclasses import replace

import pytest
import torch

from bll_pyro.frame import Frame
from bll_pyro.inference.rows import BLOCK_ROWS, DesignRows
from bll_pyro.inference.standardization import evenly_spaced
from bll_pyro.scope import generator


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_the_design_matrix(bias: bool, turned: bool) -> None:
    random = generator(0)
    features = 3 + 2 * torch.randn(BLOCK_ROWS + 5, 4, generator=random)
    frame = replace(
        Frame.identity(4, 1, features[:0], bias), center=features.mean(0), scale=torch.tensor([1.0, 2, 3, 4])
    )
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=random))[0]
    frame = replace(frame, rotation=rotation) if turned else frame
    expected = (features - frame.center) / frame.scale
    expected = expected @ rotation if turned else expected
    kept = features.clone()
    rows = DesignRows(features, torch.zeros(len(features)), frame)  # in blocks
    design = rows[:][0]
    assert design.shape == (len(features), 4 + bias)
    assert torch.allclose(design[:, :4], expected, atol=1e-5)
    assert bool((design[:, 4:] == 1).all())
    assert torch.equal(features, kept)
    passing = frame.design(features.double(), reuse_memory=True)
    assert torch.allclose(passing, design, atol=1e-6)
    assert frame.design(features[:3], reuse_memory=True).data_ptr() == passing.data_ptr()
    # small parts, and rows through which gradients go, come out the same
    assert torch.allclose(frame.design(features[7:9]), design[7:9], atol=1e-6)
    moving = features[:9].clone().requires_grad_()
    again = frame.design(moving)
    assert torch.allclose(again, design[:9], atol=1e-6)
    again[:, :4].sum().backward()
    slope = (rotation.sum(1) if turned else torch.ones(4)) / frame.scale
    assert moving.grad is not None
    assert torch.allclose(moving.grad, slope.expand(9, 4), atol=1e-5)


def test_evenly_spaced_rows() -> None:
    numbers = torch.arange(1000)
    assert torch.equal(torch.cat([numbers[part] for part in evenly_spaced(1000, 1000, 64)]), numbers)
    some = torch.cat([numbers[part] for part in evenly_spaced(1000, 100, 64)])
    assert len(some) == 100
    assert (int(some[0]), int(some[-1])) == (0, 999)
    assert int(some.diff().min()) >= 10
