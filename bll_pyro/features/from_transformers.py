"""Backbones from Hugging Face's transformers: tokens of texts in, features out."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from bll_pyro.checks import count
from bll_pyro.features.arrays import to_tensor
from bll_pyro.features.backbones import Backbone
from bll_pyro.features.forward import feature_width
from bll_pyro.features.tokenizing import longest, packed, tokenized, unpacked
from bll_pyro.features.tokens import PooledTokens, entries
from bll_pyro.features.unfreezing import Unfreeze
from bll_pyro.files import user_path
from bll_pyro.scope import isolated

UNUSED = "pooler"  # the part of BERT and others that comes after the states of the tokens


class TransformersBackbone(Backbone):
    """A model of transformers without its head: tokens ``[N, L]`` with a mask to features ``[N, D]``.

    Made by :func:`transformers_backbone` or, without any weights and without network, by :meth:`from_config`. Inputs are the
    dictionary that a tokenizer gives, or :meth:`tokenize`; a tuple ``(input_ids, attention_mask)`` in a Dataset; or ``input_ids``
    alone, where no text is padded.

    Attributes
    ----------
    tokenizer
        The tokenizer, saved with the weights; None if none was given.
    max_length
        The number of tokens after which :meth:`tokenize` cuts; None for no limit.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        pooling: str,
        unfreeze: Unfreeze,
        tokenizer: Any = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__(PooledTokens(model, pooling), name=type(model).__name__, unfreeze=unfreeze)
        self.tokenizer, self.max_length = tokenizer, max_length
        self._unfreeze(model)

    def forward(self, inputs: Any) -> Tensor:
        """Return the features ``[N, D]`` of tokens ``[N, L]``."""
        return self.model(inputs)

    def tokenize(self, texts: Iterable[str]) -> dict[str, Tensor]:
        """Tokens and mask ``[N, L]`` of N texts, padded to the longest one: inputs for ``fit``, ``predict`` and ``extract``."""
        if self.tokenizer is None:
            raise ValueError(
                "tokenize: expected a backbone with a tokenizer, got one without; make it with transformers_backbone(..., "
                "tokenizer=transformers.AutoTokenizer.from_pretrained(name))"
            )
        return tokenized(self.tokenizer, texts, self.max_length)

    def collate(self, items: Sequence[Any]) -> Any:
        """A batch of texts, or of pairs ``(text, target)``: a DataLoader's ``collate_fn``, which pads each by itself."""
        if items and isinstance(items[0], tuple):
            texts, targets = zip(*items, strict=True)
            return self.tokenize(texts), to_tensor(list(targets), "targets")
        return self.tokenize(items)

    @cached_property
    def num_features(self) -> int:
        """D, from a dry run on one token."""
        token = torch.zeros(1, 1, dtype=torch.long)
        return feature_width(self, {"input_ids": token, "attention_mask": token + 1})

    def get_extra_state(self) -> dict[str, Any]:
        """The files of the tokenizer, which belong to the weights."""
        return {"tokenizer": None if self.tokenizer is None else packed(self.tokenizer)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The tokenizer from its files."""
        files = state["tokenizer"]
        self.tokenizer = None if files is None else unpacked(files)

    @property
    def config(self) -> dict[str, Any]:
        model: Any = self.model.model
        settings = json.loads(model.config.to_json_string(use_diff=False))
        return {
            "library": "transformers",
            "class": self.name,
            "settings": {key: value for key, value in settings.items() if key != "_name_or_path"},
            "dtype": str(model.dtype).removeprefix("torch."),
            "has_pooler": getattr(model, UNUSED, None) is not None,
            "pooling": self.model.pooling,
            "unfreeze": list(self.unfreeze) if isinstance(self.unfreeze, tuple) else self.unfreeze,
            "max_length": self.max_length,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the network of :attr:`config` with random weights, for ``load_state_dict`` afterwards; never downloads."""
        library = _library()
        made = getattr(library, config["class"], None)
        if not (isinstance(made, type) and issubclass(made, library.PreTrainedModel)):
            raise ValueError(
                f"load: expected backbone=..., since the fit was saved with a {config['class']}, which transformers "
                f"{library.__version__} does not have; make it again with transformers_backbone(model, ...)"
            )
        settings = dict(config["settings"])
        with isolated(0):
            model = made(library.AutoConfig.for_model(settings.pop("model_type"), **settings))
        if not config["has_pooler"] and getattr(model, UNUSED, None) is not None:
            setattr(model, UNUSED, None)
        return cls(
            model.to(getattr(torch, config["dtype"])),
            pooling=config["pooling"],
            unfreeze=config["unfreeze"],
            max_length=config["max_length"],
        )


def transformers_backbone(
    name_or_model: str | Path | nn.Module,
    pooling: str = "mean",
    *,
    unfreeze: Unfreeze | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    **kwargs: Any,
) -> TransformersBackbone:
    """Return a model of Hugging Face's transformers without its head, as a backbone for texts.

    The mask of the tokens is honoured everywhere: how long a text is padded, and on which side, changes its features by no more
    than rounding. Needs ``pip install bll-pyro[text]``.

    Parameters
    ----------
    name_or_model
        A name on the hub or a folder, for ``transformers.AutoModel`` and, unless one is given, ``AutoTokenizer``, from its cache or
        from the network. Or a model: its head, if it has one, is left out. A model is used as it is, and not copied unless
        `unfreeze` is given.
    pooling
        What of the states of a text's tokens are its features: their mean (``"mean"``), the state of the first token (``"cls"``),
        or of the last (``"last"``, for decoders such as GPT-2).
    unfreeze
        Parts that joint training updates: True, False, a number of last blocks, or names; see
        :func:`bll_pyro.timm_backbone`. None: all of a model by name, and of a given one those that require gradients.
    tokenizer
        The tokenizer of the model, for :meth:`TransformersBackbone.tokenize`. It is saved with the fit.
    max_length
        The number of tokens after which texts are cut; None for what model and tokenizer have positions for.
    **kwargs
        Arguments of ``AutoModel.from_pretrained``: `revision`, `dtype`, `attn_implementation` and others.

    Raises
    ------
    ImportError
        If transformers is not installed.
    ValueError
        If the model cannot be loaded, consists of an encoder and a decoder, or parts to unfreeze do not exist.
    """
    library = _library()
    if isinstance(name_or_model, nn.Module):
        if kwargs:
            raise TypeError(
                f"transformers_backbone: expected arguments of AutoModel.from_pretrained beside a name alone, got a model and "
                f"{', '.join(kwargs)}; leave them out"
            )
        model = _without_head(name_or_model, library)
        if unfreeze is None:
            unfreeze = _as_it_is(model)
        else:
            model = copy.deepcopy(model)
    else:
        model = _without_head(_loaded(library.AutoModel, name_or_model, kwargs), library)
        unfreeze = True if unfreeze is None else unfreeze
        if tokenizer is None:
            where: dict[str, Any] = {
                key: kwargs[key]
                for key in ("revision", "local_files_only", "token", "cache_dir", "trust_remote_code")
                if key in kwargs
            }
            tokenizer = _loaded(library.AutoTokenizer, name_or_model, where)
    if max_length is not None:
        count(max_length, "max_length", "transformers_backbone")
    elif tokenizer is not None:
        max_length = longest(tokenizer, model.config)
    return TransformersBackbone(
        model, pooling=pooling, unfreeze=unfreeze, tokenizer=tokenizer, max_length=max_length
    )


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "transformers_backbone: expected the package transformers, which is not installed: pip install 'bll-pyro[text]'"
        ) from error
    return transformers


def _loaded(kind: Any, name: str | Path, kwargs: Mapping[str, Any]) -> Any:
    """A pretrained model or tokenizer; ValueError if it is neither in the cache nor on the hub."""
    folder = user_path(name)
    place = str(folder) if folder.is_dir() else str(name)
    try:
        with isolated(
            0
        ):  # parts without weights in the file, such as an unused pooler, are the same each time
            return kind.from_pretrained(place, **kwargs)
    except TypeError:  # a wrong keyword argument
        raise
    except Exception as error:  # errors of network, hub and files, whose classes differ between versions
        raise ValueError(
            f"transformers_backbone: expected a folder or a name on the hub for {kind.__name__}, got {place!r} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); check the name, connect to the network once, or "
            "pass the model and its tokenizer"
        ) from error


def _without_head(model: nn.Module, library: Any) -> nn.Module:
    if not isinstance(model, library.PreTrainedModel):
        raise TypeError(
            f"transformers_backbone: expected the name of a model, or a model of transformers, got {type(model).__name__}; pass "
            "any other module to bll.fit as it is"
        )
    model = model.base_model
    if "decoder_input_ids" in entries(model):
        raise ValueError(
            f"transformers_backbone: expected an encoder or a decoder, got {type(model).__name__}, which has both; pass its "
            "encoder: transformers_backbone(model.get_encoder(), tokenizer=...)"
        )
    return model


def _as_it_is(model: nn.Module) -> Unfreeze:
    """The choice of parameters that the model itself says."""
    by_name = {path: parameter.requires_grad for path, parameter in model.named_parameters()}
    chosen = [path for path, wanted in by_name.items() if wanted]
    if len(chosen) in (0, len(by_name)):
        return bool(chosen)
    return chosen
