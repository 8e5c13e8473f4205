"""Time of one guided UNet call of clip models against the model that takes each frame for itself."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import torch
from comfy.model_management import unload_all_models
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..modules.clip_model.host.attach import attach, inflate
from ..modules.clip_model.methods import EI2, FULL, TUNE_A_VIDEO_PRESET, method
from .document import judge
from .memory_count import without_values
from .performance import Job, Row, Setting, measure_jobs, read_setting
from .table import write_table
from .timing import ratios, time_rounds, write_milliseconds, write_spread
from .unets import guided_call, load, make_model

PER_FRAME = "per frame"
OURS = f"{EI2}, r = 4"
METHODS: Mapping[str, tuple[str, int]] = {
    OURS: (EI2, 4),
    f"{EI2}, r = 2": (EI2, 2),
    TUNE_A_VIDEO_PRESET: (TUNE_A_VIDEO_PRESET, 4),
    FULL: (FULL, 4),
}
LIMITS = {OURS: 1.15}
SIDES = {"one side": 1, "three sides": 3}  # of Attention Control: the source, and the edit with guidance
FULL_FRAMES, FULL_SIZE = 8, 64
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which torch's counter does not know


@dataclass(frozen=True)
class Case(Setting):
    """All models, turn by turn, and calls of other numbers of sides."""

    most_sides: int


def run_case(case: Case) -> Row:
    """Time one call of every model in one run."""
    base = inflate(make_model())
    models: dict[str, ModelPatcher] = {PER_FRAME: base}
    models |= {name: attach(base, *method(preset, r)) for name, (preset, r) in METHODS.items()}
    with torch.inference_mode():
        load(list(models.values()))
        calls = {name: guided_call(model, case.frames, case.size) for name, model in models.items()}
        calls |= {name: guided_call(base, case.frames, case.size, sides=sides) for name, sides in SIDES.items()}
        times = time_rounds(calls, case.rounds, torch.device(case.device))
    unload_all_models()
    return {"seconds": times, "dtype": str(base.model.get_dtype_inference()), "of_prompt": part_of_prompt()}


def operations_counter() -> FlopCounterMode:
    """Return torch's counter of operations, which knows the CPU's attention as well."""
    return FlopCounterMode(
        display=False, custom_mapping={CPU_ATTENTION: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    )


def part_of_prompt() -> float:
    """Return the part of a UNet call's operations that keys and values of the prompt are, at a usual size."""
    operations = 0

    def count(_linear: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        nonlocal operations
        operations += 2 * given[0].numel() * made.shape[-1]

    with torch.no_grad(), without_values():
        model = inflate(make_model(torch.bfloat16))
        load([model])
        for name, module in model.model.diffusion_model.named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                module.register_forward_hook(count)
        call = guided_call(model, FULL_FRAMES, FULL_SIZE)
        with operations_counter() as counted:
            call()
    unload_all_models()
    return operations / counted.get_total_flops()


def measure_sample(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = read_setting(options, cpu_size=16)
    case = Case(**asdict(setting), most_sides=max(SIDES.values()))
    measure_jobs("sample", options, [Job("sample", [case], run_case)], partial(make_section, setting))


def make_section(setting: Setting, rows: Sequence[Row]) -> str:
    """Return the section's text."""
    (row,), body = rows, []
    seconds_of = row["seconds"]
    apart = [one + two for one, two in zip(seconds_of["one side"], seconds_of[PER_FRAME], strict=True)]
    together = ratios({"apart": apart, "together": seconds_of["three sides"]}, "together", "apart")
    for name in (PER_FRAME, *METHODS):
        seconds = seconds_of[name]
        against = ratios(row["seconds"], name, PER_FRAME)
        cells = [write_milliseconds(seconds), write_spread(against)]
        body.append([name, *cells, *judge(median(against), LIMITS.get(name))])
    return "\n\n".join(
        [
            f"{setting}; {row['dtype']}, rounds: {setting.rounds}. One UNet call as classifier-free guidance makes it, "
            "two rows for each frame.",
            write_table(["model", "ms", f"× {PER_FRAME}", "target", "met"], body),
            "- Attention Control evaluates the source and both sides of the guided edit in one call where memory "
            f"allows. Each frame by itself, it takes {write_spread(together)} times as long as a call of the source "
            "and one of both sides.\n"
            "- Keys and values of the prompt are the same at every step. They are computed each time: at "
            f"{FULL_FRAMES} frames of {FULL_SIZE} × {FULL_SIZE} latents they are {row['of_prompt']:.1%} of a call's "
            "operations.",
        ]
    )
