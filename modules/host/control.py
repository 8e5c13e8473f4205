"""Attention Control: an edit whose attention follows the source clip's, as in prompt-to-prompt and FateZero.

At each step the UNet is evaluated once more, on the state of the inversion at that step and with the source prompt.
What its attention layers computed there is used in the rows of the edited prompt, and forgotten with the step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import convert_cond
from comfy.samplers import calc_cond_batch, encode_model_conds
from torch import Tensor

from ..attention.control import attend_by_maps, cross_maps, refine_maps, reweight, threshold_mask, word_map
from .control_prompts import Prompts
from .inversion import INVERSION, inversion_of, trajectory
from .patch import transformer_blocks
from .tune_inputs import NOT_TUNED_WITH

CONTROL = "consistent_video_control"
RUN, CALL = f"{CONTROL}_run", f"{CONTROL}_call"
BLEND_FROM = 0.2  # part of the steps from which prompt-to-prompt blends: earlier maps are too vague
MASK_SCALE, LEAST_MASK = 4, 8  # of the latent's sides: prompt-to-prompt takes 16 x 16 maps of a latent of 64 x 64

Cross = Literal["refine", "replace", "none"]
SelfAttention = Literal["replace", "fusion"]
Place = tuple[Any, ...]
Inner = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ControlSettings:
    """How the attention of an edit follows the source's.

    Attributes:
        cross: maps of cross-attention: those of common tokens are the source's ("refine"), all are ("replace"), none.
        cross_end: part of the steps in which that and the weights of words act, 0 ... 1.
        self_attention: "replace" = queries and keys of the source everywhere, "fusion" = outside of the mask
            (FateZero).
        self_end: part of the steps in which that acts.
        local_blend: whether the edit keeps the source's states outside of the mask.
        threshold: of the mask, 0 ... 1.
    """

    cross: Cross = "refine"
    cross_end: float = 0.8
    self_attention: SelfAttention = "replace"
    self_end: float = 0.5
    local_blend: bool = False
    threshold: float = 0.3

    def __post_init__(self) -> None:
        if self.cross not in get_args(Cross) or self.self_attention not in get_args(SelfAttention):
            raise ValueError(f"unknown control: {self}")


@dataclass(frozen=True)
class Control:
    """What the model carries: settings, tokens, and the source's states, noise first, with their noise levels."""

    settings: ControlSettings
    prompts: Prompts
    positive: list
    states: Tensor
    sigmas: Tensor

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.sigmas) - 1

    @property
    def has_weights(self) -> bool:
        """Whether any word is weighted."""
        return any(weight != 1 for weight in self.prompts.weights)

    @property
    def changes_cross(self) -> bool:
        """Whether the maps of cross-attention are ever changed."""
        return (self.settings.cross != "none" or self.has_weights) and self.settings.cross_end > 0

    @property
    def needs_mask(self) -> bool:
        """Whether a mask is made."""
        fuses = self.settings.self_attention == "fusion" and self.settings.self_end > 0
        return self.settings.local_blend or fuses

    def step_at(self, sigma: float) -> int:
        """Return the step that begins at a noise level.

        Raises:
            ValueError: none does.
        """
        apart = (self.sigmas[:-1] - sigma).abs()
        step = int(apart.argmin())
        if apart[step] > 1e-4 * max(1.0, sigma):
            raise ValueError(
                f"Attention Control knows the source at the {self.steps} noise levels of its inversion, not at "
                f"{sigma:.4f}. Sample by Smooth Sample from the inversion that is connected to Attention Control."
            )
        return step

    def acts(self, step: int, end: float) -> bool:
        """Whether a step lies before the end of a part of the steps."""
        return step / self.steps < end


class Run:
    """What one sampling needs: the source's conditioning, the edited prompt's rows, and the word maps so far.

    Args:
        control: of the model.
        source: conditioning of the source prompt, as the host's samplers take it.
        edited: ids of the conditionings whose rows are controlled.
        places: of the attention layers.
    """

    def __init__(self, control: Control, source: list, edited: frozenset, places: list[Place]):
        self.control, self.source, self.edited, self.places = control, source, edited, places
        self.source_maps: dict[tuple[int, int], Tensor] = {}
        self.edited_maps: dict[tuple[int, int], Tensor] = {}

    def mask(self, height: int, width: int, with_edit: bool) -> Tensor:
        """Return where words are looked at, shape (f, 1, height, width); 1 = there, 0 = elsewhere."""
        threshold = self.control.settings.threshold
        quarter = max(LEAST_MASK, -(-self.control.states.shape[-2] // MASK_SCALE))
        masks = []
        for maps in (self.source_maps, self.edited_maps) if with_edit else (self.source_maps,):
            if maps:
                size = min(maps, key=lambda size: abs(size[0] - quarter))
                masks.append(threshold_mask(maps[size], threshold, height, width))
        return torch.stack(masks).amax(dim=0) if masks else self.control.states.new_ones(1, 1, height, width)


class Call:
    """One evaluation of the UNet in a controlled step.

    Args:
        run: of the sampling.
        step: its number.
        replaced: replacements of self-attention that the model had before.
        captured: queries and keys of the source, by layer; None = this is the source's own call, which collects them.
    """

    def __init__(self, run: Run, step: int, replaced: dict, captured: dict[Place, tuple[Tensor, Tensor]] | None = None):
        self.run, self.step, self.replaced, self.source = run, step, replaced, captured
        self.captured: dict[Place, tuple[Tensor, Tensor]] = {}

    def capture(self, place: Place, q: Tensor, k: Tensor) -> None:
        """Keep what a layer computed of the source."""
        assert place not in self.captured, "the source is evaluated at once"
        self.captured[place] = (q, k)

    def rows(self, options: dict[str, Any], count: int) -> list[slice]:
        """Return the rows of the edited prompt, a slice for each conditioning of it.

        Raises:
            ValueError: they are not those of the source's clip.
        """
        ids, frames = options["uuids"], len(self.run.control.states[0])
        if count != frames * len(ids):
            raise ValueError(
                f"Attention Control holds a source of {frames} frames and the UNet is given {count} rows of "
                f"{len(ids)} conditionings. Sample the clip of the same inversion, at once."
            )
        return [slice(i * frames, (i + 1) * frames) for i, one in enumerate(ids) if one in self.run.edited]

    def attend_self(self, place: Place, q: Tensor, k: Tensor, v: Tensor, inner: Inner, options: dict) -> Tensor:
        """Attend within the clip."""
        control = self.run.control
        if self.source is None:
            if control.acts(self.step, control.settings.self_end):
                self.capture(place, q, k)
            return inner(q, k, v)
        if place not in self.source:
            return inner(q, k, v)
        followed_q, followed_k = q.clone(), k.clone()
        rows = self.rows(options, len(q))
        for own in rows:
            followed_q[own], followed_k[own] = self.source[place]
        attended = inner(followed_q, followed_k, v)
        if control.settings.self_attention == "replace":
            return attended
        height, width = options["activations_shape"][-2:]
        weights = self.run.mask(height, width, with_edit=False).flatten(1).unsqueeze(-1).to(attended)
        free = inner(q, k, v)
        for own in rows:
            attended[own] = torch.lerp(attended[own], free[own], weights)
        return attended

    def attend_cross(self, place: Place, q: Tensor, k: Tensor, v: Tensor, inner: Inner, options: dict) -> Tensor:
        """Attend to the prompt."""
        attended, control, heads = inner(q, k, v), self.run.control, options["n_heads"]
        prompts, acts = control.prompts, control.changes_cross and control.acts(self.step, control.settings.cross_end)
        if self.source is None:
            check_tokens(k, prompts)
            if acts and control.settings.cross != "none":
                self.capture(place, q, k)
            self.note(self.run.source_maps, [(q, k)], prompts.source_words, heads, options)
            return attended
        rows = self.rows(options, len(q))
        if rows:
            check_tokens(k, prompts)
        if acts:
            attended = attended.clone()
            for own in rows:
                attended[own] = self.follow(place, q[own], k[own], v[own], heads)
        self.note(self.run.edited_maps, [(q[own], k[own]) for own in rows], prompts.edited_words, heads, options)
        return attended

    def follow(self, place: Place, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Attend to the edited prompt by maps that follow the source's, frame by frame."""
        cross, prompts = self.run.control.settings.cross, self.run.control.prompts
        frames = []
        for i in range(len(q)):
            one = slice(i, i + 1)
            maps = cross_maps(q[one], k[one], heads)
            if cross != "none":
                assert self.source is not None, "this is the edit's call"
                source_q, source_k = self.source[place]
                source = cross_maps(source_q[one], source_k[one], heads)
                maps = source if cross == "replace" else refine_maps(source, maps, prompts.alignment)
            frames.append(attend_by_maps(reweight(maps, prompts.weights), v[one]))
        return torch.cat(frames)

    def note(self, kept: dict, projected: list, positions: tuple[int, ...], heads: int, options: dict) -> None:
        """Add to the word maps of the sampling, at the layer's size."""
        if not positions or not self.run.control.needs_mask:
            return
        size = tuple(options["activations_shape"][-2:])
        for q, k in projected:
            pairs = zip(q.split(1), k.split(1), strict=True)
            looked = torch.cat([word_map(cross_maps(*pair, heads), positions, *size) for pair in pairs])
            kept[size] = kept[size] + looked if size in kept else looked


def check_tokens(k: Tensor, prompts: Prompts) -> None:
    """Raise ValueError where a conditioning has other tokens than the prompts that were aligned."""
    if k.shape[1] != len(prompts.alignment):
        raise ValueError(
            f"Attention Control aligned prompts of {len(prompts.alignment)} tokens and a conditioning has {k.shape[1]}"
            ". Use prompts that fit in one piece of the text encoder, the negative one too, without additions."
        )


def place_of(options: dict[str, Any]) -> Place:
    """Return the transformer block that a layer belongs to."""
    return (*options["block"], options.get("block_index", 0))


@torch.compiler.disable
def attend_self(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """Replace a block's self-attention, see `Call.attend_self`; what replaced it before still attends."""
    call, place = extra_options[CALL], place_of(extra_options)
    earlier = call.replaced.get(place, call.replaced.get(extra_options["block"]))
    inner = attend_plain(extra_options) if earlier is None else partial(earlier, extra_options=extra_options)
    return call.attend_self(("attn1", *place), q, k, v, inner, extra_options)


@torch.compiler.disable
def attend_cross(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """Replace a block's cross-attention, see `Call.attend_cross`."""
    place = ("attn2", *place_of(extra_options))
    return extra_options[CALL].attend_cross(place, q, k, v, attend_plain(extra_options), extra_options)


def attend_plain(options: dict[str, Any]) -> Inner:
    """Return the host's own attention, as a block that is not replaced calls it."""
    return partial(
        optimized_attention,
        heads=options["n_heads"],
        attn_precision=options["attn_precision"],
        transformer_options=options,
    )


def begin_sampling(executor, guider, sigmas, extra_args, callback, noise, *rest, **kwargs):
    """Wrap a sampling: prepare what its steps share, for as long as it lasts."""
    options = extra_args["model_options"]
    control: Control = options["transformer_options"][CONTROL]
    check_run(control, options, guider.conds["positive"])
    model = guider.inner_model
    source = encode_model_conds(model.extra_conds, convert_cond(control.positive), noise, noise.device, "positive")
    edited = frozenset(cond["uuid"] for cond in guider.conds["positive"])
    places = list(dict.fromkeys(block.place for block in transformer_blocks(model.diffusion_model)))
    run = Run(replace(control, states=control.states.to(noise.device)), source, edited, places)
    shared = {**options, "transformer_options": {**options["transformer_options"], RUN: run}}
    return executor(guider, sigmas, {**extra_args, "model_options": shared}, callback, noise, *rest, **kwargs)


def check_run(control: Control, options: dict[str, Any], positive: list) -> None:
    """Refuse what the control does not know.

    Raises:
        ValueError: naming it.
    """
    if options.get("context_handler") is not None:
        raise ValueError("Attention Control needs the whole clip in one call. Remove the context windows.")
    if any("area" in cond for cond in positive):
        raise ValueError("Attention Control does not know prompts for an area. Use a mask, or a prompt for all of it.")
    taken = options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    if taken and (control.changes_cross or control.needs_mask):
        raise ValueError(
            "Another node (IPAdapter is one) replaces the model's cross-attention, which Attention Control has to. "
            "Remove it, or set cross to none with no weighted words and no mask."
        )


def predict_controlled(executor, x, timestep, model_options=None, seed=None):
    """Wrap the prediction of a step: evaluate the source first and let the edit's attention follow it."""
    options = model_options["transformer_options"]
    run: Run = options[RUN]
    control, settings = run.control, run.control.settings
    step = control.step_at(float(timestep[0]))
    if x.shape != control.states[step].shape:
        raise ValueError(
            f"Attention Control holds a source of shape {tuple(control.states[step].shape)} and the clip that is "
            f"sampled has {tuple(x.shape)}. Sample the inversion that is connected to Attention Control."
        )
    acts_on_self = control.acts(step, settings.self_end)
    acts_on_cross = control.changes_cross and control.acts(step, settings.cross_end)
    if not (acts_on_self or acts_on_cross or settings.local_blend):
        return executor(x, timestep, model_options, seed)
    replaced = options.get("patches_replace", {}).get("attn1", {})
    uses_cross = acts_on_cross or control.needs_mask
    captured = {}
    if acts_on_self or settings.cross != "none" or control.needs_mask:
        call = Call(run, step, replaced)
        seen = control.states[step].to(x)
        with_call = with_patches(model_options, call, uses_cross)
        calc_cond_batch(executor.class_obj.inner_model, [run.source, None], seen, timestep, with_call)
        captured = call.captured
    edit = with_patches(model_options, Call(run, step, replaced, captured), uses_cross)
    denoised = executor(x, timestep, edit, seed)
    return blend(run, step, x, denoised) if settings.local_blend and step >= BLEND_FROM * control.steps else denoised


def with_patches(model_options: dict[str, Any], call: Call, uses_cross: bool) -> dict[str, Any]:
    """Return model options for one call, with attention that the call decides on."""
    options = model_options["transformer_options"]
    patches = {**options.get("patches_replace", {}), "attn1": dict.fromkeys(call.run.places, attend_self)}
    if uses_cross:
        patches["attn2"] = dict.fromkeys(call.run.places, attend_cross)
    return {**model_options, "transformer_options": {**options, "patches_replace": patches, CALL: call}}


def blend(run: Run, step: int, x: Tensor, denoised: Tensor) -> Tensor:
    """Return a prediction from which a deterministic step leads to the source's next state outside of the mask."""
    sigma, sigma_next = run.control.sigmas[step].to(x), run.control.sigmas[step + 1].to(x)
    kept = x - sigma * (run.control.states[step + 1].to(x) - x) / (sigma_next - sigma)
    return torch.lerp(kept, denoised, run.mask(x.shape[-2], x.shape[-1], with_edit=True).to(x))


def attach_control(
    model: ModelPatcher, inversion: dict[str, Any], positive: list, prompts: Prompts, settings: ControlSettings
) -> ModelPatcher:
    """Return a clone of a clip model whose edits follow the source's attention, in the place of any control before.

    Args:
        model: inflated model.
        inversion: LATENT that the edit is sampled from.
        positive: conditioning of the source prompt.
        prompts: tokens of both prompts.
        settings: of the control.

    Raises:
        ValueError: the inversion is not the model's, or the conditioning carries more than a prompt.
    """
    inversion_of(inversion, model)
    if len(positive) != 1:
        raise ValueError(f"source_positive has {len(positive)} conditionings; one prompt for the whole clip is needed.")
    ignored = [key for key in NOT_TUNED_WITH if key in positive[0][1]]
    if ignored:
        raise ValueError(f"source_positive carries {', '.join(ignored)}. Connect the plain source prompt.")
    clone = model.clone()
    for kind, wrapper in (
        (WrappersMP.SAMPLER_SAMPLE, begin_sampling),
        (WrappersMP.PREDICT_NOISE, predict_controlled),
    ):
        clone.remove_wrappers_with_key(kind, CONTROL)
        clone.add_wrapper_with_key(kind, CONTROL, wrapper)
    control = Control(settings, prompts, positive, trajectory(model, inversion), inversion[INVERSION]["sigmas"])
    check_prompts(control)
    clone.model_options["transformer_options"][CONTROL] = control
    return clone


def check_prompts(control: Control) -> None:
    """Raise ValueError where the prompts do not fit the settings."""
    settings, prompts = control.settings, control.prompts
    if control.needs_mask and not prompts.source_words:
        raise ValueError(
            "No words of source_text say where the mask is: there are none that the edited prompt has not. Name some "
            "in mask_words."
        )
    if settings.cross == "replace" and prompts.lengths[0] != prompts.lengths[1]:
        raise ValueError(
            f"cross is replace, which pairs tokens by position, and the prompts have {prompts.lengths[0] - 1} and "
            f"{prompts.lengths[1] - 1} tokens. Choose refine."
        )
