"""One tuning of prompt tokens on a private copy of a model, from its inputs to the adapter."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...clip_model.host.bank import transformer_blocks
from ...clip_model.host.features import Features, warn_of_few_frames
from ...clip_model.host.settings import clip_settings
from ...diffusion.host.latent import clip_latent, prediction_of, sigma_table, to_model_latent
from ...tuning.host.fit import FittingSteps
from ...tuning.host.learned import Caller, frozen_bank, training_options
from ...tuning.host.private_copy import choose_precision, computing_in
from ...tuning.host.progress import TuningProgress
from ...tuning.host.session import losses_after
from ...tuning.host.tune_inputs import TuneInputs, condition, latent_mask, rows_of
from ...tuning.settings import TuneSettings
from ...tuning.tuner import ROUNDING, Tuner
from ...tuning.weights import hash_tensors
from ..adapter import PromptAdapter, PromptTokens
from .low_rank import LowRank

CONTEXT = "c_crossattn"  # the host's name of what cross-attention reads
MUST_AGREE = ("shared_tokens", "frame_tokens", "rank", "frames", "optimizer", "model_hash")


@dataclass(frozen=True)
class PromptSettings:
    """What of a prompt adapter is learned.

    Attributes:
        shared_tokens: seen by all frames.
        frame_tokens: of each frame.
        rank: of low-rank adapters on the attention projections, learned with them; 0 = none.
    """

    shared_tokens: int = 4
    frame_tokens: int = 2
    rank: int = 0


class LearnedPrompt(nn.Module):
    """What is learned: the tokens, and low-rank adapters where there are."""

    def __init__(self, tokens: PromptTokens, low_rank: LowRank | None):
        super().__init__()
        self.tokens, self.low_rank = tokens, low_rank


class PromptTuning(FittingSteps):
    """A tuning of prompt tokens in the host: makes the Tuner, and adapters of its states.

    Args:
        copy: private copy of the model.
        model: inflated model, with what is attached to it.
        inputs: what it is tuned with.
        settings: of the tuning.
        prompt: what is learned.
    """

    def __init__(
        self,
        copy: ModelPatcher,
        model: ModelPatcher,
        inputs: TuneInputs,
        settings: TuneSettings,
        prompt: PromptSettings,
    ):
        device, unet = copy.load_device, copy.model.diffusion_model
        self.copy, self.clip = copy, clip_settings(model)
        x_0 = to_model_latent(copy, clip_latent(model, inputs.latent, self.clip.num_frames))
        self.precision = choose_precision(settings.precision, model, device)
        computing = computing_in(self.precision, copy)
        unet.requires_grad_(False)
        warn_of_few_frames(settings, len(x_0))
        self.features = Features(unet, settings.consistency_part)
        self.bank = frozen_bank(unet, model, device)
        options = training_options(copy, self.bank, settings)
        self.call = Caller(copy, options, computing, self.features if settings.consistency_weight else None)
        self.given = condition(copy, inputs.positive, x_0)
        width, generator = self.given[CONTEXT].shape[-1], torch.Generator().manual_seed(settings.seed)
        tokens = PromptTokens(prompt.shared_tokens, prompt.frame_tokens, len(x_0), width, generator)
        low_rank = LowRank(unet, prompt.rank, device, settings.seed) if prompt.rank else None
        self.learned = LearnedPrompt(tokens.to(device), low_rank)
        self.tuner = Tuner(
            self.denoise,
            self.learned,
            x_0,
            sigma_table(model).clone(),
            prediction_of(model),
            settings,
            latent_mask(inputs.mask, x_0),
            scale_gradients=self.precision == "fp16",
            features=self.features.take,
            rounding=ROUNDING[self.precision],
        )
        queries = [unet.get_submodule(f"{block.path}.attn2.to_q").weight for block in transformer_blocks(unet)]
        self.info = {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()},
            **asdict(prompt),
            "frames": len(x_0),
            "width": width,
            "precision": self.precision,
            "prediction": prediction_of(model),
            "masked": inputs.mask is not None,
            "clip_hash": hash_tensors([x_0]),
            "model_hash": hash_tensors(queries),
            **({"prompt": inputs.prompt} if inputs.prompt else {}),
        }
        if inputs.resume is not None:
            self.resume(inputs.resume)

    def resume(self, adapter: Any) -> None:
        """Continue a tuning.

        Raises:
            ValueError: the adapter has no state, or was made with another model, clip length or other tokens.
        """
        if not adapter.state:
            raise ValueError("resume has no state of its tuning: it ended outside of the numbers. Begin a new one.")
        for key in MUST_AGREE:
            if adapter.info.get(key) != self.info[key]:
                raise ValueError(
                    f"resume was tuned with {key} = {adapter.info.get(key)}, and here it is {self.info[key]}. Use what "
                    "it was begun with."
                )
        self.tuner.load_state_dict(adapter.state)

    def denoise(self, x: Tensor, sigma: Tensor, frames: slice) -> Tensor:
        """Predict x_0 for a step of the tuning."""
        given = rows_of(self.given, frames)
        return self.call(x, sigma, {**given, CONTEXT: self.learned.tokens.context(given[CONTEXT], frames)})

    def run(self, progress: TuningProgress) -> None:
        """Do the steps that are left, showing them."""
        progress.begin(self.tuner.settings.steps, len(self.tuner.losses))
        for done in self.steps():
            progress(done, self.tuner.losses[-1])

    def tune(self) -> PromptAdapter:
        """Return what has been learned."""
        return self.adapter(len(self.tuner.losses), self.tuner.state_dict())

    def adapter(self, done: int, state: dict[str, Tensor]) -> PromptAdapter:
        """Return the tokens as they are, after some steps."""
        tokens = self.learned.tokens
        shared, frame = (value.detach().cpu().clone() for value in (tokens.shared, tokens.frame))
        return PromptAdapter(shared, frame, {**self.info, **losses_after(self.tuner, done)}, state)

    def low_rank(self) -> dict[str, Tensor]:
        """Return the low-rank adapters as the host's LoRA files hold them; empty where there are none."""
        return self.learned.low_rank.tensors() if self.learned.low_rank is not None else {}

    def last_good(self) -> PromptAdapter | None:
        """Return what had been learned when the loss was last seen finite, None = nothing."""
        done, learned = self.tuner.last_good
        if not done:
            return None
        self.learned.load_state_dict(learned)
        return self.adapter(done, {})
