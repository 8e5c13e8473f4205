"""The temporal modules: of EI² (STAM, arXiv 2305.17431), Tune-A-Video (2212.11565) and ControlVideo (2305.17098)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, skip_init

from .attention import scaled_dot_product
from .chunks import apply_in_chunks

Norm = Literal["instance centering", "instance norm", "layer norm", "layer norm without affine", "none"]
Follows = Literal["feed-forward", "self-attention"]
POWER_ITERATIONS = 5  # of the spectral norm at each tuning step
INNER = 10  # activations for each of its input: z twice in float32, normed, q, k, v, attended, projected
MAX_ROWS = 2**15  # NVIDIA's SDPA kernels refuse larger batches


def instance_centering(z: Tensor) -> Tensor:
    """Subtract the mean over frames, per position and channel: EI² (6). z has shape (..., f, d)."""
    return z - z.mean(dim=-2, keepdim=True)


def instance_norm(z: Tensor, eps: float = 1e-5) -> Tensor:
    """Centre as `instance_centering` and divide by the standard deviation over frames, per position and channel."""
    centred = instance_centering(z)
    return centred * (centred.square().mean(dim=-2, keepdim=True) + eps).rsqrt()


def spectral_normalised(weight: Tensor) -> Tensor:
    """Return W / sigma_max(W) of a matrix, computed in float32; the bar of EI² (9)."""
    exact = weight.float()
    return (exact / torch.linalg.matrix_norm(exact, ord=2)).to(weight.dtype)


def trained_with(config: "TemporalConfig | None") -> tuple[str, ...]:
    """Return the paths in a block of the projections that are tuned with temporal modules, or without any.

    The queries of both attentions (EI², Tune-A-Video), or self-attention's output (ControlVideo's code).
    """
    if config is not None and config.follows == "self-attention":
        return ("attn1.to_out.0",)
    return ("attn1.to_q", "attn2.to_q")


def attend_frames(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attend over the frames of each position; q, k and v of shape (n, f, heads d), n = positions."""
    rows = max(1, MAX_ROWS // heads)
    chunks = zip(q.split(rows), k.split(rows), v.split(rows), strict=True)
    return torch.cat([scaled_dot_product(*chunk, heads) for chunk in chunks])


@dataclass(frozen=True)
class TemporalConfig:
    """What the temporal module is made of.

    Attributes:
        norm: what precedes attention: instance centering (EI²), layer norm without affine (Tune-A-Video, whose affine
            stays frozen at the identity), or for EI²'s ablation instance norm, layer norm with a learned affine, none.
        spectral: divide W_v and the output matrix by their largest singular value.
        zero_init: start the output matrix at zero, with nn.Linear's random bias (Tune-A-Video); otherwise the matrix
            starts random and the bias at zero (EI²).
        follows: what of each block it follows. After the self-attention (ControlVideo, as in its code) it attends to
            what that attends to, the block's own norm of the tokens; it starts with the self-attention's weights,
            followed by a linear layer that starts at zero, and the middle block of the UNet has none.

    Raises:
        ValueError: unknown norm or layer to follow, or a zero output matrix that is to be divided by its norm.
    """

    norm: Norm = "instance centering"
    spectral: bool = True
    zero_init: bool = False
    follows: Follows = field(default="feed-forward", repr=False)  # digests of models without it are older

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm) or self.follows not in get_args(Follows):
            raise ValueError(f"unknown temporal module: {self}")
        if self.spectral and self.zero_init:
            raise ValueError(f"a zero output matrix has no spectral norm to divide by: {self}")

    def noted(self) -> dict[str, Any]:
        """Return what files note of it: what it follows only where that is not what older files mean."""
        return {name: value for name, value in asdict(self).items() if name != "follows" or value != "feed-forward"}


STAM = TemporalConfig()
TUNE_A_VIDEO = TemporalConfig(norm="layer norm without affine", spectral=False, zero_init=True)
CONTROL_VIDEO = TemporalConfig(norm="none", spectral=False, follows="self-attention")


class TemporalModule(nn.Module):
    """Residual self-attention over the frames of each spatial position, EI² (8, 9).

    STAM(z) = z + M IC(z) W_v W_L + b with M = softmax(Q K^T / sqrt(d_head)), Q and K from IC(z), W_v and W_L
    spectrally normalised. Spectral norm is over the whole matrix (the paper leaves open whether per head). Weights
    are held normalised; during tuning `tune_spectral_norm` normalises them at every step instead.

    Args:
        dim: channels.
        heads: number of heads.
        config: what it is made of.
        generator: draws the initial weights, as nn.Linear draws them; None leaves them to be loaded.
    """

    def __init__(self, dim: int, heads: int, config: TemporalConfig, generator: torch.Generator | None):
        super().__init__()
        self.heads, self.config = heads, config
        self.to_q, self.to_k, self.to_v = (skip_init(nn.Linear, dim, dim, bias=False) for _ in range(3))
        self.to_out = skip_init(nn.Linear, dim, dim)
        self.zero_out = skip_init(nn.Linear, dim, dim) if config.follows == "self-attention" else None
        self.norm = nn.LayerNorm(dim) if config.norm == "layer norm" else None
        if generator is not None:
            self.draw_weights(generator)

    @torch.no_grad()
    def draw_weights(self, generator: torch.Generator) -> None:
        """Set the weights as they are before tuning, for ControlVideo's module those before `copy_weights`."""
        bound = self.to_q.in_features**-0.5
        for linear in (self.to_q, self.to_k, self.to_v, self.to_out):
            for parameter in linear.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
        if self.config.zero_init:
            self.to_out.weight.zero_()
        else:
            self.to_out.bias.zero_()
        self.finish_weights()

    @torch.no_grad()
    def copy_weights(self, attention: Mapping[str, Tensor]) -> None:
        """Set the projections to those of a block's self-attention, by their names there, as they are before tuning."""
        for name in ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias"):
            self.get_parameter(name.replace(".0", "")).copy_(attention[name])
        self.finish_weights()

    def finish_weights(self) -> None:
        """Set the zero layer to zero and divide by spectral norms, where there are such."""
        if self.zero_out is not None:
            for parameter in self.zero_out.parameters():
                parameter.zero_()
        if self.config.spectral:
            for linear in (self.to_v, self.to_out):
                linear.weight.copy_(spectral_normalised(linear.weight))

    def normalise(self, z: Tensor) -> Tensor:
        """Apply the configured norm in float32; z has shape (..., f, d)."""
        if self.config.norm == "none":
            return z
        exact = z.float()
        if self.config.norm == "instance centering":
            return instance_centering(exact).to(z.dtype)
        if self.config.norm == "instance norm":
            return instance_norm(exact).to(z.dtype)
        affine = (self.norm.weight.float(), self.norm.bias.float()) if self.norm is not None else (None, None)
        return F.layer_norm(exact, z.shape[-1:], *affine).to(z.dtype)

    def branch(self, attended: Tensor, qk_tokens: Tensor | None = None) -> Tensor:
        """Return what the module adds, shape (n, f, d) -> (n, f, d), n = positions of all clips; see `forward`."""
        with torch.autocast(attended.device.type, enabled=False):  # tuning finds sigma_max of these here, in float32
            w_v, w_out = self.to_v.weight, self.to_out.weight
        normed = self.normalise(attended)
        led = normed if qk_tokens is None else self.normalise(qk_tokens)
        q, k, v = self.to_q(led), self.to_k(led), F.linear(normed, w_v)
        mixed = F.linear(attend_frames(q, k, v, self.heads), w_out, self.to_out.bias)
        return mixed if self.zero_out is None else self.zero_out(mixed)

    def forward(
        self,
        x: Tensor,
        num_frames: int,
        strength: float = 1.0,
        recompute: bool = False,
        attended: Tensor | None = None,
        qk_tokens: Tensor | None = None,
    ) -> Tensor:
        """Mix frames at each position, at as many at a time as CHUNK_BYTES allows.

        Args:
            x: tokens, shape ((b f), l, d).
            num_frames: f.
            strength: factor of what the module adds; 0 returns x itself.
            recompute: whether the backward pass recomputes the activations instead of keeping them.
            attended: tokens that it attends to, of the same shape; None = x.
            qk_tokens: tokens that queries and keys are computed from, of the same shape; None = those attended to.
        """
        if strength == 0:
            return x
        given = {name: y for name, y in (("attended", attended), ("qk_tokens", qk_tokens)) if y is not None}

        def mix(z: Tensor, *others: Tensor) -> Tensor:
            named = dict(zip(given, others, strict=True))
            return z + strength * self.branch(**{"attended": z, **named})

        z = (rearrange(tokens, "(b f) l d -> (b l) f d", f=num_frames) for tokens in (x, *given.values()))
        z = apply_in_chunks(mix, *z, inner=INNER, recompute=recompute)
        return rearrange(z, "(b l) f d -> (b f) l d", l=x.shape[1])

    def tune_spectral_norm(self, seed: int = 0) -> None:
        """Normalise W_v and the output matrix at every forward in training mode, by power iteration.

        The iteration's first vectors come from the seed; torch's global generators are left as they were. Several
        iterations a step keep up with the optimiser, so that baking it in changes little.
        """
        if self.config.spectral:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                for linear in (self.to_v, self.to_out):
                    parametrizations.spectral_norm(linear, n_power_iterations=POWER_ITERATIONS)

    def tensors(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return copies of the weights on the CPU, with the spectral norm of `tune_spectral_norm` baked in.

        There the largest singular values are exact, and the same on every machine.

        Args:
            state: state dict to take instead of the module's own.
        """
        weights = {}
        for key, value in (self.state_dict() if state is None else state).items():
            name, _, part = key.partition(".parametrizations.weight.")
            if part == "original":
                weights[f"{name}.weight"] = spectral_normalised(value.cpu())
            elif not part:
                weights[key] = value.cpu().clone()
        return weights
