"""Tunings that go on from a state, and the steps of snapshots."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from consistent_video.modules.tuning.settings import read_steps
from consistent_video.modules.tuning.tuner import Tuner
from consistent_video.modules.tuning.weights import Tune, load_tune, save_tune

from .toy import IN_8_BITS, SETTINGS, Toy, draw_clip, finish, make_spectral, make_tuner, spoil, take

CONTINUED = {
    "AdamW": {},
    "schedule": {"schedule": "cosine", "warmup_steps": 3},
    "windows": {"frames_per_step": 2},
    "AdamW 8-bit": {"optimizer": "AdamW 8-bit"},
    "mixed noise": {"noise": "mixed", "noise_correlation": 1.0, "frames_per_step": 3},
}
IN_BYTES = ("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")  # of a parameter whose state is in 8 bits


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize("make", [Toy, make_spectral], ids=["plain", "spectral"])
@pytest.mark.parametrize("how", CONTINUED)
def test_a_tuning_goes_on_to_the_bit(how: str, make: Callable[..., Toy], scaled: bool, tmp_path: Path) -> None:
    settings = SETTINGS.changed(steps=7, seed=3, **CONTINUED[how])
    given = {"scale_gradients": scaled}
    size: tuple[int, int] = (1, 1)
    if settings.optimization.optimizer == "AdamW 8-bit":
        size, given["x_0"] = IN_8_BITS, draw_clip(size=IN_8_BITS)
    tuner = make_tuner(make(4, size), settings, **given)
    if scaled:
        tuner.updates.scaler.set_growth_interval(2)  # so that the scale changes
    take(tuner, 4)
    state = through_file(tuner.state_dict(), tmp_path)
    finish(tuner)
    again = make_tuner(make(5, size), settings.changed(seed=99), **given)
    again.load_state_dict(state)
    assert list(again.steps()) == [5, 6, 7]
    assert again.losses == tuner.losses
    assert_equal(again.state_dict(), tuner.state_dict())


def test_a_state_is_not_changed_by_going_on() -> None:
    tuner = make_tuner(Toy())
    take(tuner, 2)
    state = tuner.state_dict()
    before = {key: value.clone() for key, value in state.items()}
    finish(tuner)
    assert_equal(state, before)
    for _ in range(2):
        again = make_tuner(Toy(5))
        again.load_state_dict(state)
        finish(again)
        assert_equal(state, before)


def through_file(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Write a state with a tune and read it again, as the host does in inference mode."""
    info = {"spatial": None, "spatial_strength": 1, "temporal": None, "temporal_strength": 1}
    info["loss"] = state["losses"].tolist()
    save_tune(Tune({"a.diff": torch.zeros(2)}, info, state=state), folder / "tune.safetensors", with_state=True)
    with torch.inference_mode():
        return load_tune(folder / "tune.safetensors").state


def assert_equal(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value) and state[key].dtype == value.dtype, key


class Stop(BaseException):
    """Stands in for the host's interruption, which is no Exception and can rise inside any layer."""


def stop(_denoised: Tensor) -> Tensor:
    raise Stop


def test_a_tuning_stopped_inside_a_step_goes_on_to_the_bit() -> None:
    toys = make_spectral(4), make_spectral(4)
    whole, stopped = make_tuner(toys[0]), make_tuner(toys[1], denoise=spoil(toys[1], 3, stop))
    finish(whole)
    with pytest.raises(Stop):
        finish(stopped)
    assert stopped.done == 2
    again = make_tuner(make_spectral(5))
    again.load_state_dict(stopped.state_dict())
    finish(again)
    assert again.losses == whole.losses
    assert_equal(again.state_dict(), whole.state_dict())


def test_a_state_of_other_weights_is_refused() -> None:
    tuner = make_tuner(Toy())
    take(tuner, 2)
    state = tuner.state_dict()
    other = make_tuner(Toy(), learned=nn.ParameterDict({"mix": torch.zeros(2, 3), "more": torch.zeros(5)}))
    with pytest.raises(ValueError, match=r"mix is \(3, 3\) in the tune and \(2, 3\) here"):
        other.load_state_dict(state)
    other = make_tuner(Toy(), learned=nn.ParameterDict({"mix": torch.zeros(3, 3), "more": torch.zeros(5)}))
    with pytest.raises(ValueError, match=r"more is absent in the tune and \(5,\) here"):
        other.load_state_dict(state)
    other = make_tuner(Toy(), learned=nn.ParameterDict({"mix": torch.zeros(3, 3)}))
    with pytest.raises(ValueError, match=r"shift is \(3, 1, 1\) in the tune and absent here"):
        other.load_state_dict(state)


@pytest.mark.parametrize("steps", [2, 1])
def test_a_state_without_steps_left_is_refused(steps: int) -> None:
    tuner = make_tuner(Toy())
    take(tuner, 2)
    with pytest.raises(ValueError, match=rf"resume has 2 steps done and steps is {steps}, .*Set steps higher"):
        make_tuner(Toy(), SETTINGS.changed(steps=steps)).load_state_dict(tuner.state_dict())


@pytest.mark.parametrize(
    ("text", "steps", "expected"),
    [
        ("", 200, ()),
        (" , ,", 200, ()),
        ("25%, 50%, 75%", 200, (50, 100, 150)),
        ("25%, 50%, 75%", 3, (1, 2)),
        ("25%, 50%, 75%", 1, ()),
        ("0.1%", 500, (1,)),
        ("99.9%", 500, ()),
        ("200,100", 500, (100, 200)),
        ("100, 20%, 100 ,100", 500, (100,)),
        ("499", 500, (499,)),
    ],
)
def test_snapshots_are_read_as_a_user_writes_them(text: str, steps: int, expected: tuple[int, ...]) -> None:
    assert read_steps(text, steps) == expected


@pytest.mark.parametrize("entry", ["0", "0%", "500", "501", "-3", "nan", "inf", "100%", "110%"])
def test_snapshots_outside_the_tuning_are_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=f"'{entry}', which is not inside the tuning of 500 steps"):
        read_steps(f"10, {entry}", 500)


@pytest.mark.parametrize("entry", ["abc", "%", "10 20", "5%%"])
def test_snapshots_that_are_no_numbers_are_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=f"'{entry}'. Write comma-separated steps or percentages"):
        read_steps(f"{entry}, 10", 500)


def test_snapshots_are_limited() -> None:
    text = ", ".join(map(str, range(1, 34)))
    assert len(read_steps(text.removesuffix(", 33"), 500)) == 32
    with pytest.raises(ValueError, match="snapshots has 33 entries, each as large as the tune. Give 32 or fewer"):
        read_steps(text, 500)
    with pytest.raises(ValueError, match="snapshots has 1000000 letters"):
        read_steps("1," * 500_000, 500)


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("losses", None, "its state lacks losses"),
        ("rises", None, "its state lacks rises"),
        ("losses", lambda value: value[:1], "its state has losses of torch.float64 and the shape .1,."),
        ("generator", lambda value: value[:-8], "its state has no generator"),
        ("generator", lambda value: 255 - value, "its state has no generator"),
        ("generator", lambda value: value.float(), "its state has generator of torch.float32"),
        ("scaler.scale:number", lambda _: torch.ones(2), "its state has 2 numbers for scaler.scale"),
    ],
)
def test_a_file_whose_state_is_damaged_is_refused_by_name(key: str, change, words: str, tmp_path: Path) -> None:
    tuner = make_tuner(Toy())
    take(tuner, 2)
    state = tuner.state_dict()
    changed = {**state, key: change(state.get(key))} if change else {k: v for k, v in state.items() if k != key}
    info = {"spatial": None, "spatial_strength": 1, "temporal": None, "temporal_strength": 1, "loss": [0.5, 0.4]}
    save_tune(Tune({"a.diff": torch.zeros(2)}, info, state=changed), tmp_path / "a.safetensors", with_state=True)
    with pytest.raises(ValueError, match=rf"^a\.safetensors is damaged: {words}.* Save the tune again\."):
        load_tune(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state | {"optimizer.0.exp_avg": torch.zeros(2)}, "optimizer.0.exp_avg .* fits no parameter"),
        (lambda state: state | {"optimizer.x.exp_avg": torch.zeros(2)}, "optimizer.x.exp_avg .* fits no parameter"),
        (lambda state: state | {"optimizer.9.step": torch.tensor(2.0)}, "optimizer.9.step .* fits no parameter"),
        (lambda state: {k: v for k, v in state.items() if k != "optimizer.0.exp_avg_sq"}, "lacks a part of AdamW"),
    ],
)
def test_a_state_of_another_optimiser_is_refused(change, words: str) -> None:
    tuner = make_tuner(Toy())
    take(tuner, 2)
    with pytest.raises(ValueError, match=f"^resume is damaged: .*{words}"):
        make_tuner(Toy()).load_state_dict(change(tuner.state_dict()))


def lack(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return a change of a state that takes a part away."""
    return lambda state: {key: value for key, value in state.items() if key != name}


def shorten(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Return a change of a state that takes the last numbers of a part away."""
    return lambda state: state | {name: state[name][:-1]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *((shorten(f"optimizer.1.{name}"), rf"optimizer\.1\.{name} .* fits no parameter") for name in IN_BYTES),
        *((lack(f"optimizer.1.{name}"), "lacks a part of AdamW 8-bit's") for name in IN_BYTES),
        (shorten("optimizer.0.state2"), r"optimizer\.0\.state2 .* fits no parameter"),
        (lack("optimizer.0.state1"), "lacks a part of AdamW 8-bit's"),
        (lack("optimizer.0.step:number"), "lacks a part of AdamW 8-bit's"),
        (lambda state: state | {"optimizer.0.qmap1": torch.zeros(256)}, r"optimizer\.0\.qmap1 .* fits no parameter"),
    ],
)
def test_a_damaged_state_in_8_bits_is_refused(change, words: str) -> None:
    def make() -> Tuner:
        given = {"x_0": draw_clip(size=IN_8_BITS)}
        return make_tuner(Toy(4, IN_8_BITS), SETTINGS.changed(optimizer="AdamW 8-bit"), **given)

    tuner = make()
    take(tuner, 2)
    state = tuner.state_dict()
    make().load_state_dict(state)
    with pytest.raises(ValueError, match=f"^resume is damaged: .*{words}"):
        make().load_state_dict(change(state))
