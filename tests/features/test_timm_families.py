"""Backbones of many families of timm: features, weights of a file, gradients, buffers and keys. Nothing is downloaded."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from bll_pyro.features.extraction import extract, features_key
from bll_pyro.features.forward import set_training, trainable_parameters
from bll_pyro.features.from_timm import timm_backbone

SMALL = {"embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2), "img_size": 32, "window_size": 4}
THIN = {"embed_dim": (32, 64, 96, 128), "stem_width": (16, 32), "img_size": 64}

# a small model of each family: its arguments, the size of its images, and what to unfreeze
FAMILIES = {
    "test_resnet": ({}, 32, 1),
    "test_efficientnet": ({}, 32, 1),
    "test_convnext": ({}, 32, 1),
    "test_nfnet": ({}, 32, 1),
    "test_byobnet": ({}, 32, 1),
    "test_mambaout": ({}, 64, 1),
    "test_vit": ({"img_size": 32}, 32, 1),
    "test_vit3": ({"img_size": 32}, 32, 1),  # pools tokens by attention
    "maxvit_pico_rw_256": (THIN | {"depths": (1, 1, 1, 1)}, 64, 1),
    "coatnet_nano_rw_224": (THIN | {"depths": (1, 1, 2, 1)}, 64, 1),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, 32, 1),
    "swin_tiny_patch4_window7_224": (SMALL, 32, 1),
    "mixer_s32_224": ({"img_size": 64}, 64, 1),
    "mobilenetv3_small_050": ({}, 64, 1),
    "regnetx_002": ({}, 32, 1),
    "densenet121": ({"block_config": (1, 2), "growth_rate": 8}, 32, ["features.denseblock2"]),
    "levit_128s": ({}, 224, ["stages.2"]),  # its head begins with a BatchNorm
    "resnet50_clip": ({"width_factor": 0.125, "head_hidden_size": 64, "img_size": 64}, 64, ["head"]),
}


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    """A whole model with weights that training could have left, the file of its weights, and a backbone made of the file."""
    name = request.param
    kwargs, size, unfreeze = FAMILIES[name]
    torch.manual_seed(3)
    model = timm.create_model(name, num_classes=7, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    file = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    torch.manual_seed(4)
    backbone = timm_backbone(name, checkpoint=file, unfreeze=unfreeze, **kwargs)
    return name, model, file, backbone, torch.rand(3, 3, size, size)


def test_features_are_those_before_the_head(case):
    _, model, _, backbone, images = case
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    features = extract(backbone, images).tensor()
    assert features.shape == expected.shape == (3, backbone.num_features)
    assert expected.std() > 0
    torch.testing.assert_close(features, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_two_creations_of_one_file_agree_and_share_a_key_that_moves_with_the_weights(case):
    """Also after huggingface/pytorch-image-models#2682, where parts of CLIP's pooling were random without classes."""
    name, _, file, backbone, images = case
    kwargs, _, _ = FAMILIES[name]
    torch.manual_seed(5)
    again = timm_backbone(name, pretrained=str(file), unfreeze=False, **kwargs)
    state, other = backbone.state_dict(), again.state_dict()
    assert state.keys() == other.keys() and all(value.equal(other[key]) for key, value in state.items())
    assert extract(again, images).tensor().equal(extract(backbone, images).tensor())
    key = features_key(backbone, "", None)
    assert key == features_key(again, "", None)
    with torch.no_grad():
        next(again.parameters()).flatten()[0] += 1
    assert key != features_key(again, "", None)


def test_gradients_go_where_they_were_asked_for_and_frozen_buffers_stay(case):
    _, _, _, backbone, images = case
    asked = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
    every = {key for key, _ in backbone.named_parameters()}
    assert asked and asked < every
    before = {key: buffer.clone() for key, buffer in backbone.named_buffers()}
    extract(backbone, images)
    assert all(before[key].equal(buffer) for key, buffer in backbone.named_buffers())
    set_training(backbone)
    backbone(torch.cat([images, images.flip(3)])).square().sum().backward()
    assert {key for key, parameter in backbone.named_parameters() if parameter.grad is not None} <= asked
    assert any(
        parameter.grad.any() for parameter in trainable_parameters(backbone) if parameter.grad is not None
    )
    moved = {
        key.rpartition(".")[0] for key, buffer in backbone.named_buffers() if not before[key].equal(buffer)
    }
    frozen = {
        path
        for path, part in backbone.named_modules()
        if list(part.parameters(recurse=False)) and not any(p.requires_grad for p in part.parameters())
    }
    assert not moved & frozen
    backbone.eval()
    backbone.zero_grad()
