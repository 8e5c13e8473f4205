"""Verdicts rest on differences within clips, and on clips as what is drawn."""

import pytest
import torch

from consistent_video.bench.verdict import (
    NOT_MEASURED,
    NOT_SUPPORTED,
    SUPPORTED,
    UNDECIDED,
    Claim,
    Part,
    clip_means,
    compare,
    reached,
    together,
)

CLIPS = 12


def values(shift: float, spread: float, seed: int = 0) -> dict[str, float]:
    noise = torch.randn(CLIPS, generator=torch.Generator().manual_seed(seed)).tolist()
    return {f"clip_{n}": n + shift + spread * noise[n] for n in range(CLIPS)}


def test_a_difference_in_every_clip_is_found_though_clips_differ_more() -> None:
    base = values(0, 0)  # clips lie eleven apart
    finding = compare(values(0.3, 0.1), base, 1)
    assert finding.verdict == SUPPORTED and finding.difference == pytest.approx(0.3, abs=0.1)
    assert compare(values(0.3, 0.1), base, -1).verdict == NOT_SUPPORTED
    assert compare(values(0.05, 1.0), base, 1).verdict == UNDECIDED


def test_no_difference_at_all_supports_nothing() -> None:
    assert compare(values(0, 0), values(0, 0), 1).verdict == UNDECIDED


def test_a_margin_is_what_may_be_lost() -> None:
    worse = values(-0.03, 0.001)
    assert compare(worse, values(0, 0), 1).verdict == NOT_SUPPORTED
    assert compare(worse, values(0, 0), 1, margin=0.05).verdict == SUPPORTED
    assert compare(worse, values(0, 0), 1, margin=0.01).verdict == NOT_SUPPORTED


def test_the_interval_is_that_of_the_mean() -> None:
    apart = torch.randn(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    finding = compare(
        {str(n): value for n, value in enumerate(apart.tolist())}, dict.fromkeys(map(str, range(40)), 0.0), 1
    )
    error = (apart.std(correction=0) / 40**0.5).item()
    assert finding.low == pytest.approx(apart.mean().item() - 1.96 * error, abs=0.15 * error)
    assert finding.high == pytest.approx(apart.mean().item() + 1.96 * error, abs=0.15 * error)


def test_few_clips_decide_nothing() -> None:
    better = {str(n): 1.0 + 0.01 * n for n in range(4)}
    assert compare(better, dict.fromkeys(better, 0.0), 1).verdict == UNDECIDED
    assert compare({}, better, 1).verdict == NOT_MEASURED


def test_only_clips_that_both_have_count() -> None:
    better = {**values(1, 0), "only here": 1000.0}
    finding = compare(better, values(0, 0), 1)
    assert finding.clips == CLIPS and finding.difference == pytest.approx(1)


def test_seeds_of_a_clip_are_one_clip() -> None:
    rows = [{"clip": "a", "x": 1.0}, {"clip": "a", "x": 3.0}, {"clip": "b", "x": None}, {"clip": "c", "x": 5.0}]
    assert clip_means(rows, "x") == {"a": 2.0, "c": 5.0}
    many = [row for _ in range(50) for row in rows]
    assert compare(clip_means(many, "x"), {"a": 0.0, "c": 0.0}, 1).clips == 2


def test_a_claim_needs_all_of_its_parts() -> None:
    assert together([SUPPORTED, SUPPORTED]) == SUPPORTED
    assert together([SUPPORTED, UNDECIDED]) == UNDECIDED
    assert together([UNDECIDED, NOT_SUPPORTED]) == NOT_SUPPORTED
    rows = {
        "new": [{"clip": str(n), "seed": 0, "flicker": 1.0 + 0.01 * n, "texture": 0.5} for n in range(8)],
        "old": [{"clip": str(n), "seed": 0, "flicker": 2.0 + 0.02 * n, "texture": 1.0} for n in range(8)],
    }
    lower, kept = Part("new", "old", "flicker", -1), Part("new", "old", "texture", 1, 0.05)
    assert Claim("less flicker", (lower,)).judge(rows)[0] == SUPPORTED
    verdict, findings = Claim("less flicker, as much texture", (lower, kept)).judge(rows)
    assert verdict == NOT_SUPPORTED
    assert [finding.verdict for _, finding in findings] == [SUPPORTED, NOT_SUPPORTED]
    missing = Part("new", "missing", "flicker", -1)
    assert Claim("unknown", (missing, missing)).judge(rows)[0] == NOT_MEASURED
    assert Claim("known in part", (lower, missing)).judge(rows)[0] == UNDECIDED
    assert Claim("known in part", (kept, missing)).judge(rows)[0] == NOT_SUPPORTED


def test_a_claim_is_judged_on_the_seeds_that_both_methods_have() -> None:
    """One method is measured with a further seed, whose clips it finds hard: that says nothing of the other."""
    once = [{"clip": str(n), "seed": 0, "flicker": 1.0 + 0.01 * n} for n in range(8)]
    again = [{"clip": str(n), "seed": 1, "flicker": 3.0} for n in range(8)]
    rows = {"new": once + again, "old": [{**row, "flicker": row["flicker"] + 0.5} for row in once]}
    verdict, ((_, finding),) = Claim("less flicker", (Part("new", "old", "flicker", -1),)).judge(rows)
    assert verdict == SUPPORTED and finding.difference == pytest.approx(0.5) and finding.clips == 8


@pytest.mark.parametrize(
    ("target", "sign", "expected"), [(7.0, -1, 4.0), (9.0, -1, 0.0), (4.5, -1, 9.0), (2.0, -1, None), (8.5, 1, 0.0)]
)
def test_a_target_is_reached_where_the_line_between_two_points_meets_it(
    target: float, sign: int, expected: float | None
) -> None:
    assert reached({0: 9.0, 8: 5.0, 10: 4.0, 12: 6.0}, target, sign) == expected


def test_a_figure_that_must_rise_is_reached_from_below() -> None:
    assert reached({0: 0.0, 10: 0.5, 20: 1.0}, 0.75, 1) == 15.0
