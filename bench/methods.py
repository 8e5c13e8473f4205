"""What is compared: the one table of methods, and the hyper-parameters that are chosen for them.

A further method is a further row of `METHODS`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..modules.host.control_call import SelfAttention
from ..modules.noise_relation import Direction
from ..modules.presets import EI2, FULL, NORMS, PER_FRAME, TUNE_A_VIDEO_PRESET
from ..modules.smoothing import Smoothing

DO_NOTHING, AS_DRAWN = "do nothing", "as drawn"
REFERENCE = "per frame"
OBEYED = 0.05  # of the best, within which a hyper-parameter counts as obedient


@dataclass(frozen=True)
class Tuned:
    """How the model of a method is made; methods that agree in it share a tuning.

    Attributes:
        patch: arguments of `presets.method`, by name.
        tuned: whether it is tuned on the clip.
        smoothing: loss added to the tuning.
    """

    patch: tuple[tuple[str, str], ...] = (("name", EI2),)
    tuned: bool = True
    smoothing: Smoothing = "none"


@dataclass(frozen=True)
class Method:
    """A way to edit a clip.

    Attributes:
        model: how its model is made.
        gamma, direction: of the interframe noise relation in the inversion; plain DDIM inversion where 0.
        relation: at sampling: "", "plain", or "motion" along the clip's flow.
        control: of the attention by the source's: kind of the control of self-attention, None = none.
        tokens: whether prompt tokens are learned on the clip and stand before every prompt.
        takes: name of the hyper-parameter in CHOICES that is its own, "" = none.
        quick: whether --quick measures it.
    """

    model: Tuned = field(default_factory=Tuned)
    gamma: float = 0.0
    direction: Direction = "none"
    relation: str = ""
    control: SelfAttention | None = None
    tokens: bool = False
    takes: str = ""
    quick: bool = True

    @property
    def draws(self) -> bool:
        """Whether its result depends on the seed."""
        return self.model.tuned or self.tokens


def untuned(**patch: str) -> Tuned:
    """Return a model that is not tuned and so has no temporal module."""
    return Tuned((("name", EI2), ("temporal", "none"), *patch.items()), tuned=False)


def norm_rows() -> dict[str, Method]:
    """Return EI² with each norm of its Figure 4, with and without spectral norm; its own is the row EI²."""
    rows = {}
    for norm in NORMS:
        for spectral in ("off", "on"):
            if (norm, spectral) != ("instance centering", "on"):
                name = f"EI² with {norm}, {'with' if spectral == 'on' else 'no'} spectral norm"
                patch = (("name", EI2), ("norm", norm), ("spectral", spectral))
                rows[name] = Method(Tuned(patch), quick=name in (LAYER_NORM, CENTERING))
    return rows


LAYER_NORM, CENTERING = (f"EI² with {norm}, no spectral norm" for norm in ("layer norm", "instance centering"))
FFAM, SPARSE = "FFAM", "sparse-causal attention"
INR, SMOOTH_VIDEO = "EI² + INR", "EI² + SmoothVideo"
PLAIN, MOTION = "EI² + relation, plain", "EI² + relation, motion"
WAYS: tuple[Direction, ...] = ("forward", "backward", "both")


def gamma_row(direction: Direction, gamma: float) -> str:
    """Return the name of a row of INR Smooth's training-free inversion."""
    return f"FFAM, gamma {gamma:g} {direction}"


METHODS: dict[str, Method] = {
    REFERENCE: Method(Tuned((("name", PER_FRAME),), tuned=False)),
    SPARSE: Method(untuned(spatial="sparse-causal")),
    "key-frame attention": Method(untuned(spatial="key-frame"), quick=False),
    FFAM: Method(untuned()),
    **{
        gamma_row(way, gamma): Method(untuned(), gamma, way, quick=gamma == 0.5) for gamma in (0.5, 1.0) for way in WAYS
    },
    "FFAM + relation, plain": Method(untuned(), relation="plain", takes="plain_strength", quick=False),
    "FFAM + relation, motion": Method(untuned(), relation="motion", takes="strength", quick=False),
    "FFAM + prompt-to-prompt": Method(untuned(), control="replace", takes="end"),
    "FFAM + FateZero's fusion": Method(untuned(), control="fusion", takes="end", quick=False),
    "per frame + prompt tokens": Method(Tuned((("name", PER_FRAME),), tuned=False), tokens=True, quick=False),
    "FFAM + prompt tokens": Method(untuned(), tokens=True, quick=False),
    TUNE_A_VIDEO_PRESET: Method(Tuned((("name", TUNE_A_VIDEO_PRESET),))),
    "Tune-A-Video + INR": Method(Tuned((("name", TUNE_A_VIDEO_PRESET),), smoothing="INR"), takes="weight", quick=False),
    "full attention": Method(Tuned((("name", FULL),)), quick=False),
    **norm_rows(),
    EI2: Method(),
    INR: Method(Tuned(smoothing="INR"), takes="weight"),
    SMOOTH_VIDEO: Method(Tuned(smoothing="SmoothVideo"), takes="smooth_weight"),
    PLAIN: Method(relation="plain", takes="plain_strength"),
    MOTION: Method(relation="motion", takes="strength"),
    "EI² + prompt tokens": Method(tokens=True, quick=False),
}


@dataclass(frozen=True)
class Choice:
    """A hyper-parameter that is chosen on the validation clips.

    Attributes:
        name: of it.
        method: that it is chosen with; all that take it get the same value. "" where `way` says it.
        values: to choose from, the papers' or the node's own first: --quick takes that.
        way: of INR Smooth's training-free inversion, whose rows have a gamma each.
    """

    name: str
    method: str
    values: tuple[float, ...]
    way: Direction | None = None


CHOICES = (
    Choice("cfg", REFERENCE, (7.5, 3.0)),
    Choice("rate", EI2, (1e-4, 3e-4)),
    Choice("weight", INR, (2.0, 0.2)),
    Choice("smooth_weight", SMOOTH_VIDEO, (0.2, 2.0)),
    Choice("strength", "FFAM + relation, motion", (0.5, 0.25)),
    Choice("plain_strength", "FFAM + relation, plain", (0.5, 0.25)),
    Choice("end", "FFAM + prompt-to-prompt", (0.3, 0.6)),
    *(Choice(f"gamma {way}", "", (0.5, 1.0), way) for way in WAYS),
)
