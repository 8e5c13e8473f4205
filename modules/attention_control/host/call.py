"""One evaluation of the UNet under Attention Control: what its attention layers keep of the source or take from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...clip_model.host.settings import CONTROL
from ..maps import attend_by_maps, cross_maps, refine_maps, replace_maps, reweight, threshold_mask, word_map
from .prompts import Prompts

RUN, CALL = f"{CONTROL}_run", f"{CONTROL}_call"
SELF_SCALE = 2  # self-attention follows in layers of half the latent's sides and less, as in FateZero
MASK_SCALE, LEAST_MASK = 4, 8  # of the latent's sides: prompt-to-prompt takes 16 x 16 maps of a latent of 64 x 64

Cross = Literal["refine", "replace", "none"]
SelfAttention = Literal["replace", "fusion"]
Place = tuple[Any, ...]
Maps = dict[tuple[int, int], Tensor]
Inner = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ControlSettings:
    """How the attention of an edit follows the source's.

    Attributes:
        cross: maps of cross-attention: those of common tokens are the source's ("refine"), all are ("replace"), none.
        cross_end: part of the steps in which that and the weights of words act, 0 ... 1.
        self_attention: "replace" = queries and keys of the source everywhere, "fusion" = outside of the mask
            (FateZero). In layers of half the latent's sides and less.
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
        kinds = (self.cross, Cross), (self.self_attention, SelfAttention)
        if any(value not in get_args(kind) for value, kind in kinds):
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
    def changes_cross(self) -> bool:
        """Whether the maps of cross-attention are ever changed."""
        has_weights = any(weight != 1 for weight in self.prompts.weights)
        return (self.settings.cross != "none" or has_weights) and self.settings.cross_end > 0

    @property
    def fuses(self) -> bool:
        """Whether self-attention follows the source outside of a mask only."""
        return self.settings.self_attention == "fusion" and self.settings.self_end > 0

    @property
    def needs_mask(self) -> bool:
        """Whether a mask is made."""
        return self.settings.local_blend or self.fuses

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
        self.source_maps: Maps = {}
        self.edited_maps: Maps = {}

    def mask(self, height: int, width: int, with_edit: bool, frames: Sequence[int]) -> Tensor:
        """Return where words are looked at in some frames, shape (f, 1, height, width); 1 = there, 0 = elsewhere."""
        threshold = self.control.settings.threshold
        quarter = max(LEAST_MASK, -(-self.control.states.shape[-2] // MASK_SCALE))
        masks = []
        for maps in (self.source_maps, self.edited_maps) if with_edit else (self.source_maps,):
            if maps:
                size = min(maps, key=lambda size: abs(size[0] - quarter))
                masks.append(threshold_mask(maps[size][frames], threshold, height, width))
        return torch.stack(masks).amax(dim=0) if masks else self.control.states.new_ones(1, 1, height, width)


class Call:
    """One evaluation of the UNet in a controlled step.

    Args:
        run: of the sampling.
        step: its number.
        frames: of the clip that it is given, by their numbers.
        replaced: replacements of self-attention that the model had before.
        source: queries and keys of the source, by layer; None = this is the source's own call, which collects them.

    Attributes:
        projected: queries and keys that the source's own call computed, by layer.
    """

    def __init__(
        self,
        run: Run,
        step: int,
        frames: Sequence[int],
        replaced: dict,
        source: dict[Place, tuple[Tensor, Tensor]] | None = None,
    ):
        self.run, self.step, self.frames, self.replaced, self.source = run, step, frames, replaced, source
        self.projected: dict[Place, tuple[Tensor, Tensor]] = {}

    def capture(self, place: Place, q: Tensor, k: Tensor) -> None:
        """Keep what a layer computed of the source."""
        assert place not in self.projected, "the source is evaluated at once"
        self.projected[place] = (q, k)

    def rows(self, options: dict[str, Any], count: int) -> list[slice]:
        """Return the rows of the edited prompt, a slice for each conditioning of it.

        Raises:
            ValueError: they are not those of the source's clip.
        """
        ids, frames = options["uuids"], len(self.frames)
        if count != frames * len(ids):
            raise ValueError(
                f"Attention Control holds a source of {frames} frames and the UNet is given {count} rows of "
                f"{len(ids)} conditionings. Sample the clip of the same inversion, at once."
            )
        return [slice(i * frames, (i + 1) * frames) for i, one in enumerate(ids) if one in self.run.edited]

    def attend_self(self, place: Place, q: Tensor, k: Tensor, v: Tensor, inner: Inner, options: dict) -> Tensor:
        """Attend within the clip."""
        control = self.run.control
        height, width = options["activations_shape"][-2:]
        if self.source is None:
            is_coarse = height * SELF_SCALE <= control.states.shape[-2]
            if is_coarse and control.acts(self.step, control.settings.self_end):
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
        mask = self.run.mask(height, width, with_edit=False, frames=self.frames)
        weights = mask.flatten(1).unsqueeze(-1).to(attended)
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
                if cross == "replace":
                    assert prompts.replacement is not None, "checked when attached"
                    maps = replace_maps(source, prompts.replacement)
                else:
                    maps = refine_maps(source, maps, prompts.alignment)
            frames.append(attend_by_maps(reweight(maps, prompts.weights), v[one]))
        return torch.cat(frames)

    def note(self, noted: Maps, projected: list, positions: tuple[int, ...], heads: int, options: dict) -> None:
        """Add to the word maps of the sampling, at the layer's size."""
        if not positions or not self.run.control.needs_mask:
            return
        size = tuple(options["activations_shape"][-2:])
        for q, k in projected:
            pairs = zip(q.split(1), k.split(1), strict=True)
            looked = torch.cat([word_map(cross_maps(*pair, heads), positions, *size) for pair in pairs])
            if size not in noted:
                noted[size] = looked.new_zeros(self.run.control.states.shape[1], *looked.shape[1:])
            noted[size][self.frames] += looked


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
