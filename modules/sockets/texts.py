"""Prompts as nodes take them."""

from typing import Any

LONGEST_PROMPT = 2000  # letters; 77 tokens never have as many


def tokenize(clip: Any, text: str, name: str) -> dict[str, list]:
    """Return the tokens of a prompt by the host's text encoder, in pieces by the encoder's parts.

    Args:
        clip: the text encoder.
        text: the prompt.
        name: of the input.

    Raises:
        ValueError: it is too long, or nested too deeply.
    """
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"{name} has {len(text)} letters. Give {LONGEST_PROMPT} or fewer.")
    try:
        return clip.tokenize(text)
    except RecursionError as error:
        raise ValueError(f"{name} nests parentheses too deeply. Take some out.") from error
