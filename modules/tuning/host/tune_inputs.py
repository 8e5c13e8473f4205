"""What a clip is tuned with, as the UNet of a private copy takes it."""

from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import convert_cond
from comfy.samplers import encode_model_conds
from torch import Tensor

from ...diffusion.host.latent import to_positions
from ...diffusion.host.run import check_prompts
from ..weights import Tune
from .control_nets import ControlNets, control_of
from .preview import PreviewSettings

CONTROL_NETS = "control"
SAMPLED_WITH = (CONTROL_NETS, "mask", "area", "gligen", "hooks", "start_percent", "end_percent", "concat_latent_image")


@dataclass(frozen=True)
class TuneInputs:
    """What a clip is tuned with, beside the model.

    Attributes:
        positive: conditioning of the source prompt, which may have ControlNets.
        latent: the clip, VAE latent.
        mask: where the loss counts, shape (f or 1, height, width), 0 ... 1; None = everywhere.
        resume: tune with the state of a tuning to continue.
        preview: edit shown while it runs; None = none.
        prompt: text of the source prompt to note in the tune; empty = none.
    """

    positive: list
    latent: dict[str, Any]
    mask: Tensor | None = None
    resume: Tune | None = None
    preview: PreviewSettings | None = None
    prompt: str = ""

    @property
    def conditionings(self) -> list[list]:
        """Return all conditionings."""
        shown = [] if self.preview is None else [self.preview.positive, self.preview.negative]
        return [self.positive, *shown]


def check_plain(conditioning: list, frames: int, name: str, allowed: str = "") -> None:
    """Refuse what is more than a prompt for each frame of a clip, or one for all; `allowed` names what may be beside.

    Raises:
        ValueError: it has other prompts, or carries what only sampling uses.
    """
    if len(conditioning) != 1:
        raise ValueError(f"{name} has {len(conditioning)} conditionings; one prompt for the whole clip is needed.")
    ((states, values),) = conditioning
    ignored = [key for key in SAMPLED_WITH if key in values and key != allowed]
    if ignored:
        raise ValueError(
            f"{name} carries {', '.join(ignored)}, which would have no effect here. Connect the plain prompt, and "
            "apply the rest to the edited prompt."
        )
    check_prompts(states, (1, frames), name)


def condition(
    model: ModelPatcher, positive: list, x_0: Tensor, name: str = "positive", allowed: str = ""
) -> dict[str, Any]:
    """Return the UNet's keyword arguments for a conditioning, one row for each frame.

    Where CONTROL_NETS is `allowed`, its ControlNets are among them, of which a Caller asks the residuals.
    """
    check_plain(positive, len(x_0), name, allowed)
    conds = encode_model_conds(model.model.extra_conds, convert_cond(positive), x_0, x_0.device, "positive")
    given = {key: cond.process_cond(batch_size=len(x_0)).cond for key, cond in conds[0]["model_conds"].items()}
    # Gradients may not pass tensors made in inference mode, but their copies.
    given = {key: v.to(x_0.device).clone() if isinstance(v, Tensor) else v for key, v in given.items()}
    control = control_of(positive, len(x_0), name)
    return given if control is None else {**given, CONTROL_NETS: control}


def rows_of(given: dict[str, Any], frames: slice) -> dict[str, Any]:
    """Return the rows of some frames of what `condition` returned."""
    return {key: value[frames] if isinstance(value, (Tensor, ControlNets)) else value for key, value in given.items()}


def latent_mask(mask: Tensor | None, x_0: Tensor) -> Tensor | None:
    """Return a mask of pictures as weights of a latent's positions, shape (f, 1, h, w); ValueError of an empty one."""
    if mask is None:
        return None
    weights = to_positions(mask, x_0)
    if weights.sum() <= 0:
        raise ValueError("mask leaves nothing to tune on. White is where the loss counts; invert it if needed.")
    return weights
