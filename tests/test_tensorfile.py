"""Tensor files: whole, and readable by whom any new file is."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bll_pyro import tensorfile


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_contents_hash_and_permissions(tmp_path: Path, umask: int) -> None:
    """A model trained by one user is served by another: private files only where the user's umask says so."""
    before = os.umask(umask)
    try:
        digest = tensorfile.write_tensors(tmp_path / "x.safetensors", {"x": torch.arange(5)})
    finally:
        os.umask(before)
    path = tmp_path / "x.safetensors"
    assert torch.equal(load_file(path)["x"], torch.arange(5))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == tensorfile.sha256(path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
