"""CLIP from a folder, against transformers' own forward pass on a small random model."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from consistent_video.modules.judging.clip import ClipModel

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_clip(folder: Path) -> transformers.CLIPModel:
    """Write a small random CLIP model with a tokenizer of single letters, as transformers saves them."""
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    text = {**shape, "vocab_size": len(words), "max_position_embeddings": 11, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**shape, "image_size": 32, "patch_size": 8}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    model.save_pretrained(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    transformers.CLIPImageProcessor(**sizes).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    kind = {"tokenizer_class": "CLIPTokenizer", "bos_token": words[0], "eos_token": words[1], "unk_token": words[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps({**kind, "pad_token": words[1], "model_max_length": 11}))
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clip").mkdir()
    return tmp_path / "clip"


def test_frames_and_prompts_are_embedded_as_transformers_does(folder: Path) -> None:
    model = write_clip(folder)
    clip = ClipModel(folder, torch.device("cpu"))
    frames = torch.rand(11, 3, 32, 32)  # of the model's size: neither scaled nor cropped
    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])
    pixels = (frames - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    ids = torch.tensor([[0, *(2 + 26 + LETTERS.index(letter) for letter in "bd"), 1]])
    with torch.no_grad():
        both = model(input_ids=ids, pixel_values=pixels)
    own = torch.nn.functional.normalize(clip.images(frames), dim=1)
    torch.testing.assert_close(own, both.image_embeds, atol=1e-5, rtol=1e-4)
    text = torch.nn.functional.normalize(clip.text("b d"), dim=0)
    torch.testing.assert_close(text, both.text_embeds[0], atol=1e-5, rtol=1e-4)


def test_a_long_prompt_is_cut_and_wide_frames_are_cropped(folder: Path) -> None:
    write_clip(folder)
    clip = ClipModel(folder, torch.device("cpu"))
    assert clip.text("b c d e f g h i j k l m n").shape == (20,)
    wide = torch.rand(2, 3, 32, 80)
    torch.testing.assert_close(clip.images(wide), clip.images(wide[..., 24:56]))


def test_nothing_else_than_a_clip_model_is_taken(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ValueError, match="^clip is no whole CLIP folder .* it.model_type is 'siglip'"):
        ClipModel(folder, torch.device("cpu"))


@pytest.mark.parametrize("spoil", ["cut", "lacking", "nan"])
def test_damaged_weights_are_refused(folder: Path, spoil: str) -> None:
    write_clip(folder)
    path, key = folder / "model.safetensors", "text_projection.weight"
    weights = load_file(path)
    if spoil == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif spoil == "lacking":
        save_file({name: value for name, value in weights.items() if name != key}, path, {"format": "pt"})
    else:
        save_file({**weights, key: weights[key] * torch.nan}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"no whole CLIP folder .*({key}|[Ii]ncomplete|[Cc]orrupt)"):
        ClipModel(folder, torch.device("cpu"))


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_a_damaged_configuration_is_told(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match="^clip is no whole CLIP folder .config.json is not one of a CLIP model"):
        ClipModel(folder, torch.device("cpu"))


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"])
def test_a_configuration_of_more_than_the_weights_is_refused_before_memory_is_taken(folder: Path, key: str) -> None:
    write_clip(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"][key] = 10**7
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json tells of \d+ weights, and the files of weights have \d+ bytes"):
        ClipModel(folder, torch.device("cpu"))


def test_pictures_far_larger_than_the_model_takes_are_refused(folder: Path) -> None:
    write_clip(folder)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor["size"] = {"shortest_edge": 10**6}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ValueError, match="makes pictures of 1000000 pixels, the model takes 32"):
        ClipModel(folder, torch.device("cpu"))


def test_a_missing_part_is_told(folder: Path) -> None:
    write_clip(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no whole CLIP folder"):
        ClipModel(folder, torch.device("cpu"))


def test_without_transformers_it_says_what_to_install(folder: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        ClipModel(folder, torch.device("cpu"))
