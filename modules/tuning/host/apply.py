"""Tunes on the host's models."""

from dataclasses import replace

from comfy.model_patcher import ModelPatcher

from ...clip_model.host.attach import attach, inflate
from ...clip_model.host.bank import blocks_with_module, temporal_key, transformer_blocks
from ...clip_model.host.family import require_unet
from ...clip_model.host.settings import KEY, ClipSettings, clip_settings
from ...clip_model.temporal import TemporalConfig, TemporalModule, trained_with
from ..weights import DIFFERENCES, Tune


def apply_tune(
    model: ModelPatcher,
    tune: Tune,
    query_strength: float = 1.0,
    temporal_strength: float = 1.0,
    progress: float = 1.0,
) -> ModelPatcher:
    """Return a clone with a tune: its attention across frames, query projections and temporal modules.

    Args:
        model: image model or inflated model of the structure the tune was made on; an attention patch is replaced.
        tune: what to apply.
        query_strength: factor of the tuned change of the query projections, 1 = as tuned.
        temporal_strength: factor of what the temporal modules add, 0 ... 1.
        progress: how far into its tuning the tune is taken, 0 ... 1, see `Tune.at`.

    Raises:
        ValueError: the model has another structure (names the first key that differs and both shapes), the tune
            already or one that this was not made on, or the tune has no snapshots for its progress or is damaged.
    """
    if KEY not in model.model_options["transformer_options"]:
        model = inflate(model)
    require_unet(model, "Apply Tune", "Load the checkpoint that the tune was made on.")
    digest, applied = tune.digest(), clip_settings(model).tunes
    if digest in applied:
        raise ValueError(
            "model has this tune already, and applying it again would double its change. Connect the model as it was "
            "before One-Shot Tune or Apply Tune."
        )
    made = tune.made
    check_structure(model, tune, made.temporal)
    check_order(clip_settings(model), tune)
    tensors = tune.at(progress).tensors
    strengths = made.spatial_strength, made.temporal_strength * temporal_strength
    clone = attach(model, made.spatial, made.temporal, *strengths, percents=made.percents, tensors=tensors)
    options = clone.model_options["transformer_options"]
    options[KEY] = replace(options[KEY], tunes=(*applied, digest), tuned_frames=made.frames)
    differences = {
        f"{key.removesuffix(f'.{end}')}.{name}": ("diff", (value,))
        for key, value in tensors.items()
        for name, end in DIFFERENCES.items()
        if key.endswith(f".{end}")
    }
    added = clone.add_patches(differences, query_strength)
    assert len(added) == len(differences), "keys were checked above"
    return clone


def check_order(attached: ClipSettings, tune: Tune) -> None:
    """Raise ValueError where a model carries a tune whose temporal modules a tune made without it would throw away."""
    is_tuned = attached.temporal is not None and attached.temporal.is_tuned
    if is_tuned and attached.tunes[-1] not in tune.made.tunes:
        raise ValueError(
            "model carries another tune, whose temporal modules this one would throw away: it was not made on a model "
            "with that tune. Apply each to the model as it was before Apply Tune or One-Shot Tune."
        )


def check_structure(model: ModelPatcher, tune: Tune, temporal: TemporalConfig | None) -> None:
    """Raise ValueError where a tune, with such temporal modules, does not fit a model's structure."""
    unet = model.model.diffusion_model
    expected: dict[str, tuple[int, ...]] = {}
    weights = model.model.state_dict()
    blocks = transformer_blocks(unet)
    for key in (f"diffusion_model.{block.path}.{name}" for block in blocks for name in trained_with(temporal)):
        ends = {name: end for name, end in DIFFERENCES.items() if f"{key}.{name}" in weights}
        expected |= {f"{key}.{end}": tuple(weights[f"{key}.{name}"].shape) for name, end in ends.items()}
    if temporal is not None:
        for block in blocks_with_module(blocks, temporal):
            module = TemporalModule(block.dim, block.heads, temporal, None)
            shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
            expected |= {temporal_key(block.path, name): shape for name, shape in shapes.items()}
    for key in [*expected, *tune.tensors]:
        mine, its = expected.get(key), tune.tensors.get(key)
        shape = None if its is None else tuple(its.shape)
        if mine != shape:
            raise ValueError(
                f"The tune does not fit this model: {key} is {shape or 'absent'} in the tune and {mine or 'absent'} in "
                "the model. Load a checkpoint of the structure it was tuned on."
            )
