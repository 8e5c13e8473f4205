"""A package of 8-bit optimisers that stands in for bitsandbytes."""

import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest

from .toy import WrappingAdamW


@pytest.fixture
def with_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=WrappingAdamW))
    package.__spec__ = ModuleSpec("bitsandbytes", None)  # others ask whether it is installed
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", package.optim)
