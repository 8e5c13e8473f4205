"""The part of sampling that frame attention acts in."""

import pytest
import torch
from diffusers import DDIMScheduler

from consistent_video.modules.clip_model.methods import EI2

from ..small import sample
from .patched import CROSS_FRAME, patched


def get_sigma(t: int) -> float:
    """Return the noise level of a timestep, by diffusers' schedule of Stable Diffusion."""
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alpha_bar = schedule.alphas_cumprod[t].double().item()
    return ((1 - alpha_bar) / alpha_bar) ** 0.5


@pytest.mark.parametrize("name", CROSS_FRAME)
@pytest.mark.parametrize(
    ("t", "factor", "acts"),
    [(999, 1, False), (666, 1.001, False), (666, 0.999, True), (333, 1.001, True), (333, 0.999, False), (0, 1, False)],
)
def test_outside_of_its_part_of_sampling_the_base_model_is_alone(model, latent, name, t, factor, acts) -> None:
    """Percents are of the timesteps 999 to 0, from noise to the clip."""
    sigmas = (factor * get_sigma(t), 0.5 * get_sigma(t))
    base, whole = (sample(m, latent, sigmas=sigmas) for m in (model, patched(model, name)))
    partly = sample(patched(model, name, percents=(1 / 3, 2 / 3)), latent, sigmas=sigmas)
    assert not torch.equal(base, whole)
    assert torch.equal(partly, whole if acts else base)


@pytest.mark.parametrize(("percents", "t"), [((0.0, 0.5), 999), ((0.5, 1.0), 0)])
def test_a_part_of_sampling_reaches_to_its_ends(model, latent, percents, t) -> None:
    for factor in (0.9, 1.1):  # also beyond the model's own noise levels
        sigmas = (factor * get_sigma(t), 0.5 * get_sigma(t))
        partly = sample(patched(model, EI2, percents=percents), latent, sigmas=sigmas)
        assert torch.equal(partly, sample(patched(model, EI2), latent, sigmas=sigmas))


def test_it_begins_and_ends_on_the_way(model, latent) -> None:
    way, turn = (9.0, 3.0, 2.0, 0.5, 0.0), 3
    base, whole = model, patched(model, EI2)
    for percents, first in (((0.0, 0.5), whole), ((0.5, 1.0), base)):  # sigma at 0.5 is 1.6
        partly = patched(model, EI2, percents=percents)
        early = [sample(m, latent, sigmas=way[: turn + 1]) for m in (partly, first)]
        assert torch.equal(*early)
        late = [sample(m, latent, sigmas=way) for m in (partly, base, whole)]
        assert not torch.equal(late[0], late[1]) and not torch.equal(late[0], late[2])


@pytest.mark.parametrize("percents", [(0.6, 0.3), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_an_empty_part_of_sampling_is_refused(model, percents: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=f"start_percent {percents[0]:g} .* end_percent {percents[1]:g}"):
        patched(model, EI2, percents=percents)
