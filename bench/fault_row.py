"""What became of inputs that should not be: the rows of docs/reliability.md."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """Faults of one kind that were tried.

    Attributes:
        fault: what was done.
        tried: how often.
        seen: what the user sees, of one of them.
        failed: what went otherwise than it should, empty where nothing did.
        curve: minutes, resident MiB and tensors of a server over a long run, where it was one.
    """

    fault: str
    tried: int
    seen: str
    failed: tuple[str, ...] = ()
    curve: tuple[tuple[float, float, int], ...] = ()
