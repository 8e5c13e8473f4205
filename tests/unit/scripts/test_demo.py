"""The demo's command line."""

import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from consistent_video.scripts.edit import check_checkpoint
from consistent_video.scripts.environment import ROOT

SETTINGS = [("Edit.cfg=5", 5), ("Edit.cfg=0.5", 0.5), ("Prompt.text=a red circle", "a red circle"), ("A.b=null", None)]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import demo

    return demo


@pytest.mark.parametrize(("text", "value"), SETTINGS)
def test_a_setting_is_json_or_a_text(demo, text: str, value: object) -> None:
    title, key = text.split("=")[0].split(".")
    assert demo.read_setting(text) == ((title, key), value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "[1, NaN]"])
def test_a_setting_that_is_no_number_is_refused(demo, number: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number that an input can have"):
        demo.read_setting(f"Edit.cfg={number}")


@pytest.mark.parametrize("size", ["56", "100", "80000000"])
def test_a_size_out_of_reach_is_refused(demo, size: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["demo.py", "--size", size])
    with pytest.raises(SystemExit):
        demo.main()
    assert f"--size must be a multiple of 8 from 64 to 2048, got {size}" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"a text", bytes(200), b"\xff" * 200])
def test_a_damaged_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3)}, path)
    check_checkpoint(path)
    for damaged in (path.read_bytes()[:-1], content):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="model.safetensors is damaged or not a checkpoint .*Copy it again"):
            check_checkpoint(path)
