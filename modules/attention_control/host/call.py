"""A step under Attention Control: what attention layers keep of the source, and what those of the edit take from it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...clip_model.host.settings import CONTROL
from ...diffusion.midpoint import midpoints
from ...diffusion.path import NoisePath
from ...inversion.inversion import Inversion
from ..maps import attend_by_maps, cross_maps, refine_maps, replace_maps, reweight, threshold_mask, word_map
from ..recipe import RECIPES, Name, Recipe
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
            (FateZero). Within frames, it acts in layers of half the latent's sides and less.
        self_end: part of the steps in which that acts.
        local_blend: whether the edit keeps the source's states outside of the mask.
        threshold: of the mask, 0 ... 1.
        recipe: whose code decides the rest.
    """

    cross: Cross = "refine"
    cross_end: float = 0.8
    self_attention: SelfAttention = "replace"
    self_end: float = 0.5
    local_blend: bool = False
    threshold: float = 0.3
    recipe: Name = "general"

    def __post_init__(self) -> None:
        kinds = (self.cross, Cross), (self.self_attention, SelfAttention), (self.recipe, Name)
        if any(value not in get_args(kind) for value, kind in kinds):
            raise ValueError(f"unknown control: {self}")


@dataclass(frozen=True)
class Control:
    """What the model carries: settings, tokens, and the source's inversion with its states, noise first."""

    settings: ControlSettings
    prompts: Prompts
    positive: list
    inversion: Inversion
    states: Tensor

    @property
    def recipe(self) -> Recipe:
        """What the settings leave open."""
        return RECIPES[self.settings.recipe]

    @property
    def sigmas(self) -> Tensor:
        """Noise levels of the states."""
        return self.inversion.sigmas

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

    def blends_from(self, step: int) -> bool:
        """Whether local blend acts after a step or a later one."""
        later = range(step, self.steps)
        return self.settings.local_blend and any(self.recipe.blends(each, self.steps) for each in later)

    def needs_mask(self, step: int = 0) -> bool:
        """Whether a mask is made in a step or a later one."""
        return self.blends_from(step) or (self.fuses and self.acts_on_self(step))

    def find(self, sigma: float) -> tuple[int, Tensor]:
        """Return the step in which the UNet is called at a noise level, and the source's state there.

        Raises:
            ValueError: there is none.
        """
        levels = self.sigmas[:-1]
        if self.inversion.settings.solver == "midpoint":
            levels = torch.cat([levels, midpoints(self.sigmas)])
        apart = (levels - sigma).abs()
        found = int(apart.argmin())
        if apart[found] > 1e-4 * max(1.0, sigma):
            raise ValueError(
                f"Attention Control knows the source at the {self.steps} noise levels of its inversion, not at "
                f"{sigma:.4f}. Sample by Smooth Sample from the inversion that is connected to Attention Control."
            )
        step = found % self.steps
        return step, self.states[step] if found < self.steps else (self.states[step] + self.states[step + 1]) / 2

    def acts_on_self(self, step: int) -> bool:
        """Whether self-attention follows the source in a step."""
        return self.recipe.acts_on_self(step, self.steps, self.settings.self_end)

    def acts_on_cross(self, step: int) -> bool:
        """Whether the maps of cross-attention are changed in a step."""
        return self.changes_cross and self.recipe.acts_on_cross(step, self.steps, self.settings.cross_end)

    def kept_state(self, step: int) -> Tensor:
        """Return what a step leads to where local blend keeps the source."""
        if self.recipe.blends_noisier:
            return NoisePath().relabelled(self.states[step], self.sigmas[step], self.sigmas[step + 1])
        return self.states[step + 1]


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
        self.source_ids = frozenset(cond["uuid"] for cond in source)
        self.source_maps: Maps = {}
        self.edited_maps: Maps = {}

    def begin_step(self) -> None:
        """Forget the source's word maps where a recipe makes masks of those of the step alone."""
        if not self.control.recipe.sums_source:
            self.source_maps = {}

    def mask(self, height: int, width: int, with_edit: bool, frames: Sequence[int]) -> Tensor:
        """Return where words are looked at in some frames, shape (f, 1, height, width); 1 = there, 0 = elsewhere."""
        threshold, resize = self.control.settings.threshold, self.control.recipe.resize
        quarter = max(LEAST_MASK, -(-self.control.states.shape[-2] // MASK_SCALE))
        masks = []
        for maps in (self.source_maps, self.edited_maps) if with_edit else (self.source_maps,):
            if maps:
                size = min(maps, key=lambda size: abs(size[0] - quarter))
                masks.append(threshold_mask(maps[size][frames], threshold, height, width, resize))
        return torch.stack(masks).amax(dim=0) if masks else self.control.states.new_ones(1, 1, height, width)


class Call:
    """A controlled step: the source's rows leave what its layers compute, and the edited prompt's follow.

    The source's are in an evaluation of their own before the edit's, or the first rows of the edit's first.

    Args:
        run: of the sampling.
        step: its number.
        frames: of the clip that is evaluated, by their numbers.
        replaced: replacements of self-attention that the model had before.

    Attributes:
        kept: what was computed of the source, by layer: queries and keys, or tokens before temporal modules.
    """

    def __init__(self, run: Run, step: int, frames: Sequence[int], replaced: dict):
        self.run, self.step, self.frames, self.replaced = run, step, frames, replaced
        self.kept: dict[Place, tuple[Tensor, ...]] = {}

    def capture(self, place: Place, own: slice, *computed: Tensor) -> None:
        """Keep what a layer computed of the source, without the edit's rows."""
        assert place not in self.kept, "the source is evaluated at once"
        self.kept[place] = tuple(rows[own].clone() for rows in computed)

    def is_coarse(self, options: dict[str, Any]) -> bool:
        """Whether a layer is one in which attention within frames follows the source's."""
        return options["activations_shape"][-2] * SELF_SCALE <= self.run.control.states.shape[-2]

    def rows(self, options: dict[str, Any], count: int) -> tuple[list[slice], list[slice]]:
        """Return the rows of the source and of the edited prompt, a slice for each conditioning of them.

        Raises:
            ValueError: they are not those of the source's clip.
        """
        ids, frames = options["uuids"], len(self.frames)
        if count != frames * len(ids):
            raise ValueError(
                f"Attention Control holds a source of {frames} frames and the UNet is given {count} rows of "
                f"{len(ids)} conditionings. Sample the clip of the same inversion, at once."
            )
        slices = {one: slice(i * frames, (i + 1) * frames) for i, one in enumerate(ids)}
        source, edited = ([slices[i] for i in ids if i in own] for own in (self.run.source_ids, self.run.edited))
        return source, edited

    def attend_self(self, place: Place, q: Tensor, k: Tensor, v: Tensor, inner: Inner, options: dict) -> Tensor:
        """Attend within the clip."""
        control = self.run.control
        follows = control.recipe.follows == "frames" and control.acts_on_self(self.step)
        source, edited = self.rows(options, len(q)) if follows and self.is_coarse(options) else ([], [])
        for own in source:
            self.capture(place, own, q, k)
        if not edited:
            return inner(q, k, v)
        followed_q, followed_k = q.clone(), k.clone()
        for own in edited:
            followed_q[own], followed_k[own] = self.kept[place]
        attended = inner(followed_q, followed_k, v)
        if control.settings.self_attention == "replace":
            return attended
        height, width = options["activations_shape"][-2:]
        mask = self.run.mask(height, width, with_edit=False, frames=self.frames)
        weights = mask.flatten(1).unsqueeze(-1).to(attended)
        free = inner(q, k, v)
        for own in edited:
            attended[own] = torch.lerp(attended[own], free[own], weights)
        return attended

    def attend_temporal(self, place: Place, tokens: Tensor, options: dict[str, Any]) -> Tensor | None:
        """Return the tokens that a temporal module attends by; None = its own."""
        if not self.run.control.acts_on_self(self.step):
            return None
        place = ("attn_temp", *place)
        source, edited = self.rows(options, len(tokens))
        for own in source:
            self.capture(place, own, tokens)
        if not edited:
            return None
        seen = tokens.clone()
        for own in edited:
            (seen[own],) = self.kept[place]
        return seen

    def attend_cross(self, place: Place, q: Tensor, k: Tensor, v: Tensor, inner: Inner, options: dict) -> Tensor:
        """Attend to the prompt."""
        attended, control, heads = inner(q, k, v), self.run.control, options["n_heads"]
        prompts, recipe = control.prompts, control.recipe
        acts = control.acts_on_cross(self.step) and (recipe.fine_cross or self.is_coarse(options))
        source, edited = self.rows(options, len(q))
        if source or edited:
            check_tokens(k, prompts)

        # Leave what the source's rows look at.
        notes = bool(prompts.source_words) and control.needs_mask(self.step)
        for own in source:
            if acts and control.settings.cross != "none":
                self.capture(place, own, q, k)
            for i, row in enumerate(frames_of(own) if notes else ()):
                self.note(self.run.source_maps, cross_maps(q[row], k[row], heads), prompts.source_words, i, options)

        # Let the edit's rows follow.
        notes = bool(prompts.edited_words) and control.blends_from(self.step)
        if acts and edited:
            attended = attended.clone()
        for own in edited if acts or notes else ():
            for i, row in enumerate(frames_of(own)):
                maps = own_maps = cross_maps(q[row], k[row], heads)
                if acts:
                    maps = self.controlled_maps(place, own_maps, heads, slice(i, i + 1))
                    attended[row] = attend_by_maps(maps, v[row])
                if notes:
                    noted = maps if recipe.edit_after else own_maps
                    self.note(self.run.edited_maps, noted, prompts.edited_words, i, options)
        return attended

    def controlled_maps(self, place: Place, maps: Tensor, heads: int, one: slice) -> Tensor:
        """Return maps of the edited prompt that follow the source's, of a frame."""
        cross, prompts = self.run.control.settings.cross, self.run.control.prompts
        if cross != "none":
            q, k = self.kept[place]
            source = cross_maps(q[one], k[one], heads)
            if cross == "replace":
                assert prompts.replacement is not None, "checked when attached"
                maps = replace_maps(source, prompts.replacement)
            else:
                maps = refine_maps(source, maps, prompts.alignment)
        return reweight(maps, prompts.weights)

    def note(self, noted: Maps, maps: Tensor, positions: tuple[int, ...], frame: int, options: dict) -> None:
        """Add the maps of a frame to the word maps of the sampling, at the layer's size."""
        size = tuple(options["activations_shape"][-2:])
        looked = word_map(maps, positions, *size)
        if size not in noted:
            noted[size] = looked.new_zeros(self.run.control.states.shape[1], *looked.shape[1:])
        noted[size][self.frames[frame]] += looked[0]


def frames_of(own: slice) -> list[slice]:
    """Return the rows of a conditioning one by one."""
    return [slice(row, row + 1) for row in range(own.start, own.stop)]


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
