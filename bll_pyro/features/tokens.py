"""Texts as rows of features: a transformer of Hugging Face's over tokens with a mask, and the pooling of its token states."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

POOLINGS = ("mean", "cls", "last")
MASK = "attention_mask"


class PooledTokens(nn.Module):
    """A transformer and the pooling of its token states: tokens ``[N, L]`` to features ``[N, D]``.

    A row's features do not depend on its padding. Padding on the left is moved to the right, so that the model counts the
    positions from the first token of the text, and columns that are padding in all rows are cut off.

    Parameters
    ----------
    model
        A model of transformers whose first output is the states ``[N, L, D]``.
    pooling
        Their mean over the tokens of the text, the state of the first (``"cls"``), or that of the last.
    """

    def __init__(self, model: nn.Module, pooling: str) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(
                f"pooling: expected one of {', '.join(map(repr, POOLINGS))}, got {pooling!r}; encoders were mostly trained for the "
                "mean or the first token, and for decoders the last one has seen the whole text"
            )
        self.model, self.pooling = model, pooling
        self._entries = entries(model)

    def forward(self, inputs: Any) -> Tensor:
        """Features ``[N, D]`` of a dictionary of ``input_ids``, ``attention_mask`` and others, of both in a tuple, or of ids."""
        given = self._named(inputs)
        mask = given.pop(MASK, None)
        mask = self._without_mask(given) if mask is None else mask.long()
        given, mask = right_padded(given, mask)
        fixed = {
            name: value
            for name, value in (("use_cache", False), ("return_dict", True))
            if name in self._entries
        }
        states = self.model(**given, **{MASK: mask}, **fixed)[0]
        if states.dim() != 3 or states.shape[:2] != mask.shape:
            raise ValueError(
                f"{type(self.model).__name__}: expected states of tokens [N, L, D] for masks {list(mask.shape)}, got "
                f"{list(states.shape)}; give a model whose first output they are, such as transformers.AutoModel makes"
            )
        return pooled(states, mask, self.pooling)

    def _named(self, inputs: Any) -> dict[str, Tensor]:
        if isinstance(inputs, Tensor):
            inputs = {"input_ids": inputs}
        elif isinstance(inputs, (tuple, list)) and len(inputs) == 2:
            inputs = dict(zip(("input_ids", MASK), inputs, strict=True))
        if not isinstance(inputs, Mapping):
            raise ValueError(
                f"{type(self.model).__name__}: expected a dictionary of tokens, a pair (input_ids, attention_mask), or input_ids, "
                f"got {type(inputs).__name__}; make it with backbone.tokenize(texts)"
            )
        unknown = [name for name in inputs if name not in self._entries]
        if unknown or not inputs:
            raise ValueError(
                f"{type(self.model).__name__}: expected tokens by name ({', '.join(self._entries[:4])}, ...), got "
                f"{', '.join(map(repr, unknown)) or 'none'}; leave other entries out, and give targets "
                "beside them: (inputs, targets)"
            )
        return dict(inputs)

    def _without_mask(self, given: Mapping[str, Tensor]) -> Tensor:
        """A mask of tokens that are all real; ValueError if one of them may be padding."""
        first = next(iter(given.values()))
        padding = getattr(self.model.config, "pad_token_id", None)
        if padding is not None and "input_ids" in given and bool((given["input_ids"] == padding).any()):
            raise ValueError(
                f"{type(self.model).__name__}: expected an attention_mask, since there are tokens with the number {padding} of the "
                "padding, got input_ids alone; pass all that the tokenizer returns, or backbone.tokenize(texts)"
            )
        return torch.ones(first.shape[:2], dtype=torch.long, device=first.device)


def right_padded(given: Mapping[str, Tensor], mask: Tensor) -> tuple[dict[str, Tensor], Int[Tensor, "N L"]]:
    """The same rows with all padding on the right, and no more of it than the longest row needs."""
    if mask.dim() != 2:
        raise ValueError(
            f"attention_mask: expected ones and zeros of shape [N, L], got {list(mask.shape)}; pass it as the tokenizer makes it"
        )
    empty = ~mask.any(1)
    if bool(empty.any()):
        raise ValueError(
            f"attention_mask: expected a token in each row, got none in row {int(empty.nonzero()[0])} of a batch; drop texts "
            "without tokens, or add a token to them"
        )
    length = mask.shape[1]
    first = (mask != 0).long().argmax(1)
    last = length - 1 - (mask != 0).long().flip(1).argmax(1)
    columns = torch.arange(int((last - first).max()) + 1, device=mask.device)
    order = (first[:, None] + columns) % length
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    # beyond its last token a row goes on with the padding on its right, and then with that on its left
    by_token = {
        name: value[rows, order] if value.shape[:2] == mask.shape else value for name, value in given.items()
    }
    return by_token, mask[rows, order]


def pooled(states: Float[Tensor, "N L D"], mask: Int[Tensor, "N L"], pooling: str) -> Float[Tensor, "N D"]:
    """One row of features for each row of states, of which those under a mask of 0 do not count."""
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
        return states[torch.arange(len(states), device=states.device), last]
    weight = mask[..., None].to(
        torch.promote_types(states.dtype, torch.float32)
    )  # half precision cannot count to 500
    return ((states * weight).sum(1) / weight.sum(1)).to(states.dtype)


def entries(model: nn.Module) -> tuple[str, ...]:
    """Names of the arguments of a model's forward."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(
        name for name, one in inspect.signature(model.forward).parameters.items() if one.kind in kinds
    )
