"""What rows say of a claim: differences within each clip, their spread by resampling clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

SUPPORTED, NOT_SUPPORTED, UNDECIDED, NOT_MEASURED = "supported", "not supported", "undecided", "not measured"
DRAWS, LEVEL, LEAST_CLIPS = 10_000, 0.95, 8  # fewer clips make the interval too narrow
Values = Mapping[str, float]


@dataclass(frozen=True)
class Finding:
    """How much better one method is than another in a figure.

    Attributes:
        difference: mean over clips, positive where the claim has it.
        low, high: bounds of the interval of LEVEL.
        clips: how many.
    """

    difference: float
    low: float
    high: float
    clips: int

    @property
    def verdict(self) -> str:
        """Supported where the whole interval is above zero, not supported where it is below."""
        if not self.clips:
            return NOT_MEASURED
        if self.clips < LEAST_CLIPS or self.low <= 0 <= self.high:
            return UNDECIDED
        return SUPPORTED if self.low > 0 else NOT_SUPPORTED

    def __str__(self) -> str:
        return f"{self.difference:+.3g} ({self.low:+.3g} to {self.high:+.3g}, {self.clips} clips)"


def clip_means(rows: Sequence[Mapping], key: str) -> dict[str, float]:
    """Return the mean of a figure over the seeds of each clip; what is not known is left out."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row[key] is not None:
            values.setdefault(row["clip"], []).append(row[key])
    return {clip: fmean(known) for clip, known in values.items()}


def common_rows(better: Sequence[Mapping], worse: Sequence[Mapping], key: str) -> list[list[Mapping]]:
    """Return the rows of two methods on the clips and seeds where the figure is known of both."""
    places = [{(row["clip"], row["seed"]) for row in rows if row[key] is not None} for rows in (better, worse)]
    shared = places[0] & places[1]
    return [[row for row in rows if (row["clip"], row["seed"]) in shared] for rows in (better, worse)]


def compare(better: Values, worse: Values, sign: int, margin: float = 0.0) -> Finding:
    """Return how much better one method is than another, by a bootstrap over the clips that both have.

    Clips are what is resampled, not rows: seeds and frames of one clip are not independent evidence.

    """
    clips = sorted(set(better) & set(worse))
    if not clips:
        return Finding(0.0, 0.0, 0.0, 0)
    apart = torch.tensor([sign * (better[clip] - worse[clip]) + margin for clip in clips], dtype=torch.float64)
    drawn = torch.randint(len(clips), (DRAWS, len(clips)), generator=torch.Generator().manual_seed(0))
    means = apart[drawn].mean(dim=1)
    low, high = (means.quantile(share).item() for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Finding(apart.mean().item(), low, high, len(clips))


def reached(values: Mapping[int, float], target: float, sign: int) -> float | None:
    """Return after how many steps a figure is first as good as a target, linear between steps; None = never.

    Args:
        values: by the number of steps done, ascending.
        target: of the figure.
        sign: 1 where higher is better, -1 where lower is.
    """
    before = None
    for done, value in values.items():
        lead = sign * (value - target)
        if lead >= 0:
            return float(done) if before is None else before[0] + (done - before[0]) * before[1] / (before[1] - lead)
        before = done, lead
    return None


def together(verdicts: Sequence[str]) -> str:
    """Return the verdict on a claim of several parts: all must be supported, and one that is not refutes it.

    It is not measured where none of its parts is.
    """
    if NOT_SUPPORTED in verdicts:
        return NOT_SUPPORTED
    return verdicts[0] if len(set(verdicts)) == 1 else UNDECIDED


@dataclass(frozen=True)
class Part:
    """One comparison of a claim.

    Attributes:
        better, worse: names of methods.
        key: of the figure.
        sign: 1 where higher is better, -1 where lower is.
        margin: what may be lost, see `compare`.
    """

    better: str
    worse: str
    key: str
    sign: int
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, or ours: its text and what it says of the rows."""

    text: str
    parts: tuple[Part, ...]

    def judge(self, rows: Mapping[str, Sequence[Mapping]]) -> tuple[str, list[tuple[Part, Finding]]]:
        """Return the verdict and what it rests on, from the rows of each method."""
        findings = []
        for part in self.parts:
            both = common_rows(rows.get(part.better, ()), rows.get(part.worse, ()), part.key)
            better, worse = (clip_means(given, part.key) for given in both)
            findings.append((part, compare(better, worse, part.sign, part.margin)))
        return together([finding.verdict for _, finding in findings]), findings
