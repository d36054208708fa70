"""Backbones from timm: images in, features out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from bll_pyro.features.backbones import Backbone
from bll_pyro.features.forward import feature_width
from bll_pyro.features.unfreezing import Unfreeze
from bll_pyro.features.weights import check_name, create, download, model_from_file
from bll_pyro.files import user_path
from bll_pyro.scope import isolated

_RESERVED = {"num_classes", "features_only", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"}


class TimmBackbone(Backbone):
    """A timm model without its head: images ``[N, C, H, W]`` to features ``[N, D]``.

    Made by :func:`timm_backbone` or, without any weights and without network, by :meth:`from_config`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        kwargs: Mapping[str, Any],
        unfreeze: Unfreeze,
        images: Mapping[str, Any],
    ) -> None:
        super().__init__(model, name=name, unfreeze=unfreeze)
        self._kwargs, self._images = dict(kwargs), dict(images)
        self._unfreeze(model)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features ``[N, D]`` of images ``[N, C, H, W]``: what the model has before its classifier."""
        # not model(x): before timm 1.0.26 CLIP's ResNets had a random projection there (pytorch-image-models#2682)
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)  # type: ignore[operator]

    @cached_property
    def num_features(self) -> int:
        """D, from a dry run on one blank image: timm's own `num_features` is not always the width after pooling."""
        return feature_width(self, torch.zeros(1, *self._images["input_size"]))

    @cached_property
    def transform(self) -> Any:
        """The preprocessing for evaluation, from a PIL image to a tensor ``[C, H, W]`` as the weights expect it."""
        from timm.data import create_transform

        return create_transform(**self._images, is_training=False)

    @property
    def config(self) -> dict[str, Any]:
        unfreeze = list(self.unfreeze) if isinstance(self.unfreeze, tuple) else self.unfreeze
        config = {
            "library": "timm",
            "name": self.name,
            "kwargs": self._kwargs,
            "unfreeze": unfreeze,
            "images": self._images,
        }
        try:
            return json.loads(json.dumps(config))
        except TypeError as error:
            raise TypeError(
                f"{self.name}: expected arguments that can be written to a file (numbers, strings, lists), got "
                f"{self._kwargs}; build the timm model yourself and pass it as any other torch module"
            ) from error

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network of :attr:`config` with random weights, for ``load_state_dict`` afterwards; never downloads."""
        with isolated(0):
            model = create(config["name"], config["kwargs"])
        return cls(
            model,
            name=config["name"],
            kwargs=config["kwargs"],
            unfreeze=config["unfreeze"],
            images={k: tuple(v) if isinstance(v, list) else v for k, v in config["images"].items()},
        )


def timm_backbone(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    checkpoint: str | Path | None = None,
    unfreeze: Unfreeze = True,
    **kwargs: Any,
) -> TimmBackbone:
    """Return the timm model `name` without its head, as a backbone.

    Parameters
    ----------
    name
        A name from ``timm.list_models()``, with or without the tag of its weights (``"resnet50.a1_in1k"``), or with a
        prefix ``"hf-hub:"`` or ``"local-dir:"``.
    pretrained
        True takes timm's weights, from its cache or from the network. False takes random weights, drawn from torch's global
        random state. A path is a `checkpoint`.
    checkpoint
        A safetensors or .pth file of weights of this model, such as those of a training run of your own. It is read through timm,
        without unpickling code. A head in the file is ignored; everything else has to be what the model has.
    unfreeze
        Parts that joint training, ``SVI(backbone_learning_rate=...)``, updates. True: all. False: none. A number n: the
        last n blocks (of transformers) or stages (of convolutional networks) and all layers after them. A list of names:
        the parameters under these names, such as ``["layer4"]`` or, with wildcards, ``["blocks.*.norm1"]``. BatchNorm layers of all
        other parts keep their statistics.
    **kwargs
        Arguments of the model: `in_chans`, `img_size`, `global_pool`, `drop_path_rate` and others.

    Raises
    ------
    ValueError
        If timm has no model of this name (the message lists the nearest ones), weights are not available or do not
        match, or parts to unfreeze do not exist.
    """
    from timm.data import resolve_model_data_config

    if reserved := sorted(_RESERVED & set(kwargs)):
        raise ValueError(
            f"{name}: expected arguments of the network without its head, got {', '.join(reserved)}; the last layer is "
            "the Bayesian one, and weights are chosen by pretrained= or checkpoint="
        )
    check_name(name)
    where, _, folder = name.partition(":")
    if where == "local-dir":
        name = f"{where}:{user_path(folder)}"
    if not isinstance(pretrained, bool) and checkpoint is None:
        checkpoint = pretrained
        pretrained = False
    if pretrained and checkpoint is not None:
        raise ValueError(
            f"{name}: expected weights from one place, got pretrained={str(pretrained)!r} and checkpoint="
            f"{str(checkpoint)!r}; give one of them"
        )
    if checkpoint is not None:
        model = model_from_file(name, kwargs, user_path(checkpoint))
    else:
        model = download(name, kwargs) if pretrained else create(name, kwargs)
    if ":" in name:  # the files of such a name may not exist later: store the model's own name and arguments
        kwargs = _stored_arguments(name) | kwargs
        name = str(cast(dict[str, Any], model.pretrained_cfg)["architecture"])
    return TimmBackbone(
        model,
        name=name,
        kwargs=kwargs,
        unfreeze=unfreeze,
        images=_image_config(resolve_model_data_config(model), kwargs),
    )


def _stored_arguments(name: str) -> dict[str, Any]:
    """Arguments of the network in the configuration that a repository of the hub or a folder has: timm may not keep them."""
    from timm.models import load_model_config_from_hf

    where, _, place = name.partition(":")
    if where == "local-dir":
        found = json.loads((Path(place) / "config.json").read_text("utf-8")).get("model_args", {})
    else:
        found = load_model_config_from_hf(place)[2]
    return {key: value for key, value in found.items() if key != "num_classes"}


def _image_config(config: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Preprocessing of the model in timm, for its image size and number of channels."""
    channels, *size = config["input_size"]
    channels = kwargs.get("in_chans") or channels
    if wanted := kwargs.get("img_size"):
        size = [wanted, wanted] if isinstance(wanted, int) else list(wanted)
    images = {**config, "input_size": (channels, *size)}
    for name in ("mean", "std"):  # timm's are for three channels; other numbers of channels get their average
        if len(images[name]) != channels:
            images[name] = (sum(images[name]) / len(images[name]),) * channels
    return images
