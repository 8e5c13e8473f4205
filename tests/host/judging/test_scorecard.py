"""What measures a scorecard in the host: its own CLIP models, folders and files; and the two nodes."""

import json
import shutil
from pathlib import Path

import comfy.clip_vision
import comfy.sd
import folder_paths
import pytest
import torch
import torchvision
from comfy.clip_model import CLIPVisionModelProjection
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from consistent_video.modules.files.host import CLIP_FOLDERS, LPIPS, OPTICAL_FLOW, register_folder
from consistent_video.modules.judging.host import judges
from consistent_video.modules.judging.host.compare import compare_clips, name_clips
from consistent_video.modules.judging.scorecard import EDIT, judge_edit
from consistent_video.modules.motion.raft import load_raft
from consistent_video.nodes.judge import CompareGrid, EditScorecard
from consistent_video.nodes.sample import ClipMotion

TOKENIZER = Path(comfy.sd.__file__).parent / "sd1_tokenizer"
TEXT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 224, "patch_size": 32}
EDIT_TEXT = "a blue square on a white background"


def frames(seed: int = 0, count: int = 4, height: int = 72, width: int = 88) -> Tensor:
    """A clip (f, h, w, 3) whose picture slides to the right by three pixels a frame."""
    blocks = torch.rand(1, 3, 12, 24, generator=torch.Generator().manual_seed(seed))
    wide = torch.nn.functional.interpolate(blocks, size=(height, width + 40), mode="bicubic").clamp(0, 1)
    return torch.cat([wide[..., 20 - 3 * n : 20 - 3 * n + width] for n in range(count)]).movedim(1, -1)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder for what measures."""
    register_folder()
    for name in (OPTICAL_FLOW, LPIPS, CLIP_FOLDERS):
        extensions = folder_paths.folder_names_and_paths[name][1]
        (tmp_path / name).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], extensions))
    return tmp_path


@pytest.fixture
def tiny(tmp_path: Path) -> CLIPModel:
    """A small random CLIP model of equal widths, as the host's classes want it."""
    torch.manual_seed(0)
    text = {**TEXT, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=48)).eval()


def load_text(model: CLIPModel, path: Path, with_projection: bool = True) -> comfy.sd.CLIP:
    """Load its text half as the host's Load CLIP does."""
    weights = {key: value for key, value in model.state_dict().items() if key.startswith("text_model")}
    if with_projection:
        weights["text_projection.weight"] = model.text_projection.weight
    save_file({key: value.detach().contiguous() for key, value in weights.items()}, path)
    return comfy.sd.load_clip([str(path)], model_options={"model_config": TEXT})


def load_vision(model: CLIPModel, **changed) -> comfy.clip_vision.ClipVisionModel:
    """Load its image half as the host's Load CLIP Vision does."""
    config = {**VISION, "projection_dim": 48, "num_channels": 3, "hidden_act": "quick_gelu"}
    config |= {"model_type": "clip_vision_model", **changed}
    loaded = comfy.clip_vision.ClipVisionModel(config)
    assert isinstance(loaded.model, CLIPVisionModelProjection)
    keys = {key: value for key, value in model.state_dict().items() if key.startswith(("vision", "visual"))}
    missing, _ = loaded.load_sd(keys)
    assert not missing
    return loaded


def save_folder(model: CLIPModel, folder: Path) -> None:
    """Save it as transformers does, with the host's tokenizer."""
    model.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder)


def test_the_hosts_clip_models_share_a_space_with_the_folders(models: Path, tiny: CLIPModel, tmp_path: Path) -> None:
    save_folder(tiny, models / CLIP_FOLDERS / "tiny")
    clip, source = load_text(tiny, tmp_path / "clip_l.safetensors"), frames().movedim(-1, 1)
    host = judges.make_judges(clip_vision=load_vision(tiny), clip=clip)
    with torch.inference_mode():  # as nodes run
        folder = judges.make_judges(clip_folder="tiny")
    assert host.images and host.text and folder.images and folder.text
    torch.testing.assert_close(host.text(EDIT_TEXT), folder.text(EDIT_TEXT), atol=2e-3, rtol=2e-2)
    pair = host.images(source), folder.images(source)
    assert torch.nn.functional.cosine_similarity(*pair).min() > 0.999
    cards = [judge_edit(source, source.flip(0), EDIT_TEXT, "", None, made) for made in (host, folder)]
    for name in ("CLIP-T", "CLIP-F consecutive", "CLIP-F all pairs"):
        assert cards[0].rows[EDIT][name] == pytest.approx(cards[1].rows[EDIT][name], abs=0.3), name
    with torch.no_grad():
        ids = torch.tensor([folder_tokens(EDIT_TEXT)])
        features = tiny.get_text_features(ids).pooler_output[0]
    torch.testing.assert_close(folder.text(EDIT_TEXT), features, atol=1e-5, rtol=1e-4)


def folder_tokens(text: str) -> list[int]:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TOKENIZER)(text)["input_ids"]


def test_a_text_encoder_without_projection_gives_no_clip_t(tiny: CLIPModel, models: Path, tmp_path: Path) -> None:
    vision = load_vision(tiny)
    without = load_text(tiny, tmp_path / "sd15.safetensors", with_projection=False)
    made = judges.make_judges(clip_vision=vision, clip=without)
    assert made.text is None and made.images is not None and "no text_projection" in made.absent["text"]
    made = judges.make_judges(clip_vision=vision)
    assert made.text is None and "no text encoder" in made.absent["text"]
    made = judges.make_judges(clip=load_text(tiny, tmp_path / "clip.safetensors"))
    assert made.images is None and made.text is None


def test_halves_of_different_clip_models_give_no_clip_t(tiny: CLIPModel, models: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    text = {**TEXT, "vocab_size": 49408}
    other = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=40)).eval()
    clip = load_text(tiny, tmp_path / "clip_l.safetensors")
    made = judges.make_judges(clip_vision=load_vision(other, projection_dim=40), clip=clip)
    assert made.text is None and "not of one CLIP model" in made.absent["text"]


def test_files_and_folders_are_listed_and_nothing_else_is_taken(models: Path) -> None:
    assert judges.flow_methods() == ["variational"] and judges.lpips_files() == judges.clip_folders() == ["none"]
    (models / CLIP_FOLDERS / "a" / "b").mkdir(parents=True)
    (models / CLIP_FOLDERS / "a" / "b" / "config.json").write_text("{}")
    assert judges.clip_folders() == ["none", "a/b"]
    with pytest.raises(ValueError, match="clip_folder '../a' is not in models/clip_score"):
        judges.make_judges(clip_folder="../a")


@torch.inference_mode()  # as nodes run
def test_raft_and_lpips_measure_with_weights_from_files(models: Path) -> None:
    torch.manual_seed(0)
    raft = torchvision.models.optical_flow.raft_small(weights=None)
    torch.save(raft.state_dict(), models / OPTICAL_FLOW / "raft.pth")
    save_file(torchvision.models.alexnet(weights=None).state_dict(), models / LPIPS / "alex.safetensors")
    made = judges.make_judges(flow="raft.pth", lpips="alex.safetensors")
    assert made.models == {"flow": "RAFT by raft.pth", "lpips": "LPIPS by alex.safetensors"}
    source = frames(count=2)
    card = judge_edit(source.movedim(-1, 1), source.flip(0).movedim(-1, 1), "", "", None, made)
    assert card.rows[EDIT]["LPIPS"] > 0 and card.rows["do nothing"]["LPIPS"] == 0
    assert {"warp error", "flow distance"} <= set(card.rows[EDIT])
    motion = ClipMotion.execute(source, "raft.pth")[0]
    torch.manual_seed(0)
    assert motion.forward.shape == (1, 2, 72, 88) and load_raft(raft.state_dict(), "")
    assert not torch.allclose(motion.forward, ClipMotion.execute(source)[0].forward)


@pytest.mark.parametrize("spoil", ["cut", "text", "fp8", "nan"])
@pytest.mark.parametrize(("place", "given"), [(OPTICAL_FLOW, "flow"), (LPIPS, "lpips")])
def test_damaged_weights_are_refused_by_the_files_name(models: Path, place: str, given: str, spoil: str) -> None:
    weights = torchvision.models.optical_flow.raft_small(weights=None).state_dict()
    key = max(weights, key=lambda key: weights[key].numel())
    changed = {"fp8": weights[key].to(torch.float8_e4m3fn), "nan": weights[key] * torch.nan}
    file = models / place / "raft.safetensors"
    save_file({**weights, key: changed.get(spoil, weights[key])}, file)
    if spoil in ("cut", "text"):
        file.write_bytes(file.read_bytes()[:-1000] if spoil == "cut" else b"no weights")
    said = {"fp8": f"stores {key} in float8_e4m3fn", "nan": f"holds values that are not finite .* in {key}"}
    with pytest.raises(ValueError, match=rf"^raft\.safetensors {said.get(spoil, 'is damaged')}"):
        judges.make_judges(**{given: file.name})


def test_without_packages_the_measures_are_left_out_by_name(models: Path, monkeypatch) -> None:
    (models / LPIPS / "alex.pth").write_bytes(b"")
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    made = judges.make_judges(lpips="alex.pth")
    assert made.absent["lpips"] == "torchmetrics is not installed" and not made.lpips


def test_the_source_as_its_own_edit_scores_as_itself(models: Path) -> None:
    source, mask = frames(), torch.zeros(1, 72, 88)
    mask[:, :30] = 1
    given = {"mask": mask, "flow": "variational", "lpips": "none"}
    report, data, plot = EditScorecard.execute(source, source.clone(), "x", **given).result
    card = json.loads(data)
    assert card["rows"]["edit"] == card["rows"]["do nothing"]
    assert card["rows"]["edit"]["motion alignment"] == pytest.approx(1)
    assert card["rows"]["edit"]["background PSNR"] == 100 and card["rows"]["edit"]["texture"] == 1
    assert "lpips" in card["left_out"]["LPIPS"] and "| do nothing |" in report
    assert plot.shape == (1, 480, 1000, 3)


def test_reversed_motion_and_blur_are_told(models: Path) -> None:
    source = frames()
    blurred = torch.nn.functional.avg_pool2d(source.movedim(-1, 1), 5, 1, 2).movedim(1, -1)
    data = [EditScorecard.execute(source, edit, "").result[1] for edit in (source.flip(0), blurred)]
    rows = [json.loads(text)["rows"]["edit"] for text in data]
    assert rows[0]["motion alignment"] < -0.8 and rows[0]["flow distance"] == pytest.approx(6, abs=1)
    assert rows[0]["texture"] == pytest.approx(1) and rows[1]["texture"] < 0.9
    assert rows[1]["motion alignment"] > 0.9
    assert (
        rows[0]["warp error"]
        > 5 * json.loads(EditScorecard.execute(source, source, "").result[1])["rows"]["edit"]["warp error"]
    )


def test_a_grid_shows_every_clip_and_map(models: Path) -> None:
    source, small = frames(), frames(1, height=36, width=44)
    clip, strip = CompareGrid.execute(source, "bright", True, "variational", 3, edit_1=source, edit_2=small).result
    assert len(clip) == 4 and strip.shape[0] == 1 and clip.shape[1] % 2 == clip.shape[2] % 2 == 0
    plain, _ = CompareGrid.execute(source, edit_1=source).result
    assert clip.shape[1] > 3 * 72 > 72 < plain.shape[1] < 2 * 72 and clip.shape[2] > 3 * 88 > plain.shape[2] > 2 * 88


def test_labels_go_by_the_order_of_the_inputs() -> None:
    source, edits = frames(), {"edit_2": frames(2), "edit_1": frames(1)}
    found = CompareGrid.execute(source.half(), "A, B", edit_3=None, **{key: clip.half() for key, clip in edits.items()})
    ordered = CompareGrid.execute(source.half().float(), "A, B", edit_1=frames(1).half(), edit_2=frames(2).half())
    assert all(torch.equal(*pair) for pair in zip(found.result, ordered.result, strict=True))


def test_labels_and_lengths_that_do_not_fit_are_refused() -> None:
    clips = {"edit_1": frames(), "edit_3": frames(1)}
    assert list(name_clips(clips, "")) == ["edit_1", "edit_3"]
    assert list(name_clips(clips, "plain")) == ["plain", "edit_3"] and list(name_clips(clips, ", x")) == ["edit_1", "x"]
    with pytest.raises(ValueError, match="labels names 3 clips and 2 are connected"):
        name_clips(clips, "a, b, c")
    for labels in ("a, a", "source"):
        with pytest.raises(ValueError, match="one name"):
            name_clips(clips, labels)
    with pytest.raises(ValueError, match="edit_1 has 3 frames and source has 4"):
        compare_clips(frames(), {"edit_1": frames(count=3)}, "", False, "none", 8)
    with pytest.raises(ValueError, match="the clip has one frame"):
        compare_clips(frames(count=1), {"edit_1": frames(count=1)}, "", False, "variational", 8)
