"""Files of weights of another network: the message says what differs. Nothing is downloaded."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from bll_pyro.features.checkpoints import foreign_names
from bll_pyro.features.from_timm import timm_backbone


def weights(tmp_path, name, **kwargs):
    model = timm.create_model(name, **kwargs)
    file = tmp_path / f"{name}.safetensors"
    save_file(model.state_dict(), file)
    return file


def test_a_deeper_network_of_the_same_family_is_not_cut_to_size(tmp_path):
    """All tensors of the shallow one are in the file, so that its features would be those of half a network."""
    file = weights(tmp_path, "test_vit", img_size=32)
    with pytest.raises(
        ValueError, match=r"of another network: it has \d+ that the network does not \(blocks\.\d"
    ):
        timm_backbone("test_vit", checkpoint=file, img_size=32, depth=2)


def test_a_shallower_network_names_what_is_missing(tmp_path):
    file = weights(tmp_path, "test_vit", img_size=32, depth=2)
    with pytest.raises(
        ValueError, match=r"the file lacks \d+ tensors \(blocks\.2.*name the model that the file"
    ):
        timm_backbone("test_vit", checkpoint=file, img_size=32)


def test_another_architecture_names_both(tmp_path):
    file = weights(tmp_path, "test_convnext")
    with pytest.raises(
        ValueError,
        match=r"lacks \d+ tensors \(conv1.*it has \d+ that the network does not \(",
    ):
        timm_backbone("test_resnet", checkpoint=file)


def test_other_widths_name_the_shapes(tmp_path):
    file = weights(tmp_path, "test_vit", img_size=32, embed_dim=32, num_heads=2)
    with pytest.raises(ValueError, match=r"\d+ differ in shape \(.* \[.*32.*\] for \[.*64.*\]"):
        timm_backbone("test_vit", checkpoint=file, img_size=32)


def test_missing_constants_are_found(tmp_path):
    """A norm that was not in the file would have its initial ones and zeros in every creation."""
    model = timm.create_model("test_vit", img_size=32)
    file = tmp_path / "w.safetensors"
    save_file({k: v for k, v in model.state_dict().items() if not k.startswith("norm.")}, file)
    with pytest.raises(ValueError, match=r"the file lacks 2 tensors \(norm.weight, norm.bias\)"):
        timm_backbone("test_vit", checkpoint=file, img_size=32)


def test_heads_and_other_parts_that_a_network_lacks_as_a_whole_are_none_of_its_business(tmp_path):
    model = timm.create_model("test_convnext")
    state = model.state_dict() | {"projector.weight": torch.ones(3, 3)}
    file = tmp_path / "w.safetensors"
    save_file(state, file)
    backbone = timm_backbone("test_convnext", checkpoint=file)
    assert foreign_names(state, backbone.model) == []
    assert backbone.model.get_parameter("head.norm.weight").equal(model.head.norm.weight)


def test_weights_from_two_places(tmp_path):
    file = weights(tmp_path, "test_resnet")
    for pretrained in (True, file):
        with pytest.raises(
            ValueError, match=r"expected weights from one place, got pretrained=.* and checkpoint="
        ):
            timm_backbone("test_resnet", pretrained=pretrained, checkpoint=file)


def test_a_file_without_tensors(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="got a file without tensors"):
        timm_backbone("test_resnet", checkpoint=tmp_path / "w.pth")
