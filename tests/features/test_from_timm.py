"""timm backbones: names, weights, widths, preprocessing, and what joint training moves. Nothing is downloaded."""

import json
import pickle

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from bll_pyro.features.backbones import rebuilt
from bll_pyro.features.forward import set_training, trainable_parameters
from bll_pyro.features.from_timm import timm_backbone

# one name for each way in which the width, the size of images or the blocks differ
MODELS = {
    "resnet10t": ({}, 64, 512),
    "mobilenetv3_small_050": ({}, 64, 1024),
    "vit_tiny_patch16_224": ({"img_size": 32}, 32, 192),
    "convnext_atto": ({"in_chans": 1}, 64, 320),
}


def build(name, **kwargs):
    return timm_backbone(name, **MODELS[name][0], **kwargs)


@pytest.fixture
def no_network(monkeypatch):
    """Make any way into the network fail at once, as it does offline."""

    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("socket.socket.connect", fail)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", fail)


@pytest.mark.parametrize("name", MODELS)
def test_width_is_that_of_the_output(name):
    kwargs, size, width = MODELS[name]
    backbone = build(name)
    images = torch.rand(2, kwargs.get("in_chans", 3), size, size)
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    assert backbone.num_features == width
    assert all(before[key].equal(tensor) for key, tensor in backbone.state_dict().items())
    assert backbone.eval()(images).shape == (2, width)


def test_the_width_is_not_always_timms():
    backbone = build("mobilenetv3_small_050")
    assert backbone.model.num_features != backbone.num_features


@pytest.mark.parametrize("name", MODELS)
def test_a_backbone_is_rebuilt_from_plain_data_without_network(name, no_network):
    backbone = build(name, unfreeze=1).eval()
    config = json.loads(json.dumps(backbone.config))
    state = torch.get_rng_state()
    again = rebuilt(config).eval()
    assert torch.equal(state, torch.get_rng_state())
    again.load_state_dict(backbone.state_dict())
    kwargs, size, _ = MODELS[name]
    images = torch.rand(2, kwargs.get("in_chans", 3), size, size)
    assert torch.equal(again(images), backbone(images))
    assert again.config == backbone.config
    assert str(again.transform) == str(backbone.transform)
    assert names(again) == names(backbone)
    assert torch.equal(pickle.loads(pickle.dumps(backbone))(images), backbone(images))


def test_arguments_that_cannot_be_written_down():
    backbone = timm_backbone("resnet10t", norm_layer=nn.BatchNorm2d)
    with pytest.raises(TypeError, match="expected arguments that can be written to a file"):
        _ = backbone.config


def test_preprocessing_is_that_of_the_weights():
    backbone = timm_backbone("vit_tiny_patch16_224", img_size=64)
    image = Image.new("RGB", (100, 80), (255, 255, 255))
    tensor = backbone.transform(image)
    assert tensor.shape == (3, 64, 64)
    torch.testing.assert_close(tensor, torch.ones(3, 64, 64))  # this model's mean and scale are 0.5
    resnet = timm_backbone("resnet10t").transform
    again = timm.data.create_transform(**timm.data.resolve_model_data_config(timm.create_model("resnet10t")))
    assert str(resnet) == str(again)


def test_preprocessing_of_grey_images():
    backbone = timm_backbone("convnext_atto", in_chans=1)
    tensor = backbone.transform(Image.new("L", (300, 300), 128))
    mean, std = sum((0.485, 0.456, 0.406)) / 3, sum((0.229, 0.224, 0.225)) / 3
    assert tensor.shape[0] == 1
    torch.testing.assert_close(tensor.mean().item(), (128 / 255 - mean) / std, rtol=1e-4, atol=1e-4)


# ---- what joint training moves


def names(backbone):
    return {name for name, p in backbone.model.named_parameters() if p.requires_grad}


def tops(backbone, depth=1):
    return {".".join(name.split(".")[:depth]) for name in names(backbone)}


@pytest.mark.parametrize("name", MODELS)
def test_all_or_nothing(name):
    every = {n for n, _ in build(name).model.named_parameters()}
    assert names(build(name)) == every
    assert names(build(name, unfreeze=True)) == every
    assert names(build(name, unfreeze=False)) == set() == names(build(name, unfreeze=0))
    assert trainable_parameters(build(name, unfreeze=False)) == []


@pytest.mark.parametrize(
    ("name", "num_blocks", "depth", "expected"),
    [
        ("resnet10t", 1, 1, {"layer4"}),
        ("resnet10t", 2, 1, {"layer3", "layer4"}),
        ("resnet10t", 4, 1, {"layer1", "layer2", "layer3", "layer4"}),
        ("resnet10t", 5, 1, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        ("mobilenetv3_small_050", 1, 2, {"blocks.5", "conv_head.weight", "conv_head.bias"}),
        ("vit_tiny_patch16_224", 1, 2, {"blocks.11", "norm.weight", "norm.bias"}),
        ("vit_tiny_patch16_224", 2, 2, {"blocks.10", "blocks.11", "norm.weight", "norm.bias"}),
        ("convnext_atto", 1, 2, {"stages.3", "head.norm"}),
    ],
)
def test_the_last_blocks_and_what_follows_them(name, num_blocks, depth, expected):
    assert tops(build(name, unfreeze=num_blocks), depth) == expected


def test_blocks_by_a_function():
    # inception_v3 gives its blocks by a function and not by patterns
    assert tops(timm_backbone("inception_v3", unfreeze=1)) == {"Mixed_7c"}


@pytest.mark.parametrize("unfreeze", [["layer4", "bn1.weight"], ("layer4.", "bn1.weight")])
def test_parts_by_name(unfreeze):
    assert tops(build("resnet10t", unfreeze=unfreeze), 2) == {"layer4.0", "bn1.weight"}


def test_names_end_at_dots():
    backbone = build("vit_tiny_patch16_224", unfreeze=["blocks.1"])
    assert tops(backbone, 2) == {"blocks.1"}
    assert tops(build("vit_tiny_patch16_224", unfreeze="blocks"), 1) == {"blocks"}


@pytest.mark.parametrize(
    ("name", "unfreeze", "message"),
    [
        ("resnet10t", ["layer9"], "got 'layer9'; it has: conv1, bn1, layer1"),
        ("resnet10t", ["layer"], "got 'layer'"),
        ("resnet10t", 6, "from 0 to 5 for ResNet, got 6; True unfreezes all"),
        ("resnet10t", -1, "from 0 to 5"),
        ("pit_ti_224", 1, "PoolingVisionTransformer, which has no single list of blocks, got 1; it has: "),
        ("rdnet_tiny", 1, "RDNet, which timm does not divide into blocks"),
    ],
)
def test_parts_that_do_not_exist(name, unfreeze, message):
    with pytest.raises(ValueError, match=message):
        timm_backbone(name, unfreeze=unfreeze)


def test_batchnorm_of_frozen_parts_keeps_its_statistics_in_joint_training():
    backbone = build("resnet10t", unfreeze=1)
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    set_training(backbone)
    optimizer = torch.optim.SGD(trainable_parameters(backbone), lr=0.1)
    backbone(torch.rand(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()
    changed = {
        key.split(".")[1] for key, tensor in backbone.state_dict().items() if not before[key].equal(tensor)
    }
    assert changed == {"layer4"}


# ---- weights


@pytest.fixture(scope="module")
def trained():
    """A whole network with its head; its weights are what files hold."""
    torch.manual_seed(7)
    model = timm.create_model("resnet10t").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return model


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("head", [True, False])
def test_weights_of_a_file(tmp_path, no_network, trained, suffix, head):
    state = {k: v for k, v in trained.state_dict().items() if head or not k.startswith("fc.")}
    file = tmp_path / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    random_state = torch.get_rng_state()
    backbone = timm_backbone("resnet10t", pretrained=file if head else str(file)).eval()
    assert torch.equal(random_state, torch.get_rng_state())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = trained.forward_head(trained.forward_features(images), pre_logits=True)
        torch.testing.assert_close(backbone(images), expected)
    rebuilt(backbone.config)  # does not look for the file
    assert "weights" not in json.dumps(backbone.config)


def test_a_checkpoint_of_a_training_run_and_other_channels(tmp_path, trained):
    file = tmp_path / "run.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}, "epoch": 3}, file)
    backbone = timm_backbone("resnet10t", pretrained=file, in_chans=1)
    weight = backbone.model.get_parameter("conv1.0.weight")
    torch.testing.assert_close(weight, trained.conv1[0].weight.sum(1, keepdim=True))


def test_weights_are_resized_to_the_size_of_the_images(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", img_size=64)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    backbone = timm_backbone("vit_tiny_patch16_224", pretrained=tmp_path / "vit.safetensors", img_size=32)
    assert torch.equal(backbone.model.get_parameter("norm.weight"), model.norm.weight)
    assert torch.equal(
        backbone.model.get_parameter("blocks.3.attn.qkv.weight"), model.blocks[3].attn.qkv.weight
    )


class Code:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (print, ("code ran",))


def test_files_that_do_not_hold_the_weights(tmp_path, trained, capsys):
    state = trained.state_dict()
    whole = tmp_path / "whole.safetensors"
    save_file(state, whole)
    files = {
        "cut.safetensors": lambda f: f.write_bytes(whole.read_bytes()[:-1000]),
        "cut.pth": lambda f: f.write_bytes(b"PK\x03\x04 cut"),
        "empty.pth": lambda f: f.write_bytes(b""),
        "code.pth": lambda f: torch.save({"state_dict": Code()}, f),
        "other.pth": lambda f: torch.save(timm.create_model("resnet14t").state_dict(), f),
        "shape.pth": lambda f: torch.save(state | {"conv1.0.weight": torch.zeros(1, 3, 3, 3)}, f),
        "names.pth": lambda f: torch.save({f"encoder.{k}": v for k, v in state.items()}, f),
        "few.pth": lambda f: torch.save({k: v for k, v in state.items() if "layer4" not in k}, f),
        "list.pth": lambda f: torch.save([1, 2], f),
    }
    for name, write in files.items():
        write(tmp_path / name)
        with pytest.raises(ValueError, match=r"resnet10t: expected weights of this model in .*") as error:
            timm_backbone("resnet10t", pretrained=tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(ValueError, match=r"the file lacks \d+ tensors \(layer4.0.conv1.weight"):
        timm_backbone("resnet10t", pretrained=tmp_path / "few.pth")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("pretrained", ["a1_in1k", "missing.safetensors", "", __file__])
def test_files_that_are_none(pretrained):
    with pytest.raises(
        ValueError,
        match=r"expected checkpoint to be a file.*or pretrained=True or False.*is part of the name",
    ):
        timm_backbone("resnet10t", pretrained=pretrained)


def test_a_failed_download_says_what_to_do(no_network):
    with pytest.raises(
        ValueError, match=r"downloaded or loaded \(OSError: no network\).*weights.safetensors"
    ):
        timm_backbone("resnet10t.c3_in1k", pretrained=True)


def test_a_download_goes_through_timm(monkeypatch, trained):
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: state)
    backbone = timm_backbone("resnet10t.c3_in1k", pretrained=True)
    assert torch.equal(backbone.model.get_parameter("conv1.0.weight"), trained.conv1[0].weight)


def test_models_without_weights():
    name = next(n for n in timm.list_models("resnet*") if not timm.models.is_model_pretrained(n))
    with pytest.raises(ValueError, match=rf"{name}: expected a model that timm has weights for"):
        timm_backbone(name, pretrained=True)


# ---- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", r"got 'resnet51'; nearest: .*resnet50"),
        ("vit_tiny_patch16_225", r"nearest: vit_tiny_patch16_224"),
        ("", "nearest: none"),
        (
            "resnet50.a1_in2k",
            r"weights that timm has for resnet50, got the tag 'a1_in2k'; nearest: .*a1_in1k",
        ),
    ],
)
def test_unknown_names_come_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        timm_backbone(name)


def test_a_local_folder_keeps_the_models_own_name(tmp_path, no_network):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 1000,
        "model_args": {"img_size": 32},
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "classifier": "head"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    backbone = timm_backbone(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(backbone.model.get_parameter("norm.weight"), model.norm.weight)
    assert backbone.name == "vit_tiny_patch16_224"
    again = rebuilt(json.loads(json.dumps(backbone.config))).eval()
    again.load_state_dict(backbone.state_dict())
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(images), backbone(images))
    assert str(again.transform) == str(backbone.transform)
    assert "0.1" in str(again.transform)


@pytest.mark.parametrize("kwargs", [{"num_classes": 3}, {"features_only": True}, {"checkpoint_path": "x"}])
def test_arguments_that_are_not_the_users(kwargs):
    with pytest.raises(ValueError, match=f"got {next(iter(kwargs))}"):
        timm_backbone("resnet10t", **kwargs)


def test_arguments_that_the_model_does_not_have():
    for pretrained in (False, True):
        with pytest.raises(TypeError, match="no_such"):
            timm_backbone("resnet10t", pretrained=pretrained, no_such=1)


def test_a_model_that_does_not_pool_has_no_width():
    backbone = timm_backbone("resnet10t", global_pool="")
    with pytest.raises(ValueError, match="global_pool='avg'"):
        _ = backbone.num_features
