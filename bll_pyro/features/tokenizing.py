"""Tokenizers of Hugging Face: texts to tensors, and a tokenizer as tensors that are saved beside the weights."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NO_LIMIT = 10**9  # tokenizers without a longest text name a number beyond this
_RECORDS = ("name_or_path", "is_local", "local_files_only")


def tokenized(tokenizer: Any, texts: Iterable[str], max_length: int | None) -> dict[str, Tensor]:
    """Tokens ``[N, L]`` of N texts and their mask, padded to the longest; those longer than ``max_length`` are cut, with a warning.

    Raises
    ------
    TypeError
        If these are not texts.
    ValueError
        If there is no text, one has no tokens, or the tokenizer has no token for padding.
    """
    texts = _checked(texts)
    if tokenizer.pad_token is None:
        raise ValueError(
            "tokenizer: expected one with a token for padding, got none; padding is masked, so that any token serves: "
            "tokenizer.pad_token = tokenizer.eos_token"
        )
    limit = {} if max_length is None else {"truncation": True, "max_length": max_length}
    found = tokenizer(texts, padding=True, return_attention_mask=True, return_tensors="pt", **limit)
    num_cut = sum(bool(one.overflowing) for one in found.encodings or ())
    if num_cut:
        warnings.warn(
            f"{num_cut} of {len(texts)} texts have more than {max_length} tokens and were cut there; give a larger max_length if "
            "the model has the positions for it, or shorter texts",
            UserWarning,
            stacklevel=3,
        )
    empty = ~found["attention_mask"].bool().any(1)
    if bool(empty.any()):
        raise ValueError(
            f"texts: expected at least one token in each, got none in {int(empty.sum())}, the first in row "
            f"{int(empty.nonzero()[0])}; drop empty texts"
        )
    return dict(found)


def longest(tokenizer: Any, config: Any) -> int | None:
    """The number of tokens that tokenizer and model have positions for; None if neither has a limit."""
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < NO_LIMIT]
    return min(known, default=None)


def packed(tokenizer: Any) -> dict[str, Tensor]:
    """The files of a tokenizer by name, each as bytes ``[n]``."""
    if hasattr(tokenizer, "backend_tokenizer"):  # how the last call padded and cut is no part of it either
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        settings = Path(folder) / "tokenizer_config.json"
        if settings.is_file():  # it says where the tokenizer was loaded from, which is no part of it
            kept = {
                key: value for key, value in json.loads(settings.read_text()).items() if key not in _RECORDS
            }
            settings.write_text(json.dumps(kept, indent=1))
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {
            str(path.relative_to(folder)): torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
            for path in files
            if path.stat().st_size
        }


def unpacked(files: dict[str, Tensor]) -> Any:
    """The tokenizer of :func:`packed` files; no code of theirs runs, and nothing is downloaded."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder) / name
            if not path.resolve().is_relative_to(Path(folder).resolve()):
                raise ValueError(
                    f"load: expected files of a tokenizer, got one named {name!r}; save the fit again"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.numpy().tobytes())
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _checked(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError("texts: expected a list of texts, got one text; put it into a list: [text]")
    texts = list(texts)
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise TypeError(
            f"texts: expected a list of strings, got a {type(wrong[0]).__name__} in it; convert the entries, and fill in "
            "missing ones"
        )
    if not texts:
        raise ValueError("texts: expected at least one text, got none; give more data")
    return texts
