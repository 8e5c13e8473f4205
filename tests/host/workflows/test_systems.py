"""The papers' systems: each runs as a workflow, on the demo model, and the tables name no other."""

from pathlib import Path

import pytest

from consistent_video.bench.papers import TABLES
from consistent_video.scripts.clips import read_clip
from consistent_video.scripts.descriptions import HAVE_THEIR_OWN, PRESETS
from consistent_video.scripts.host import Host
from consistent_video.scripts.systems import COMPARED, SYSTEMS
from consistent_video.scripts.workflow import find_node

from .graphs import PATIENCE, load_workflow, saved_frames

OWN_QUICK = {"stem_inversion": {"Invert.bases": 8}}


def test_every_system_is_a_workflow_and_every_table_is_of_systems() -> None:
    assert len(PRESETS) + len(HAVE_THEIR_OWN) == len(SYSTEMS)
    named = {name for table in TABLES for name in table.systems}
    assert named <= COMPARED.keys() and SYSTEMS.keys() <= named
    assert all(table.published.keys() <= set(table.systems) for table in TABLES)


def sources_of(prompt: dict, node: str) -> set[str]:
    """Return the nodes that a node of a prompt depends on, itself too."""
    links = [value[0] for value in prompt[node]["inputs"].values() if isinstance(value, list)]
    return {node}.union(*(sources_of(prompt, link) for link in links))


@pytest.mark.parametrize("name", PRESETS)
def test_a_system_runs(host: Host, demo_clip: Path, name: str) -> None:
    given = OWN_QUICK.get(name, {})
    prompt = load_workflow(host, f"demo_{name}", 2, **given)
    run = host.run(prompt, patience=PATIENCE)
    titles = {key: node["_meta"]["title"] for key, node in prompt.items()}
    own = {"Tune", "Slices", "Null text", "Control", "Steer source", "Steer edit"} & set(titles.values())
    assert own and own <= {titles[key] for key in sources_of(prompt, find_node(prompt, "Edit"))}
    assert saved_frames(host, prompt, run, "Save edit").shape == read_clip(demo_clip)[0].shape
