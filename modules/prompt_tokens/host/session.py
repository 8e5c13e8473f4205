"""One tuning of prompt tokens on a private copy of a model, from its inputs to the adapter."""

from dataclasses import asdict, dataclass

from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...clip_model.host.bank import TemporalBank, transformer_blocks
from ...diffusion.seed import seeded
from ...tuning.host.learned import frozen_bank
from ...tuning.host.session import Session
from ...tuning.host.tune_inputs import TuneInputs, rows_of
from ...tuning.settings import TuneSettings
from ..adapter import PromptAdapter, PromptTokens
from .low_rank import LowRank

CONTEXT = "c_crossattn"  # the host's name of what cross-attention reads


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


class PromptTuning(Session[PromptAdapter]):
    """A tuning of prompt tokens, see Session; the UNet stays as it is.

    Args:
        copy, model, inputs, settings: as for Session.
        prompt: what is learned.
        embeddings: of the frames, shape (f, e), that their tokens are projected from; None = they are not.
    """

    MUST_AGREE = ("shared_tokens", "frame_tokens", "embedding", "rank", "frames", "optimizer")
    NO_STATE = "resume has no state of its tuning, which diverged. Begin a new one."
    learned: LearnedPrompt

    def __init__(
        self,
        copy: ModelPatcher,
        model: ModelPatcher,
        inputs: TuneInputs,
        settings: TuneSettings,
        prompt: PromptSettings,
        embeddings: Tensor | None = None,
    ):
        self.prompt, self.embeddings = prompt, embeddings
        super().__init__(copy, model, inputs, settings)
        self.info |= {**asdict(prompt), "width": self.given[CONTEXT].shape[-1]}
        if embeddings is not None:
            self.info["embedding"] = embeddings.shape[-1]

    def learn(self, model: ModelPatcher, settings: TuneSettings) -> tuple[LearnedPrompt, TemporalBank | None]:
        """Return tokens and low-rank adapters before they are learned, and the temporal modules as they are."""
        device, unet, prompt = self.copy.load_device, self.copy.model.diffusion_model, self.prompt
        width, generator = self.given[CONTEXT].shape[-1], seeded(settings.seed)
        counts = prompt.shared_tokens, prompt.frame_tokens, len(self.x_0)
        tokens = PromptTokens(*counts, width, generator, self.embeddings)
        low_rank = LowRank(unet, prompt.rank, device, settings.seed) if prompt.rank else None
        return LearnedPrompt(tokens.to(device), low_rank), frozen_bank(unet, model, device)

    def model_weights(self) -> list[Tensor]:
        """Return the query projections of cross-attention."""
        unet = self.copy.model.diffusion_model
        return [unet.get_submodule(f"{block.path}.attn2.to_q").weight for block in transformer_blocks(unet)]

    def denoise(self, x: Tensor, sigma: Tensor, frames: slice) -> Tensor:
        """Predict x_0 for a step of the tuning."""
        given = rows_of(self.given, frames)
        return self.call(x, sigma, {**given, CONTEXT: self.learned.tokens.context(given[CONTEXT], frames)})

    def made(self, done: int, state: dict[str, Tensor]) -> PromptAdapter:
        """Return the tokens as they are, after some steps."""
        tokens = self.learned.tokens
        shared, frame = (value.detach().cpu().clone() for value in (tokens.shared, tokens.of_frames()))
        return PromptAdapter(shared, frame, self.info_after(done), state)

    def low_rank(self) -> dict[str, Tensor]:
        """Return the low-rank adapters as the host's LoRA files hold them; empty where there are none."""
        return self.learned.low_rank.tensors() if self.learned.low_rank is not None else {}
