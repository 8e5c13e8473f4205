"""Prompt tokens that most tests start from."""

from types import SimpleNamespace

import pytest
import torch

from consistent_video.modules.files import host as files
from consistent_video.modules.prompt_tokens.adapter import PromptAdapter
from consistent_video.nodes.prompt import TunePromptTokens

from ..small import FRAMES, UNET
from .learned import run


@pytest.fixture(scope="session")
def adapter() -> PromptAdapter:
    return run().adapter


@pytest.fixture(scope="module")
def far() -> PromptAdapter:
    """Tokens far from where they began, whose effect is large."""
    generator = torch.Generator().manual_seed(8)
    width = UNET["context_dim"]
    return PromptAdapter(
        2 * torch.randn(3, width, generator=generator), 2 * torch.randn(FRAMES, 2, width, generator=generator), {}
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(files.folder_paths, "get_folder_paths", lambda _: [str(tmp_path)])
    monkeypatch.setattr(files.folder_paths, "get_full_path_or_raise", lambda _, name: str(tmp_path / name))
    monkeypatch.setattr(TunePromptTokens, "hidden", SimpleNamespace(unique_id="1"))
    return tmp_path
