"""Prompts that no text encoder takes are refused before it sees them."""

import pytest

from consistent_video.modules.sockets.texts import LONGEST_PROMPT, tokenize


class Encoder:
    """Nests as deeply as its text has parentheses."""

    def tokenize(self, text: str) -> dict[str, list]:
        if text.startswith("("):
            raise RecursionError
        return {"l": [text]}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\ud800", "half of a character"),
        ("a swan \udfff", "half of a character"),
        ("a" * (LONGEST_PROMPT + 1), "letters. Give"),
        ("(((", "nests parentheses"),
    ],
)
def test_a_text_that_cannot_be_encoded_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=f"source_text .*{fault}"):
        tokenize(Encoder(), text, "source_text")


def test_any_other_text_is_encoded_as_it_is() -> None:
    for text in ("", "a swan", "天鹅 🦢", "a" * LONGEST_PROMPT):
        assert tokenize(Encoder(), text, "source_text") == {"l": [text]}
