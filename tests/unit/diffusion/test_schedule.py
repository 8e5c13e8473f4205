"""The noise levels of a DDIM walk, against diffusers and in closed form."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import example, given
from hypothesis import strategies as st

from consistent_video.modules.diffusion.schedule import ddim_sigmas, ddim_timesteps, matched_denoise, sigma_to_alpha_bar


def make_scheduler() -> DDIMScheduler:
    """The scheduler that ships with Stable Diffusion 1.x."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def make_table() -> torch.Tensor:
    """Sigma of each training step of Stable Diffusion 1.x, from its betas one by one."""
    table, alpha_bar = [], 1.0
    for t in range(1000):
        beta = (0.00085**0.5 + t / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2
        alpha_bar *= 1 - beta
        table.append(((1 - alpha_bar) / alpha_bar) ** 0.5)
    return torch.tensor(table, dtype=torch.float64)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500])
def test_timesteps_are_those_of_diffusers_where_they_divide(num_steps: int) -> None:
    scheduler = make_scheduler()
    scheduler.set_timesteps(num_steps)
    assert ddim_timesteps(num_steps).tolist() == sorted(scheduler.timesteps.tolist())


@given(num_steps=st.integers(1, 999))
@example(num_steps=501)
def test_every_number_of_steps_ends_one_stride_from_full_noise(num_steps: int) -> None:
    timesteps = ddim_timesteps(num_steps)
    assert not timesteps.is_floating_point() and len(timesteps) == num_steps
    assert timesteps[0] == 1 and 1000 - 1000 / num_steps <= timesteps[-1] <= 999
    strides = set((timesteps[1:] - timesteps[:-1]).tolist())
    assert strides <= {1000 // num_steps, 1000 // num_steps + 1}


def test_fifty_steps_visit_1_21_to_981() -> None:
    assert ddim_timesteps(50).tolist() == list(range(1, 982, 20))


@pytest.mark.parametrize("num_steps", [-3, 0, 1000, 2000])
def test_impossible_numbers_of_steps_are_refused_by_name(num_steps: int) -> None:
    with pytest.raises(ValueError, match=rf"steps must be between 1 and 999, got {num_steps}\."):
        ddim_timesteps(num_steps)


def test_the_limit_follows_the_number_of_training_steps() -> None:
    with pytest.raises(ValueError, match="between 1 and 36, got 37"):
        ddim_sigmas(torch.arange(1, 38) / 10, 37)


@pytest.mark.parametrize("num_steps", [1, 8, 50])
@pytest.mark.parametrize("to_one", [False, True])
def test_sigmas_descend_over_the_timesteps_to_the_first_or_to_zero(num_steps: int, to_one: bool) -> None:
    table = make_table()
    sigmas = ddim_sigmas(table, num_steps, set_alpha_to_one=to_one)
    assert sigmas.shape == (num_steps + 1,) and sigmas.dtype == table.dtype
    assert sigmas[-1] == (0 if to_one else table[0])
    assert (sigmas[:-1] > sigmas[1:]).all()
    ratio = 1000 // num_steps
    assert sigmas[:-1].tolist() == [table[1 + i * ratio].item() for i in reversed(range(num_steps))]


def test_the_last_level_is_by_default_that_of_stable_diffusions_scheduler() -> None:
    final = make_scheduler().final_alpha_cumprod.item()
    assert ddim_sigmas(make_table(), 5)[-1].item() == pytest.approx(((1 - final) / final) ** 0.5, rel=1e-4)


@pytest.mark.parametrize(("denoise", "num_steps"), [(0.5, 20), (0.5, 4), (0.3, 12), (0.75, 50)])
def test_a_part_of_the_levels_is_walked_as_diffusers_walks_a_schedule_that_ends_there(
    denoise: float, num_steps: int
) -> None:
    betas = make_scheduler().betas[: round(1000 * denoise)]
    scheduler = DDIMScheduler(num_train_timesteps=len(betas), trained_betas=betas.numpy(), steps_offset=1)
    scheduler.set_timesteps(num_steps)
    assert ddim_timesteps(num_steps, denoise=denoise).tolist() == sorted(scheduler.timesteps.tolist())


@given(num_steps=st.integers(1, 99), percent=st.integers(10, 100))
def test_the_walk_begins_within_a_stride_of_the_part_asked_for(num_steps: int, percent: int) -> None:
    timesteps = ddim_timesteps(num_steps, denoise=percent / 100)
    assert 10 * percent - 10 * percent / num_steps <= timesteps[-1] <= 10 * percent
    assert timesteps[0] == 1 and len(timesteps.unique()) == num_steps


@pytest.mark.parametrize("denoise", [-0.1, 0.0, 1.01, float("nan")])
def test_impossible_parts_are_refused_by_name(denoise: float) -> None:
    with pytest.raises(ValueError, match="denoise must be above 0 and at most 1"):
        ddim_timesteps(8, denoise=denoise)


def test_more_steps_than_the_part_has_levels_are_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"between 1 and 99, got 100 at denoise 0\.10; lower steps or raise denoise"):
        ddim_timesteps(100, denoise=0.1)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 32), (24, 40), (63, 64)])
def test_the_matched_start_lies_as_far_below_the_end_as_the_clip_is_smaller(height: int, width: int) -> None:
    table = make_table()
    span = round(1000 * matched_denoise(table, height, width))
    wanted = table[-1].item() * math.sqrt(height * width) / 64
    assert table[span - 2] < wanted <= table[span - 1]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 128), (128, 96)])
def test_from_the_size_of_stable_diffusion_on_all_levels_are_walked(height: int, width: int) -> None:
    assert matched_denoise(make_table(), height, width) == 1.0


def test_alpha_bar_of_a_sigma_is_that_of_the_training_step() -> None:
    alpha_bar = sigma_to_alpha_bar(make_table())
    torch.testing.assert_close(alpha_bar.float(), make_scheduler().alphas_cumprod, rtol=1e-5, atol=0)
    assert make_table()[-1] == pytest.approx(14.6146, abs=1e-4)
    assert sigma_to_alpha_bar(torch.tensor(0.0)) == 1 and sigma_to_alpha_bar(torch.tensor(3.0)) == pytest.approx(0.1)
