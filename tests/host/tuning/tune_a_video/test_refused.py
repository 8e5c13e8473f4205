"""Files and models that do not fit, or that are not trusted."""

import logging
import os
from functools import partial
from pathlib import Path

import comfy.sd
import pytest
import torch
from torch import Tensor

from consistent_video.modules.tuning.host.apply import apply_tune
from consistent_video.nodes.shelves import TUNES

from ...small import Small, lively_weights, make_model, random_model
from ..tuned import lora_of
from .exchange import NAME, TAV_UNET, assert_close, draw_tune, export, is_temporal, make_file, read, small_model, write


def test_the_wrong_checkpoint_is_reported(folder, caplog) -> None:
    model = small_model()
    file = make_file(model)
    other = make_model(Small, TAV_UNET, another_checkpoint, torch.float32)
    with caplog.at_level(logging.WARNING):
        tune, report = read(other, write(file, folder))
    assert "another checkpoint" in report and "the first is" in report
    assert any("another checkpoint" in record.message for record in caplog.records)
    relative = float(report.split(" is ")[-1].split("%")[0].split()[-1])
    assert 4 < relative < 6
    apply_tune(other, tune)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        read(model, NAME + ".safetensors")
    assert not caplog.records


def another_checkpoint(shapes: dict[str, torch.Size], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights that are 5 % away from the usual ones."""
    weights, generator = lively_weights(shapes, dtype), torch.Generator().manual_seed(12)
    sizes = {key: value.square().mean().sqrt() for key, value in weights.items()}
    noise = {key: torch.randn(value.shape, generator=generator) for key, value in weights.items()}
    return {key: value + 0.05 * sizes[key] * noise[key] for key, value in weights.items()}


def test_a_file_for_another_structure_is_refused(folder) -> None:
    name = write(make_file(small_model()), folder)
    wide = small_model(unet={**TAV_UNET, "context_dim": 40})
    key = r"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    with pytest.raises(ValueError, match=rf"{name} does not fit .*{key} is \(32, 24\) .*and \(32, 40\) in the model"):
        read(wide, name)
    with pytest.raises(ValueError, match="is absent in the file and .* in the model. Load the checkpoint"):
        read(random_model(), name)


def test_a_model_that_cannot_be_inflated_is_refused(folder) -> None:
    name = write(make_file(small_model()), folder)
    inpainting = small_model(unet={**TAV_UNET, "in_channels": 9})
    with pytest.raises(ValueError, match="model takes 9 input channels"):
        read(inpainting, name)
    with pytest.raises(ValueError, match="model takes 9 input channels"):
        export(inpainting, draw_tune(small_model()))


def test_a_lora_that_is_not_in_the_weights_is_not_left_out_of_an_export(folder) -> None:
    model = small_model()
    bypassed = comfy.sd.load_bypass_lora_for_models(model, None, lora_of(model), 1.0, 0.0)[0]
    with pytest.raises(ValueError, match="model carries bypass_lora, which would have no effect here"):
        export(bypassed, draw_tune(model))


def test_what_is_no_tune_a_video_is_refused(folder) -> None:
    model = small_model()
    image = {key: value for key, value in make_file(model).items() if not is_temporal(key)}
    with pytest.raises(ValueError, match=f"{NAME}.bin is not a UNet of Tune-A-Video"):
        read(model, write(image, folder, ".bin"))
    saved = TUNES.write(draw_tune(model), "tune")
    with pytest.raises(ValueError, match="is not a UNet of Tune-A-Video.*belongs into Load Tune"):
        read(model, saved.name)


class Malicious:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused(folder, tmp_path_factory) -> None:
    mark = tmp_path_factory.mktemp("elsewhere") / "it ran"
    name = write({**make_file(small_model()), "extra": Malicious(mark)}, folder, ".bin")
    with pytest.raises(
        ValueError, match=f"{name} is damaged or holds more than weights, which could be code"
    ) as caught:
        read(small_model(), name)
    assert not mark.exists() and "weights_only" not in str(caught.value), "no advice to read it all the same"
    torch.load(folder / name, weights_only=False)
    assert mark.exists(), "it was malicious"


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"a text", bytes(200)])
def test_a_damaged_file_is_refused(folder, ending, content) -> None:
    path = folder / f"clip{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^clip{ending} is damaged"):
        read(small_model(), path.name)


def test_a_truncated_pickle_is_refused(folder) -> None:
    path = folder / write(make_file(small_model()), folder, ".bin")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=f"^{NAME}.bin is damaged"):
        read(small_model(), NAME + ".bin")


@pytest.mark.parametrize("content", [[1, 2], {"step": 5, "unet": {}}, {"unet": 3}, {"step": torch.tensor(5)}])
def test_a_file_that_holds_more_than_weights_is_refused(folder, content) -> None:
    torch.save(content, folder / "state.pt")
    with pytest.raises(ValueError, match=r"^state.pt (holds more than weights|is damaged or no file of weights)"):
        read(small_model(), "state.pt")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("place", ["conv_in.bias", "attn1.to_q.weight", "attn_temp.to_v.weight"])
def test_one_tensor_of_another_type_is_exact_or_refused(folder, place: str, dtype: torch.dtype) -> None:
    model = small_model()
    file = make_file(model)
    key = next(key for key in file if key.endswith(place))
    file[key] = file[key].to(dtype)
    name = write(file, folder)
    if dtype in (torch.float16, torch.bfloat16):
        written = write({**file, key: file[key].float()}, folder / "as_float32")
        assert_close(read(model, name)[0], read(model, f"as_float32/{written}")[0], rtol=0, atol=0)
        return
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"^{name} .*{key} (in|is) {kind}"):
        read(model, name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["conv_in.bias", "attn1.to_q.weight", "attn_temp.to_v.weight"])
def test_one_value_that_is_not_finite_is_refused_by_its_key(folder, place: str, value: float) -> None:
    model = small_model()
    file = make_file(model)
    key = next(key for key in file if key.endswith(place))
    file[key].view(-1)[3] = value
    name = write(file, folder)
    with pytest.raises(ValueError, match=f"^{name} holds values that are not finite .* in {key}"):
        read(model, name)


def test_models_that_do_not_fit_are_refused(folder) -> None:
    model, deep = small_model(), random_model()
    tune = draw_tune(model)
    with pytest.raises(ValueError, match=r"model cannot be exported: it has transformers of depths \[1, 2\] and"):
        export(deep, draw_tune(deep))
    with pytest.raises(ValueError, match="The tune does not fit this model"):
        export(deep, tune)
    with pytest.raises(ValueError, match="has this tune already"):
        export(apply_tune(model, tune), tune)
    quantised = small_model()
    quantised.model.diffusion_model.to(torch.float8_e4m3fn)
    for use in (partial(export, tune=tune), partial(read, name=write(make_file(model), folder))):
        with pytest.raises(ValueError, match="quantised weights"):
            use(quantised)
    assert not list(folder.glob("swan*"))
