"""The measures of an edit, against loops, torchmetrics and closed forms."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio

from consistent_video.demo.clips import draw_recipe, read_recipes
from consistent_video.modules.judging.plot import plot_scorecard
from consistent_video.modules.judging.scorecard import (
    DO_NOTHING,
    EDIT,
    MEASURES,
    Judges,
    Scorecard,
    background_psnr,
    clip_frames_all_pairs,
    clip_frames_consecutive,
    clip_text_score,
    flow_distance,
    judge_edit,
    motion_alignment,
    report_text,
    seam_score,
    texture_kept,
    warp_error,
)
from consistent_video.modules.motion.flow import Motion, motion_of

FRAMES, HEIGHT, WIDTH = 5, 19, 23


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: Tensor, b: Tensor) -> float:
    return (a @ b / (a.norm() * b.norm())).item()


def even_motion(right: float, down: float, height: int = HEIGHT, width: int = WIDTH) -> Motion:
    """Everything moves alike."""
    flow = torch.tensor([float(right), float(down)]).view(1, 2, 1, 1).expand(FRAMES - 1, 2, height, width)
    return motion_of(flow, -flow)


def sliding(right: int) -> Tensor:
    """A clip whose picture slides to the right."""
    wide = draw(3, HEIGHT, WIDTH + 40)
    return torch.stack([wide[..., 20 - right * n : 20 - right * n + WIDTH] for n in range(FRAMES)])


def test_clip_scores_are_those_of_a_loop() -> None:
    images, text = draw(FRAMES, 7) - 0.3, draw(7, seed=1) - 0.5
    assert clip_text_score(images, text) == pytest.approx(100 * sum(cosine(x, text) for x in images) / FRAMES)
    following = [cosine(images[n], images[n + 1]) for n in range(FRAMES - 1)]
    assert clip_frames_consecutive(images) == pytest.approx(100 * sum(following) / 4)
    pairs = [cosine(images[n], images[m]) for n in range(FRAMES) for m in range(n)]
    assert clip_frames_all_pairs(images) == pytest.approx(100 * sum(pairs) / 10)


def test_consecutive_frames_do_not_see_a_slow_drift() -> None:
    turn = torch.linspace(0, 1.5, FRAMES)
    images = torch.stack([turn.cos(), turn.sin()], dim=1)
    assert clip_frames_consecutive(images) == pytest.approx(100 * torch.tensor(1.5 / 4).cos().item())
    assert clip_frames_all_pairs(images) < clip_frames_consecutive(images) - 10


def test_what_slides_along_the_motion_has_no_warp_error() -> None:
    assert warp_error(sliding(3), even_motion(3, 0)) < 1e-12
    assert warp_error(sliding(3), even_motion(0, 0)) > 0.05


def test_flicker_along_the_motion_is_the_warp_error() -> None:
    edit = sliding(2) + 0.1 * (torch.arange(FRAMES) % 2).view(-1, 1, 1, 1)
    assert warp_error(edit, even_motion(2, 0)) == pytest.approx(0.01, rel=1e-4)


def test_what_is_hidden_is_no_warp_error() -> None:
    motion, edit = even_motion(0, 0), torch.zeros(FRAMES, 3, HEIGHT, WIDTH)
    edit[2, :, 4:9, 6:11] = 1
    assert warp_error(edit, motion) == pytest.approx(2 * 25 / (4 * HEIGHT * WIDTH))
    for seen in (motion.seen_forward, motion.seen_backward):
        seen[:, :, 4:9, 6:11] = 0
    assert warp_error(edit, motion) < 1e-12


def test_a_seam_is_the_warp_error_where_windows_meet_over_that_elsewhere() -> None:
    steps = torch.tensor([0.0, 0.1, 0.4, 0.5, 0.5]).view(-1, 1, 1, 1)  # the joints are 0 to 1 and 1 to 2
    windows = [(0, 1), (1, 2, 3, 4)]
    edit, motion = steps.expand(FRAMES, 3, HEIGHT, WIDTH), even_motion(0, 0)
    assert seam_score(edit, motion, windows) == pytest.approx(((0.1**2 + 0.3**2) / 2) / (0.1**2 / 2), rel=1e-4)
    motion.seen_forward[1, :, : HEIGHT // 2] = 0  # half as many points of the larger change count
    part = 1 - HEIGHT // 2 / HEIGHT
    expected = (0.1**2 + part * 0.3**2) / (1 + part) / (0.1**2 / 2)
    assert seam_score(edit, motion, windows) == pytest.approx(expected, rel=1e-4)
    assert seam_score(edit, motion, [range(FRAMES)]) is None, "no joints"
    assert seam_score(torch.zeros_like(edit), motion, windows) is None, "no error elsewhere"


@pytest.mark.parametrize(
    ("edit", "alignment"), [((2, 1), 1), ((4, 2), 1), ((-2, -1), -1), ((1, -2), 0), ((0, 0), 0), ((2, 0), 2 / 5**0.5)]
)
def test_the_alignment_is_the_angle_of_the_motions(edit: tuple, alignment: float) -> None:
    # a slower edit of the same source: the source's own occlusions count
    assert motion_alignment(even_motion(*edit), even_motion(2, 1)) == pytest.approx(alignment, abs=1e-6)
    apart = ((edit[0] - 2) ** 2 + (edit[1] - 1) ** 2) ** 0.5
    assert flow_distance(even_motion(*edit), even_motion(2, 1)) == pytest.approx(apart, abs=1e-6)


def test_there_is_no_alignment_with_what_stands_still() -> None:
    assert motion_alignment(even_motion(2, 1), even_motion(0, 0)) is None


def test_the_background_is_what_lies_outside_of_the_mask() -> None:
    source, edit, mask = draw(FRAMES, 3, HEIGHT, WIDTH), draw(FRAMES, 3, HEIGHT, WIDTH, seed=1), torch.zeros(1, 19, 23)
    mask[:, 3:11, 5:17] = 1
    expected = [
        peak_signal_noise_ratio(e[:, mask[0] == 0], s[:, mask[0] == 0], data_range=1.0).item()
        for e, s in zip(edit, source, strict=True)
    ]
    assert background_psnr(edit, source, mask) == pytest.approx(sum(expected) / FRAMES)
    inside = torch.where(mask.bool(), edit, source)
    assert background_psnr(inside, source, mask) == pytest.approx(100)
    assert background_psnr(inside, source, 1 - mask) < 20


def test_a_mask_over_a_whole_frame_leaves_no_background() -> None:
    frames, mask = draw(FRAMES, 3, HEIGHT, WIDTH), torch.zeros(FRAMES, HEIGHT, WIDTH)
    mask[2] = 1
    assert background_psnr(frames, frames, mask) is None


def test_blur_takes_texture_and_a_flat_source_has_none_to_keep() -> None:
    frames = draw(FRAMES, 3, HEIGHT, WIDTH)
    assert texture_kept(frames, frames) == 1
    assert texture_kept(F.avg_pool2d(frames, 3, 1, 1), frames) < 0.2
    assert texture_kept(frames / 2, frames) == pytest.approx(0.25)
    assert texture_kept(frames, torch.ones_like(frames)) is None


def frame_means(frames: Tensor) -> Tensor:
    return torch.cat([frames.mean(dim=(2, 3)), torch.ones(len(frames), 1)], dim=1)


def judges(**changed) -> Judges:
    known = {
        "images": frame_means,
        "text": lambda prompt: torch.tensor([0.5, 0.2, float(len(prompt)), 1.0]),
        "flow": lambda frames: even_motion(2, 0) if frames.mean() > 0.4 else even_motion(-2, 0),
        "lpips": lambda frames, others: (frames - others).abs().mean(dim=(1, 2, 3)),
        "models": {"images": "means", "text": "means", "flow": "a guess"},
    }
    return Judges(**{**known, **changed})


def test_a_scorecard_holds_each_measure_of_the_edit_and_of_doing_nothing() -> None:
    source, mask = sliding(2), torch.zeros(1, 2 * HEIGHT, WIDTH)
    mask[:, : 2 * HEIGHT // 2] = 1
    edit = 0.5 * source
    card = judge_edit(source, edit, "an edit", "a source", mask, judges())
    assert list(card.rows) == [EDIT, DO_NOTHING] and not card.left_out
    assert list(card.rows[EDIT]) == list(card.rows[DO_NOTHING]) == list(MEASURES)
    nothing = card.rows[DO_NOTHING]
    assert nothing["motion alignment"] == pytest.approx(1) and nothing["flow distance"] == 0
    assert nothing["background PSNR"] == 100 and nothing["LPIPS"] == 0 and nothing["texture"] == 1
    own = card.rows[EDIT]
    assert own["motion alignment"] == pytest.approx(-1) and own["flow distance"] == pytest.approx(4)
    assert own["texture"] == pytest.approx(0.25) and own["LPIPS"] == pytest.approx(source.mean().item() / 2, rel=1e-5)
    assert own["CLIP-T"] == pytest.approx(clip_text_score(frame_means(edit), torch.tensor([0.5, 0.2, 7, 1])))
    assert own["CLIP-T source"] == pytest.approx(clip_text_score(frame_means(edit), torch.tensor([0.5, 0.2, 8, 1])))
    assert own["warp error"] == pytest.approx(1000 * warp_error(edit, even_motion(2, 0)), abs=1e-9)
    lower = background_psnr(edit[:, :, HEIGHT // 2 + 1 :], source[:, :, HEIGHT // 2 + 1 :], torch.zeros(1, 9, WIDTH))
    assert own["background PSNR"] == pytest.approx(lower, abs=0.3)


def test_the_source_is_judged_by_its_own_motion_and_so_is_the_edit() -> None:
    # the warp error of the edit is along the source's flow, not along its own
    source, edit = sliding(2), sliding(-2) * 0.5
    card = judge_edit(source, edit, "", "", None, judges())
    assert card.rows[DO_NOTHING]["warp error"] < 1e-6 < 10 < card.rows[EDIT]["warp error"]


def test_what_is_absent_is_left_out_by_name_and_reason() -> None:
    frames = sliding(2)
    absent = {"images": "no CLIP", "text": "no CLIP", "lpips": "no weights", "flow": "no flow"}
    bare = Judges(absent=absent)
    card = judge_edit(frames, frames, "an edit", "", None, bare)
    assert list(card.rows[EDIT]) == ["texture"]
    assert set(card.left_out) == set(MEASURES) - {"texture"}
    assert card.left_out["LPIPS"] == "no weights" and card.left_out["warp error"] == "no flow"
    assert "mask" in card.left_out["background PSNR"]
    assert "edit_text" in judge_edit(frames, frames, " ", "", None, judges()).left_out["CLIP-T"]
    single = judge_edit(frames[:1], frames[:1], "an edit", "", None, judges())
    assert {"CLIP-F consecutive", "CLIP-F all pairs", "warp error"} <= set(single.left_out)
    assert "one frame" in single.left_out["warp error"] and "CLIP-T" in single.rows[EDIT]


def test_clips_that_do_not_fit_are_refused_with_both_numbers() -> None:
    frames = sliding(2)
    with pytest.raises(ValueError, match="5 frames and edited has 4"):
        judge_edit(frames, frames[:4], "", "", None, judges())
    with pytest.raises(ValueError, match="23 x 19 and 22 x 19"):
        judge_edit(frames, frames[..., :22], "", "", None, judges())
    with pytest.raises(ValueError, match="mask has 3 frames and source has 5"):
        judge_edit(frames, frames, "", "", torch.zeros(3, 4, 4), judges())


def test_the_report_names_what_was_measured_and_what_was_not() -> None:
    rows = {EDIT: {"CLIP-T": 31.25, "texture": 0.5}, DO_NOTHING: {"CLIP-T": 20.0, "texture": 1.0}}
    text = report_text(Scorecard(rows, {"LPIPS": "no weights"}, {"images": "CLIP x", "text": "CLIP x"}))
    assert "| edit | 31.25 | 0.5 |\n| do nothing | 20 | 1 |" in text
    assert "CLIP-T ↑ | texture |" in text and "- Left out: LPIPS, no weights." in text
    assert text.count("Measured by: CLIP x") == 1


def test_the_plot_has_a_panel_for_each_measure() -> None:
    rows = {EDIT: dict.fromkeys(MEASURES, 2.0), DO_NOTHING: dict.fromkeys(MEASURES, 1.0)}
    image = plot_scorecard(Scorecard(rows, {}, {}))
    assert image.shape == (1, 480, 1000, 3)
    blue = ((image[0] - torch.tensor([31, 119, 180]) / 255).abs() < 0.02).all(-1)
    grey = ((image[0] - torch.tensor([127, 127, 127]) / 255).abs() < 0.02).all(-1)
    upper = blue[:240].sum(0) > 20
    starts = (upper[1:] & ~upper[:-1]).sum()
    assert starts == 5 and blue.sum().item() == pytest.approx(2 * grey.sum().item(), rel=0.1)


def test_a_drawn_clip_follows_its_own_known_motion() -> None:
    clip = draw_recipe(read_recipes()[-1])
    motion = motion_of(clip.flow, clip.flow_back)
    still = clip.frames[:1].expand_as(clip.frames)
    assert 1000 * warp_error(clip.frames, motion) < 3 < 1000 * warp_error(still, motion)
    assert motion_alignment(motion, motion) == pytest.approx(1)
