"""What pyproject.toml calls the pack and its version."""

import re

from .environment import ROOT

TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def read_value(key: str, text: str = TEXT) -> str:
    """Return the text that stands on a key's line in pyproject.toml, "" where it has none."""
    found = re.search(rf'^"?{re.escape(key)}"? = "(.*)"$', text, re.MULTILINE)
    return found[1] if found else ""


# The registry's id of the pack, after which it names the pack's folder in custom_nodes too.
PACK, VERSION = read_value("name"), read_value("version")
