"""CLIP models (Radford et al., ICML 2021) in transformers' form, from a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from ..files.record import Between, Count, read_record
from ..files.strict_json import read_json
from ..files.tensor_file import check_tensors
from ..files.weight_file import check_packed

SIDES = ("height", "width", "shortest_edge", "longest_edge")


@dataclass(frozen=True)
class Tower:
    """The sizes of an encoder, as config.json has them; 0 where it leaves them to transformers."""

    OPEN: ClassVar = True
    num_hidden_layers: Count = 0
    hidden_size: Count = 0
    intermediate_size: Count = 0
    vocab_size: Count = 0
    max_position_embeddings: Count = 0
    image_size: Count = 0
    patch_size: Annotated[int, Between(1, 2**31)] = 1
    num_channels: Count = 0

    @property
    def weights(self) -> int:
        """Return how many weights it has at least."""
        rows = self.vocab_size + self.max_position_embeddings + (self.image_size // self.patch_size) ** 2
        rows += self.num_channels * self.patch_size**2
        block = 4 * self.hidden_size + 2 * self.intermediate_size
        return self.num_hidden_layers * (1 + self.hidden_size * block) + self.hidden_size * rows


@dataclass(frozen=True)
class Config:
    """What config.json says of a CLIP model."""

    OPEN: ClassVar = True
    model_type: Literal["clip"]
    text_config: Tower | None = None
    vision_config: Tower | None = None


def check_folder(folder: Path) -> None:
    """Refuse a folder whose config.json is damaged, of another kind of model, or of one larger than its weights.

    Raises:
        ValueError: says what is wrong with it.
    """
    try:
        config = read_record(Config, read_json((folder / "config.json").read_text("utf-8")), "it")
    except (OSError, ValueError) as error:
        raise ValueError(f"config.json is not one of a CLIP model: {error}") from error
    told = sum(tower.weights for tower in (config.text_config, config.vision_config) if tower is not None)
    files = [file for ending in ("*.safetensors", "*.bin") for file in folder.glob(ending)]
    held = sum(file.stat().st_size for file in files)
    if told > held:
        raise ValueError(f"config.json tells of {told} weights, and the files of weights have {held} bytes")
    for file in files:
        check_packed(file)


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
            check_folder(folder)
            model, found = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
            if found["missing_keys"]:
                raise ValueError(f"its weights lack {min(found['missing_keys'])}")
            check_tensors(model.state_dict(), folder.name, "Copy it again.")
            self.model = model.float().eval().to(device)
            self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
            sizes = (self.processor.size, self.processor.crop_size)
            asked = max(box.get(side) or 0 for box in sizes for side in SIDES)
            taken = model.config.vision_config.image_size
            if asked > 4 * taken:
                raise ValueError(f"preprocessor_config.json makes pictures of {asked} pixels, the model takes {taken}")
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self.device = device
            self.images(torch.zeros(1, 3, 8, 8))  # its parts fit each other
            self.text("a")
        except (MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:  # of any kind, by what the files say
            raise ValueError(
                f"{folder.name} is no whole CLIP folder ({error}). It needs config.json, the weights, "
                "preprocessor_config.json and the tokenizer's files."
            ) from error

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
