"""FateZero's and Video-P2P's control, against what their code does written out."""

from collections import defaultdict
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from consistent_video.modules.attention_control.host.call import ControlSettings
from consistent_video.modules.clip_model import temporal
from consistent_video.modules.clip_model.host.attach import attach, inflate
from consistent_video.modules.clip_model.host.bank import TemporalBank, transformer_blocks
from consistent_video.modules.clip_model.methods import EI2, PER_FRAME, method
from consistent_video.modules.clip_model.temporal import TemporalConfig
from consistent_video.modules.inversion.host.invert import INVERSION, invert_clip
from consistent_video.modules.inversion.inversion import Relation

from ..small import EDIT, FRAMES, HEIGHT, SOURCE, TOKENS, UNET, WIDTH, Small, make_model, random_weights
from .controlled import ALIGNED, PLAIN, STEPS, WEIGHTED, controlled, sample
from .side_by_side import SideBySide

COARSE = (HEIGHT // 2, WIDTH // 2)
EDITED = slice(FRAMES, None)


def attention_maps(q, k, heads):
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2).double() for x in (q, k))
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)


def attend(maps, v):
    return (maps @ v.unflatten(-1, (maps.shape[1], -1)).transpose(1, 2).double()).transpose(1, 2).flatten(2).float()


def mask_of(looked: torch.Tensor, size: tuple[int, int], threshold: float) -> torch.Tensor:
    """Return the mask of the attention to words, shape (f, l), at a size: dilated, taken at the nearest, compared."""
    looked = F.max_pool2d(looked.unflatten(1, COARSE).unsqueeze(1), 3, 1, 1)
    rows, columns = (torch.arange(n) * small // n for n, small in zip(size, COARSE, strict=True))
    looked = looked[..., rows[:, None], columns]
    return (looked > threshold * looked.amax(dim=(1, 2, 3), keepdim=True)).double()


def words_in(maps, positions):
    return maps[..., list(positions)].sum(-1).mean(1)


@pytest.fixture(scope="module")
def lively():
    """A model whose maps differ from place to place, so that masks hold a part of them."""

    def fill(shapes, dtype):
        weights = random_weights(shapes, 0.2, dtype)
        return {key: 8 * value if ".attn" in key and value.ndim == 2 else value for key, value in weights.items()}

    return make_model(Small, UNET, fill, torch.float32)


class FateZero(SideBySide):
    """FateZero: the maps of all the inversion's calls are kept, and those of the edit follow them."""

    def __init__(self, model, inversion, settings, stored):
        super().__init__(model, inversion, settings, WEIGHTED)
        self.stored = [stored[round(float(sigma), 3)] for sigma in self.sigmas[:-1]]  # in the order of sampling
        self.looked_at = 0

    def source_words(self):
        maps = [one for (_, size, kind), one in self.stored[self.step].items() if kind == "cross" and size == COARSE]
        return sum(words_in(one, self.prompts.source_words) for one in maps)

    def attend(self, q, k, v, options):
        place, maps = (*options["block"], options["block_index"]), attention_maps(q, k, options["n_heads"])
        size = tuple(options["activations_shape"][-2:])
        if size == COARSE and self.step < int(self.settings.self_end * STEPS):
            weight = mask_of(self.source_words(), size, self.settings.threshold).flatten(1)[:, None, :, None]
            maps[EDITED] = weight * maps[EDITED] + (1 - weight) * self.stored[self.step][place, size, "self"]
        return attend(maps, v)

    def look(self, q, k, v, options):
        place, maps = (*options["block"], options["block_index"]), attention_maps(q, k, options["n_heads"])
        size = tuple(options["activations_shape"][-2:])
        if size == COARSE:
            self.looked_at = self.looked_at + words_in(maps[EDITED], self.prompts.edited_words)
            if self.step < int(self.settings.cross_end * (STEPS + 1)):
                source = self.stored[self.step][place, size, "cross"]
                for token in range(TOKENS):
                    if ALIGNED[token] >= 0:
                        maps[EDITED, ..., token] = source[..., ALIGNED[token]]
                maps[EDITED] *= torch.tensor(self.prompts.weights, dtype=maps.dtype)
        return attend(maps, v)

    def after(self, x):
        if not int(0.2 * STEPS) < self.step + 1 < int(0.8 * STEPS):
            return x
        scale = [(1 + self.sigmas[self.step + i] ** 2).sqrt() for i in (0, 1)]
        kept = self.states[self.step] / scale[0] * scale[1]  # of the noise level before the step
        maps = self.source_words(), self.looked_at
        mask = torch.stack([mask_of(one, (HEIGHT, WIDTH), self.settings.threshold) for one in maps]).amax(0)
        return kept + mask.float() * (x - kept)


class VideoP2P(SideBySide):
    """Video-P2P: words and attention over frames follow, attention within them does not."""

    def __init__(self, *given):
        super().__init__(*given)
        self.looked_at, self.moved = [0, 0], 0.0

    def attend(self, q, k, v, options):
        return self.earlier(q, k, v, options)

    def look(self, q, k, v, options):
        attended = super().look(q, k, v, options)
        if tuple(options["activations_shape"][-2:]) == COARSE:
            heads = options["n_heads"]
            eye = torch.eye(TOKENS).repeat(len(q), 1, heads)  # values that give the maps back
            maps = super().look(q, k, eye, options).unflatten(-1, (heads, TOKENS)).transpose(1, 2).double()
            for i, words in enumerate((self.prompts.source_words, self.prompts.edited_words)):
                self.looked_at[i] = self.looked_at[i] + words_in(maps[i * FRAMES :][:FRAMES], words)
        return attended

    def over_frames(self, q, k, v, heads):
        half = len(q) // 2
        if half in (HEIGHT * WIDTH, COARSE[0] * COARSE[1]) and self.step < int(self.settings.self_end * STEPS):
            own = attention_maps(q, k, heads)
            q, k = (torch.cat([x[:half], x[:half]]) for x in (q, k))
            self.moved = max(self.moved, (attention_maps(q, k, heads) - own).abs().max())
        return attend(attention_maps(q, k, heads), v)

    def after(self, x):
        if self.step < int(0.2 * STEPS):
            return x
        kept = self.states[self.step + 1]
        masks = [mask_of(one, (HEIGHT, WIDTH), self.settings.threshold) for one in self.looked_at]
        return kept + torch.stack(masks).amax(0).float() * (x - kept)


def recorded(model, maps):
    """Return a model that keeps the maps of each call by the noise level that it is told, its layer and its kind."""

    def keep(attend, q, k, v, heads, *rest, transformer_options, **given):
        options = transformer_options
        place, size = (*options["block"], options["block_index"]), tuple(options["activations_shape"][-2:])
        kind = "cross" if k.shape[1] == TOKENS else "self"
        maps[round(float(options["sigmas"][0]), 3)][place, size, kind] = attention_maps(q, k, heads)
        return attend(q, k, v, heads, *rest, transformer_options=options, **given)

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = keep
    return model


def invert_and_keep(model, latent):
    """Return an inversion, with its noise as it was before rounding, and the maps of its calls."""
    maps, exact, take = defaultdict(dict), [], Relation.__call__

    def keep(relation, step, x, eps):
        exact.append(eps.cpu())
        return take(relation, step, x, eps)

    with mock.patch.object(Relation, "__call__", keep):
        inversion = invert_clip(recorded(model, maps), SOURCE, SOURCE, latent, PLAIN)
    return {**inversion, INVERSION: replace(inversion[INVERSION], noises=torch.stack(exact[::-1]))}, maps


def test_fatezero_takes_the_maps_of_the_inversions_calls(lively, latent) -> None:
    model = attach(inflate(lively), *method(PER_FRAME))
    inversion, maps = invert_and_keep(model, latent)
    settings = ControlSettings("refine", 0.5, "fusion", 0.5, True, 0.99, "FateZero")
    ours = sample(controlled(model, inversion, settings, WEIGHTED), inversion).cpu()
    expected = FateZero(model, inversion, settings, maps).walk(3.0)
    assert (ours - expected).norm() / expected.norm() < 1e-4


def test_video_p2p_lets_words_and_attention_over_frames_follow(lively, latent) -> None:
    spatial, config = method(EI2, 2)[0], TemporalConfig("layer norm without affine", spectral=False)
    weights = TemporalBank(transformer_blocks(lively.model.diffusion_model), config).tensors()
    sharp = {key: 12 * value if "to_q" in key or "to_k" in key else value for key, value in weights.items()}
    model = attach(inflate(lively), spatial, config, tensors=sharp)
    inversion = invert_clip(model, SOURCE, SOURCE, latent, PLAIN)
    settings = ControlSettings("refine", 0.5, "replace", 0.5, True, 0.99, "Video-P2P")
    ours = sample(controlled(model, inversion, settings, WEIGHTED), inversion).cpu()
    reference = VideoP2P(model, inversion, settings, WEIGHTED)
    with mock.patch.object(temporal, "attend_frames", reference.over_frames):
        expected = reference.walk(3.0)
    assert (ours - expected).norm() / expected.norm() < 1e-4
    assert reference.moved > 0.1


def test_what_a_recipe_does_not_know_is_refused(lively, model, inversion, latent) -> None:
    refined = invert_clip(model, SOURCE, SOURCE, latent, replace(PLAIN, steps=2, refinements=1))
    with pytest.raises(ValueError, match="inversion made 1 more, its refinements"):
        controlled(model, refined, ControlSettings(recipe="FateZero"))
    by_bases = invert_clip(model, SOURCE, SOURCE, latent, replace(PLAIN, steps=2, method="STEM", bases=5))
    with pytest.raises(ValueError, match="method STEM attend to bases"):
        controlled(model, by_bases, ControlSettings(recipe="FateZero"))
    with pytest.raises(ValueError, match="self_attention is fusion"):
        controlled(model, inversion, ControlSettings(self_attention="fusion", recipe="Video-P2P"))
    bare = controlled(attach(inflate(lively), *method(PER_FRAME)), inversion, ControlSettings(recipe="Video-P2P"))
    with pytest.raises(ValueError, match="no temporal modules"):
        sample(bare, inversion, positive=EDIT)
