"""CLIP models (Radford et al., ICML 2021) in transformers' form, from a folder."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..files.tensor_file import check_tensors


class ClipModel:
    """Embeds frames and prompts in one space; nothing is downloaded.

    Args:
        folder: with config.json, weights, preprocessor_config.json and tokenizer, as transformers saves them.
        device: to compute on.

    Raises:
        ImportError: transformers is absent.
        ValueError: the folder holds another kind of model, or a part is missing.
    """

    def __init__(self, folder: Path, device: torch.device):
        try:
            from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
        except ImportError as error:
            raise ImportError(
                "A CLIP folder needs the package transformers, which is not installed. Install it into ComfyUI's "
                "Python: pip install transformers"
            ) from error
        try:
            kind = dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))).get("model_type")
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"config.json of {folder.name} is damaged ({error}). Copy the folder again.") from error
        if kind != "clip":
            raise ValueError(f"{folder.name} holds a model of type {kind!r}, not 'clip'. Choose a CLIP model's folder.")
        try:
            model, found = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
            if found["missing_keys"]:
                raise ValueError(f"its weights lack {min(found['missing_keys'])}")
            check_tensors(model.state_dict(), folder.name, "Copy it again.")
            self.model = model.float().eval().to(device)
            self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{folder.name} is no whole CLIP folder ({error}). It needs the weights, preprocessor_config.json and "
                "the tokenizer's files."
            ) from error
        self.device = device

    @torch.no_grad()
    def images(self, frames: Tensor) -> Tensor:
        """Return the embeddings (f, d) of frames (f, 3, h, w) in 0 ... 1."""
        pixels = self.processor(images=list(frames.float()), do_rescale=False, return_tensors="pt")["pixel_values"]
        features = [pooled(self.model.get_image_features(part)) for part in pixels.to(self.device).split(8)]
        return torch.cat(features).float().cpu()

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """Return the embedding (d) of a prompt, cut at the model's length."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompt, truncation=True, max_length=length, return_tensors="pt").to(self.device)
        features = self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])
        return pooled(features)[0].float().cpu()


def pooled(features: Any) -> Tensor:
    """Return the projected embeddings: transformers 5 wraps them in an output, 4 returns them."""
    return features if isinstance(features, Tensor) else features.pooler_output
