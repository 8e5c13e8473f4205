"""Prompt-to-prompt written out."""

import torch
from torch.nn import functional as F

from consistent_video.modules.attention_control.host.call import ControlSettings
from consistent_video.modules.attention_control.host.prompts import Prompts
from consistent_video.modules.clip_model.host.bank import transformer_blocks
from consistent_video.modules.inversion.host.invert import INVERSION, trajectory

from ..small import EDIT, EMPTY, FRAMES, SOURCE, TOKENS
from .controlled import ALIGNED, PROMPTS, SHARES, STEPS


class SideBySide:
    """Prompt-to-prompt as its authors run it: rows of the source, then of the edit, through one UNet call."""

    def __init__(self, model, inversion, settings: ControlSettings, prompts: Prompts = PROMPTS):
        self.model, self.settings, self.prompts = model, settings, prompts
        self.states, self.sigmas = (
            trajectory(model.model, inversion[INVERSION]),
            inversion["consistent_video_inversion"].sigmas,
        )
        self.start = 0.18215 * inversion["samples"]
        self.step = 0

    def attend(self, q, k, v, options):
        """Self-attention, the edit's with the source's queries and keys where the map is half the latent or less."""
        is_coarse = 2 * options["activations_shape"][-2] <= self.states.shape[-2]
        if is_coarse and self.step < self.settings.self_end * STEPS:
            q, k = (torch.cat([x[:FRAMES], x[:FRAMES]]) for x in (q, k))
        return self.earlier(q, k, v, options)

    def earlier(self, q, k, v, options):
        """What attends without control: both clips for themselves."""
        replaced = self.model.model_options["transformer_options"].get("patches_replace", {}).get("attn1", {})
        clips = []
        for clip in (slice(None, FRAMES), slice(FRAMES, None)):
            one = {**options, "cond_or_uncond": [0], "activations_shape": [FRAMES, *options["activations_shape"][1:]]}
            if options["block"] in replaced:
                clips.append(replaced[options["block"]](q[clip], k[clip], v[clip], one))
            else:
                heads = options["n_heads"]
                parts = [x[clip].unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
                clips.append(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return torch.cat(clips)

    def look(self, q, k, v, options):
        """Cross-attention, token by token as the settings say."""
        heads, (source, edit) = options["n_heads"], (slice(None, FRAMES), slice(FRAMES, None))
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2).double() for x in (q, k, v))
        maps = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        if self.step < self.settings.cross_end * STEPS:
            for token in range(TOKENS):
                if self.settings.cross == "refine" and ALIGNED[token] >= 0:
                    maps[edit, ..., token] = maps[source, ..., ALIGNED[token]]
                if self.settings.cross == "replace":
                    taken = SHARES[token].items()
                    maps[edit, ..., token] = sum(share * maps[source, ..., one] for one, share in taken)
            maps[edit] *= torch.tensor(self.prompts.weights, dtype=maps.dtype)
        return (maps @ v).transpose(1, 2).flatten(2).float()

    def after(self, x):
        """What a step leads to."""
        return x

    @torch.no_grad()
    def walk(self, cfg: float) -> torch.Tensor:
        """Return the edit, VAE latent."""
        options = self.model.model_options["transformer_options"]
        places = {block.place for block in transformer_blocks(self.model.model.diffusion_model)}
        patches = {"attn1": dict.fromkeys(places, self.attend), "attn2": dict.fromkeys(places, self.look)}
        bound = torch.cat([SOURCE[0][0].expand(FRAMES, -1, -1), EDIT[0][0].expand(FRAMES, -1, -1)])
        x = self.start.to(self.states)
        for step, (sigma, sigma_next) in enumerate(zip(self.sigmas[:-1], self.sigmas[1:], strict=True)):
            self.step = step
            own = {**options, "patches_replace": patches, "cond_or_uncond": [0, 0]}
            both = torch.cat([self.states[step], x])
            levels = sigma.expand(2 * FRAMES)
            apply = self.model.model.apply_model
            denoised = apply(both, levels, c_crossattn=bound, transformer_options=own)[FRAMES:]
            if cfg != 1:
                free = {**options, "cond_or_uncond": [0]}
                empty = EMPTY[0][0].expand(FRAMES, -1, -1)
                without = apply(x, levels[:FRAMES], c_crossattn=empty, transformer_options=free)
                denoised = without + cfg * (denoised - without)
            x = self.after(x + (sigma_next - sigma) * (x - denoised) / sigma)
        return x / (1 + self.sigmas[-1] ** 2).sqrt() / 0.18215
