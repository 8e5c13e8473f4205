"""Prefixes of files: what every system takes, and nothing that leads elsewhere."""

from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistent_video.modules.files.names import LONGEST, check_prefix


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("../swan", "'..' leads outside"),
        ("x/../cache/mine", "'..' leads outside"),
        ("a\\..\\mine", "'..' leads outside"),
        ("/tmp/swan", "begins at the root"),
        ("C:\\swan", "has one of < > : "),
        ("a\0b", "cannot be seen"),
        ("a\nb", "cannot be seen"),
        ("swan\ud800", "cannot be seen"),
        ("\u202eswan", "cannot be seen"),
        ("圆" * 100, f"is longer than {LONGEST} bytes"),
        ("a/" * 600 + "b", "is longer than 1000 bytes"),
        ("nul.mine", "is a device's name in Windows"),
        ("clips/CON/swan", "'CON' is a device's name in Windows"),
        ("com¹", "is a device's name in Windows"),
        ("clips./swan", "'clips.' ends with a dot or a space"),
        ("swan ", "ends with a dot or a space"),
        ("clips/", "names no file"),
    ],
)
def test_what_is_no_name_is_refused_in_a_line(prefix: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_prefix(prefix)
    said = str(caught.value)
    assert said.startswith("filename_prefix ") and words in said and len(said) < 400 and said.isprintable()


@pytest.mark.parametrize(
    ("prefix", "clean"),
    [("swan", "swan"), ("./clips//swan", "clips/swan"), ("clips\\a b", "clips/a b"), ("圆/%year%", "圆/%year%"),
     ("x" * LONGEST, "x" * LONGEST), ("console/comet.1", "console/comet.1")],
)  # fmt: skip
def test_the_rest_passes(prefix: str, clean: str) -> None:
    assert check_prefix(prefix) == clean


@given(st.text(st.characters(codec=None) | st.sampled_from("./\\.:\0 "), max_size=12))
def test_what_passes_stays_below_its_folder_in_every_system(prefix: str) -> None:
    try:
        clean = check_prefix(prefix)
    except ValueError as error:
        assert str(error).startswith("filename_prefix")
        return
    clean.encode()
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(clean)
        assert not path.is_absolute() and not path.drive and ".." not in path.parts and path.name
