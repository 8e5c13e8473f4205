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
        ValueError: it is too long, nested too deeply, or has half of a character, a lone surrogate.
    """
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"{name} has {len(text)} letters. Give {LONGEST_PROMPT} or fewer.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} has half of a character (a lone surrogate). Type the text again.")
    try:
        return clip.tokenize(text)
    except RecursionError as error:
        raise ValueError(f"{name} nests parentheses too deeply. Take some out.") from error
