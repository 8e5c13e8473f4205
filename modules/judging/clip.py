"""CLIP models (Radford et al., ICML 2021) in transformers' form, from a folder."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.strict_json import read_json
from ..files.tensor_file import check_tensors

LARGEST = {  # in a CLIP model's configuration, several times what the largest known has
    "num_hidden_layers": 100,
    "num_attention_heads": 100,
    "hidden_size": 2**13,
    "intermediate_size": 2**15,
    "projection_dim": 2**13,
    "vocab_size": 2**18,
    "max_position_embeddings": 2**12,
    "image_size": 2**10,
    "num_channels": 4,
}


def check_config(folder: Path) -> None:
    """Refuse a folder whose configuration is damaged, of another kind of model, or of one larger than any.

    Raises:
        ValueError: says what it is.
    """
    try:
        config = dict(read_json((folder / "config.json").read_text(encoding="utf-8")))
        parts = [config, *(dict(config.get(name) or {}) for name in ("text_config", "vision_config"))]
        larger = [f"{key} {part[key]}" for part in parts for key, most in LARGEST.items() if part.get(key, 0) > most]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder.name} has a damaged config.json ({error}). Copy the folder again.") from error
    if config.get("model_type") != "clip":
        raise ValueError(
            f"{folder.name} holds a model of type {config.get('model_type')!r:.60}, not 'clip'. Choose a CLIP model's "
            "folder."
        )
    if larger:
        raise ValueError(f"{folder.name} has {larger[0]} in its config.json, as no CLIP model. Copy the folder again.")


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
        check_config(folder)
        try:
            model, found = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
            if found["missing_keys"]:
                raise ValueError(f"its weights lack {min(found['missing_keys'])}")
            check_tensors(model.state_dict(), folder.name, "Copy it again.")
            self.model = model.float().eval().to(device)
            self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # of any kind, by what the files say
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
