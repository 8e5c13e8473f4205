"""What is compared: the one table of methods, the claims about them, and the hyper-parameters chosen for them.

A further method is a further row of `METHODS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from ..modules.attention_control.host.call import SelfAttention
from ..modules.clip_model.methods import EI2, FULL, NORMS, PER_FRAME, TUNE_A_VIDEO_PRESET
from ..modules.diffusion.path import PathKind
from ..modules.inversion.inversion import Method as InversionMethod
from ..modules.inversion.inversion import Start
from ..modules.inversion.noise_relation import Direction, Reading
from ..modules.tuning.losses.smoothing import Smoothing
from ..scripts.parts import CFG, CFG_END, RELATION
from .verdict import Claim, Part

DO_NOTHING = "do nothing"
AS_DRAWN = "as drawn"
FROM_TEXT = "from the text alone"
BOUNDS = (DO_NOTHING, AS_DRAWN, FROM_TEXT)  # rows to read the methods against, which edit nothing
TEXT_CFG = 3.0  # of what is drawn from the text alone
REFERENCE = "per frame"
CLOSE = 0.05  # to the best, within which a hyper-parameter counts as good: of the share that is right, of warp error


@dataclass(frozen=True)
class Tuned:
    """How the model of a method is made; methods that agree in it share a tuning.

    Attributes:
        patch: arguments of `clip_model.methods.method`, by name.
        tuned: whether it is tuned on the clip.
        smoothing: loss added to the tuning.
        path: from clips to noise: of the model as it was trained, or of a flow.
    """

    patch: tuple[tuple[str, str], ...] = (("name", EI2),)
    tuned: bool = True
    smoothing: Smoothing = "none"
    path: PathKind = "noise"


@dataclass(frozen=True)
class Method:
    """A way to edit a clip.

    Attributes:
        model: how its model is made.
        gamma, direction, reading, start: of the interframe noise relation in the inversion; plain inversion where
            gamma is 0.
        inversion: its method.
        relation: at sampling: "", "plain", or "motion" along the clip's flow.
        from_source: whether guidance leads away from the source prompt, which then is the negative, and not from the
            empty prompt.
        control: of the attention by the source's: kind of the control of self-attention, None = none.
        tokens: whether prompt tokens are learned on the clip and stand before every prompt.
        takes: name of the hyper-parameter in CHOICES that is its own, "" = none.
        own: hyper-parameters in which it differs from what was chosen, by name.
        quick: whether --quick measures it.
        part: of the clips with tunings on which it is measured.
    """

    model: Tuned = field(default_factory=Tuned)
    gamma: float = 0.0
    direction: Direction = "none"
    reading: Reading = "mean"
    start: Start = "inverted latent"
    inversion: InversionMethod = "DDIM"
    relation: str = ""
    from_source: bool = True
    control: SelfAttention | None = None
    tokens: bool = False
    takes: str = ""
    own: tuple[tuple[str, float], ...] = ()
    quick: bool = True
    part: float = 1.0

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
                patch = (("name", EI2), ("norm", norm), ("spectral_norm", spectral))
                rows[name] = Method(Tuned(patch), quick=name in (LAYER_NORM, CENTERING), part=1 / 3)
    return rows


LAYER_NORM, CENTERING = (f"EI² with {norm}, no spectral norm" for norm in ("layer norm", "instance centering"))
FFAM, SPARSE = "FFAM", "sparse-causal attention"
INR, SMOOTH_VIDEO = "EI² + INR", "EI² + SmoothVideo"
PLAIN, MOTION = "EI² + relation, plain", "EI² + relation, motion"
DEFAULT, FREE_CONTROL = "FFAM + relation, motion", "FFAM + prompt-to-prompt"  # the default graph needs no tuning
OLD, GUIDED = "FFAM, from the highest level, empty negative", "FFAM, guided to the end"
EMPTY, FREER = f"{DEFAULT}, empty negative", f"{DEFAULT}, freer"
DDPM, TIED_DDPM = "FFAM, DDPM inversion", f"{DEFAULT}, DDPM inversion"
SHARED_DDPM = f"{DEFAULT}, DDPM inversion, shared noise"
WAYS: tuple[Direction, ...] = ("forward", "backward", "both")
BASE: dict[str, Any] = {"model": untuned(), "relation": "motion"}


def gamma_row(direction: Direction, gamma: float) -> str:
    """Return the name of a row of INR Smooth's training-free inversion, on top of the default graph."""
    return f"{DEFAULT}, gamma {gamma:g} {direction}"


METHODS: dict[str, Method] = {
    REFERENCE: Method(Tuned((("name", PER_FRAME),), tuned=False)),
    SPARSE: Method(untuned(spatial="sparse-causal")),
    "key-frame attention": Method(untuned(spatial="key-frame"), quick=False),
    FFAM: Method(untuned()),
    OLD: Method(untuned(), own=(("denoise", 1.0), ("cfg", 7.5), ("cfg_end", 1.0)), from_source=False),
    GUIDED: Method(untuned(), own=(("cfg_end", 1.0),)),
    "FFAM + relation, plain": Method(untuned(), relation="plain", quick=False),
    DEFAULT: Method(**BASE),
    f"{DEFAULT}, as a flow": Method(replace(untuned(), path="flow"), relation="motion", quick=False),
    EMPTY: Method(own=(("cfg", 7.5),), from_source=False, **BASE),
    # what the help advises for edits of texture
    FREER: Method(own=(("denoise", 0.8), ("cfg", 5.0), ("cfg_end", 0.6)), quick=False, **BASE),
    DDPM: Method(untuned(), inversion="edit-friendly DDPM", quick=False),
    TIED_DDPM: Method(inversion="edit-friendly DDPM", quick=False, **BASE),
    SHARED_DDPM: Method(inversion="edit-friendly DDPM, shared noise", quick=False, **BASE),
    FREE_CONTROL: Method(untuned(), control="replace", takes="control_end"),
    "FFAM + FateZero's fusion": Method(untuned(), control="fusion", takes="control_end", quick=False),
    "FFAM + prompt-to-prompt + relation": Method(control="replace", takes="control_end", quick=False, **BASE),
    **{
        gamma_row(way, gamma): Method(gamma=gamma, direction=way, quick=gamma == 0.5, **BASE)
        for gamma in (0.5, 1.0)
        for way in WAYS
    },
    f"{DEFAULT}, gamma 0.5 sum": Method(gamma=0.5, direction="both", reading="sum", quick=False, **BASE),
    f"{DEFAULT}, gamma 0.5 complementary": Method(
        gamma=0.5, direction="both", reading="complementary", quick=False, **BASE
    ),
    f"{DEFAULT}, gamma 0.5 from the clean latent": Method(
        gamma=0.5, direction="both", start="clean latent", quick=False, **BASE
    ),
    "per frame + prompt tokens": Method(Tuned((("name", PER_FRAME),), tuned=False), tokens=True, quick=False),
    "FFAM + prompt tokens": Method(untuned(), tokens=True, quick=False),
    TUNE_A_VIDEO_PRESET: Method(Tuned((("name", TUNE_A_VIDEO_PRESET),))),
    "Tune-A-Video + INR": Method(Tuned((("name", TUNE_A_VIDEO_PRESET),), smoothing="INR"), takes="weight", quick=False),
    "Tune-A-Video + prompt-to-prompt": Method(
        Tuned((("name", TUNE_A_VIDEO_PRESET),)), control="replace", takes="control_end", quick=False, part=1 / 3
    ),
    "full attention": Method(Tuned((("name", FULL),)), quick=False),
    **norm_rows(),
    EI2: Method(),
    INR: Method(Tuned(smoothing="INR"), takes="weight", part=1 / 3),
    SMOOTH_VIDEO: Method(Tuned(smoothing="SmoothVideo"), takes="smooth_weight", part=1 / 3),
    PLAIN: Method(relation="plain"),
    MOTION: Method(relation="motion"),
    "EI² + prompt-to-prompt": Method(control="replace", takes="control_end", quick=False, part=1 / 3),
    "EI² + prompt-to-prompt + relation": Method(
        relation="motion", control="replace", takes="control_end", quick=False, part=1 / 3
    ),
    "EI² + prompt tokens": Method(tokens=True, quick=False),
}


@dataclass(frozen=True)
class Choice:
    """Hyper-parameters that are chosen together on the validation clips.

    Attributes:
        names: of them.
        method: that they are chosen with; all methods that take them get the same values.
        values: combinations to choose from; the search begins at the first.
        way: of INR Smooth's training-free inversion, whose rows have a gamma each; the method is then named by it.
    """

    names: tuple[str, ...]
    method: str
    values: tuple[tuple[float, ...], ...]
    way: Direction | None = None

    def row(self, values: tuple[float, ...]) -> str:
        """Return the method that some values are tried with."""
        return self.method if self.way is None else gamma_row(self.way, values[0])


SHARED = ("denoise", "cfg", "cfg_end")  # every method has them
# The parts of the noise levels at which sampling begins: matched to the latent's size, all, between them, half the
# matched sigma.
MATCHED, ALL, HIGHER, HALF = 0.0, 1.0, 0.8, 0.54
CHOICES = (
    Choice(("denoise", "cfg"), DEFAULT, tuple(product((MATCHED, ALL, HIGHER, HALF), (3.0, 5.0, 7.5, 12.5)))),
    Choice(("cfg_end",), DEFAULT, ((0.5,), (0.3,), (0.7,), (1.0,))),
    Choice(("passes", "end"), DEFAULT, tuple(product((8, 1, 2, 4), (1.0, 0.5, 0.65, 0.8)))),
    Choice(("control_end",), FREE_CONTROL, ((0.3,), (0.6,))),
    *(Choice((f"gamma {way}",), "", ((0.5,), (1.0,)), way) for way in WAYS),
    Choice(("rate",), EI2, ((3e-4,), (1e-4,))),
    Choice(("weight",), INR, ((2.0,), (0.2,))),
    Choice(("smooth_weight",), SMOOTH_VIDEO, ((0.2,), (2.0,))),
)
CHOSEN = {"cfg": CFG, "cfg_end": CFG_END, **RELATION}  # what the search led to, where it differs from its beginning
SHOWN = (*BOUNDS, REFERENCE, OLD, FFAM, DEFAULT, FREER, TIED_DDPM, FREE_CONTROL, "Tune-A-Video", EI2, INR, MOTION)
TEXTURE_LOST, GHOSTS_ADDED, COST_ADDED = 0.05, 0.02, 0.1
OBEYED_LOST, MOTION_ADDED = 0.05, 1.0  # share; pixels


def claims(chosen: Mapping[str, float]) -> dict[str, Claim]:
    """Return the papers' claims and ours by their letters, with the gammas that were chosen."""
    forward, backward, both = (gamma_row(way, chosen[f"gamma {way}"]) for way in WAYS)
    return {
        "a": Claim(
            "EI²: Instance Centering instead of Layer Norm raises text obedience",
            (Part(CENTERING, LAYER_NORM, "obeyed", 1),),
        ),
        "b": Claim("EI²: spectral norm raises it further", (Part(EI2, CENTERING, "obeyed", 1),)),
        "c": Claim(
            "EI²: FFAM lowers flicker against sparse-causal attention at like cost (without tuning; a tenth of an edit "
            "per frame more at most)",
            (Part(FFAM, SPARSE, "flicker", -1), Part(FFAM, SPARSE, "cost", -1, COST_ADDED), *still_edits(FFAM, SPARSE)),
        ),
        "d": Claim(
            "INR Smooth: its loss beats none and SmoothVideo on consistency without losing texture (a twentieth)",
            (
                Part(INR, EI2, "warp_error", -1),
                Part(INR, SMOOTH_VIDEO, "warp_error", -1),
                Part(INR, EI2, "texture", 1, TEXTURE_LOST),
                *still_edits(INR, EI2),
            ),
        ),
        "e": Claim(
            "INR Smooth: both directions beat one on consistency (training-free, each with its own gamma)",
            (
                Part(both, forward, "warp_error", -1),
                Part(both, backward, "warp_error", -1),
                *still_edits(both, forward),
                *still_edits(both, backward),
            ),
        ),
        "f": Claim(
            "Ours: motion compensation of the relation at sampling lowers flicker further, without ghosts (a fiftieth "
            "of the object) or lost texture (a twentieth)",
            (
                Part(MOTION, PLAIN, "flicker", -1),
                Part(MOTION, EI2, "flicker", -1),
                Part(MOTION, EI2, "ghosts", -1, GHOSTS_ADDED),
                Part(MOTION, EI2, "texture", 1, TEXTURE_LOST),
                *still_edits(MOTION, EI2),
            ),
        ),
    }


def still_edits(method: str, rival: str) -> tuple[Part, Part]:
    """Return what every claim of steadiness rests on as well: an edit that is not made is steady, too."""
    return Part(method, rival, "obeyed", 1, OBEYED_LOST), Part(method, rival, "motion_error", -1, MOTION_ADDED)
