"""Time and memory of attention across frames, against SDPA of as many pairs of query and key."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from ..modules.clip_model.attention import Grid, scaled_dot_product
from ..modules.clip_model.attention.full import full_attention
from ..modules.clip_model.attention.sparse_causal import sparse_causal_attention
from ..modules.clip_model.attention.spatial import SpatialConfig, attend_across_frames, copied_keys
from .baselines import naive_fine_coarse
from .document import judge
from .memory_count import MIB, extra_memory
from .performance import Job, Row, Setting, half_on_gpu, measure_jobs, read_setting
from .table import write_table
from .timing import Call, ratios, time_rounds, with_gradients, write_milliseconds, write_spread

DIM, HEADS = 320, 8  # of SD1.5's largest feature map
RS = (2, 4)
PER_FRAME = "per frame"
BOUND, NAIVE, PROJECTED = "SDPA of as many pairs", "naive FFAM", "FFAM with projections"
LIMITS = {f"FFAM, r = {r}": 1.1 for r in RS}
PASSES = {"forward": 1.0, "forward and backward": 3.5}  # with the matrix products of a forward, 2 against 7


@dataclass(frozen=True)
class Case(Setting):
    """A pass over all kinds of attention, in one run."""

    passes: str


@dataclass(frozen=True)
class Contender:
    """One kind of attention: its inputs, the number of keys of a query (0 = with projections), its reference."""

    attend: Callable[..., Tensor]
    inputs: list[Tensor]
    keys: int = 0
    reference: str = PER_FRAME

    def call(self, backward: bool) -> Call:
        """Return a call, forward alone or with the gradients of all inputs."""
        if not backward:
            return torch.no_grad()(partial(self.attend, *self.inputs))
        inputs = [x.detach().requires_grad_() for x in self.inputs]
        return with_gradients(partial(self.attend, *inputs), inputs)


def make_contenders(case: Case) -> Iterator[tuple[str, Contender]]:
    """Yield every kind of attention on the same tokens, by name."""
    f, size, tokens = case.frames, case.size, case.size**2
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.device, half_on_gpu(case))

    z, weights = draw(f, tokens, DIM), [draw(DIM, DIM) / DIM**0.5 for _ in range(3)]
    q, k, v = (F.linear(z, weight) for weight in weights)
    head = DIM // HEADS
    yield PER_FRAME, Contender(partial(scaled_dot_product, heads=HEADS), [q, k, v], tokens)
    yield "sparse-causal", Contender(partial(sparse_causal_attention, heads=HEADS, num_frames=f), [q, k, v], 2 * tokens)
    yield "full", Contender(partial(full_attention, heads=HEADS, num_frames=f), [q, k, v], f * tokens)
    for r in RS:
        config, grid = SpatialConfig(r=r), Grid(HEADS, f, size, size)
        keys = copied_keys(config, f, size, size)
        rebuild = case.passes != "forward"  # as the tuning does it
        ready = [draw(f, HEADS, n, head) for n in (tokens, keys, keys)]
        yield f"{BOUND}, r = {r}", Contender(F.scaled_dot_product_attention, ready, keys)
        ours = partial(attend_across_frames, config, grid=grid, attend=scaled_dot_product, rebuild=rebuild)
        yield f"FFAM, r = {r}", Contender(ours, [q, k, v], keys, f"{BOUND}, r = {r}")
        naive = partial(naive_fine_coarse, heads=HEADS, height=size, width=size, r=r)
        yield f"{NAIVE}, r = {r}", Contender(naive, [z, *weights])
        yield f"{PROJECTED}, r = {r}", Contender(partial(project, ours), [z, *weights], 0, f"{NAIVE}, r = {r}")


def project(attend: Callable[..., Tensor], z: Tensor, *weights: Tensor) -> Tensor:
    """Project tokens to queries, keys and values, once each, and attend."""
    return attend(*(F.linear(z, weight) for weight in weights))


def run_case(case: Case) -> Row:
    """Time all kinds of attention in one run, and measure the memory of each."""
    device, backward = torch.device(case.device), case.passes != "forward"
    contenders = dict(make_contenders(case))
    side = 8192 if case.device == "cuda" else 2048
    matrix = torch.randn(side, side, device=device, dtype=half_on_gpu(case))
    calls = {name: contender.call(backward) for name, contender in contenders.items()}
    times = time_rounds({**calls, "matrix product": partial(torch.matmul, matrix, matrix)}, case.rounds, device)
    rate = 2.0 * side**3 / median(times.pop("matrix product"))
    queries = case.frames * case.size**2
    flops = {name: 4 * PASSES[case.passes] * queries * one.keys * DIM for name, one in contenders.items()}
    return {
        "seconds": times,
        "reference": {name: contender.reference for name, contender in contenders.items()},
        "operations_per_second": rate,
        "part_of_rate": {name: flops[name] / rate / median(times[name]) for name in contenders if flops[name]},
        "extra_bytes": {name: extra_memory(call, device) for name, call in calls.items()},
    }


def measure_attention(options: argparse.Namespace) -> None:
    """Measure what is not measured yet, and write the section."""
    setting = read_setting(options, cpu_size=32)
    cases = [Case(**asdict(setting), passes=passes) for passes in PASSES]
    measure_jobs("attention", options, [Job("attention", cases, run_case)], partial(make_section, setting))


def make_section(setting: Setting, rows: list[Row]) -> str:
    """Return the section's text."""
    body = [line for row in rows for line in make_lines(row)]
    headings = ["attention", "pass", "ms", "× per frame", "× its reference", "reference", "of the matmul rate"]
    rate = rows[0]["operations_per_second"] / 1e12
    return "\n\n".join(
        [
            f"{setting}; {half_on_gpu(setting)}, rounds: {setting.rounds}. {DIM} channels in {HEADS} heads. A large "
            f"matrix product ran at {rate:.3g} TFLOP/s; *of the matmul rate*: the time that the attention's own matrix "
            "products would take at that rate, as a part of its time. *MiB*: held at most besides the inputs.",
            write_table([*headings, "MiB", "target", "met"], body),
            f"- *{BOUND}*: that number of keys and values, concatenated beforehand, in the layout of the kernel.\n"
            f"- *{NAIVE}*: a loop over the frames that projects keys and values of all it sees, as EI² (10) reads; "
            f"*{PROJECTED}*: ours from the same tokens on.",
        ]
    )


def make_lines(row: Row) -> Iterator[list[str]]:
    """Yield the lines of a pass."""
    for name, reference in row["reference"].items():
        against = ratios(row["seconds"], name, reference)
        part = row["part_of_rate"].get(name)
        yield [
            name,
            row["passes"],
            write_milliseconds(row["seconds"][name]),
            write_spread(ratios(row["seconds"], name, PER_FRAME)),
            "" if reference == PER_FRAME else write_spread(against),
            "" if reference == PER_FRAME else reference,
            "" if part is None else f"{part:.0%}",
            f"{row['extra_bytes'][name] / MIB:.3g}",
            *judge(median(against), LIMITS.get(name)),
        ]
