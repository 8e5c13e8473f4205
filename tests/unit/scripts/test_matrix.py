"""What is said of a ComfyUI after its tests ran."""

import json
import sys

from consistent_video.scripts.environment import ROOT
from consistent_video.scripts.matrix import HOSTS, NEWEST, PYTHONS, describe, find_python, make_table

PASSED = (0, "....\n4 passed in 3.00s\n")
REFUSED = """
            f"Consistent Video needs ComfyUI 9 or newer; this one lacks {', '.join(missing)}. Update ComfyUI."
E   ImportError: Consistent Video needs ComfyUI 9 or newer; this one lacks a.b:C.d(e), handlers for F. Update ComfyUI.
2 failed, 2 passed in 3.00s
"""


def test_a_host_works_where_everything_passed() -> None:
    assert describe({"contract tests": PASSED, "main graph": PASSED}) == "works"


def test_a_refusal_names_what_is_missing() -> None:
    said = describe({"contract tests": (1, REFUSED), "main graph": (1, "1 error in 4.00s\n")})
    assert said == "refused at load: no `C.d(e)`, `handlers for F`"


def test_failures_are_counted() -> None:
    outcomes = {"contract tests": (1, "F\n2 failed, 3 passed, 1 error in 3.00s\n"), "main graph": (4, "no conftest\n")}
    assert describe(outcomes) == "contract tests: 2 failed, 1 error; main graph: do not start"


def test_the_table_says_what_was_not_tried() -> None:
    *hosts, row, newest = make_table({"0.30.0": {"3.11": "works"}}).splitlines()
    cells = ["works" if version == "3.11" else "not tried" for version in PYTHONS]
    assert row == f"| 0.30.0 | {' | '.join(cells)} |" and newest.startswith(f"| {NEWEST} | not tried")
    assert len(hosts) == len(HOSTS) and "works" not in "".join(hosts)


def test_a_python_that_is_not_there_is_not_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_python("3.12") is None
    shim = tmp_path / "python3.12"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    assert find_python("3.12") is None
    shim.unlink()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / f"python{version}").symlink_to(sys.executable)
    assert find_python(version) == str(tmp_path / f"python{version}")


def test_the_page_holds_the_table_of_the_results() -> None:
    results = json.loads((ROOT / "docs" / "hosts.json").read_text(encoding="utf-8"))
    assert make_table(results) in (ROOT / "docs" / "hosts.md").read_text(encoding="utf-8")
