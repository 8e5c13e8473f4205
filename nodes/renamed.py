"""Earlier ids of nodes and inputs, which the host replaces in old workflows.

It looks only at nodes that it does not know: a node of which an input is renamed gets a new id too. A workflow is
mended by the editor, where the user says so. A prompt (API form) is mended by the server, which refuses one that leaves
out an input of the earlier node, as the editor does with sockets that nothing feeds: such a prompt must be saved anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from comfy_api.latest import ComfyAPI, io

CONTROL = "control_after_generate"  # the editor's own widget behind a seed, among the values of a saved node


@dataclass(frozen=True)
class Renamed:
    """A node under its earlier id.

    Args:
        old_id: node id in old workflows.
        node: what took its place, with the same outputs first.
        inputs: today's id of every input of the earlier node, by its earlier id and in its earlier order, required
            ones first. What the node has beside them gets its default.
    """

    old_id: str
    node: type[io.ComfyNode]
    inputs: Mapping[str, str]

    def replacement(self) -> io.NodeReplace:
        """Return the host's form."""
        schema = self.node.GET_SCHEMA()
        today = {entry.id: entry for entry in schema.inputs}
        widgets = []
        for old, new in self.inputs.items():
            if isinstance(today[new], io.WidgetInput):
                widgets += [old, CONTROL] if getattr(today[new], CONTROL, None) else [old]
        kept = [{"new_id": new, "old_id": old} for old, new in self.inputs.items()]
        added = [entry for key, entry in today.items() if key not in self.inputs.values()]
        defaults = [
            {"new_id": entry.id, "set_value": entry.default}
            for entry in added
            if isinstance(entry, io.WidgetInput) and entry.default is not None
        ]
        outputs = [{"old_idx": index, "new_idx": index} for index in range(len(schema.outputs))]
        return io.NodeReplace(schema.node_id, self.old_id, widgets, kept + defaults, outputs)


RENAMED: tuple[Renamed, ...] = ()


async def register_renamed() -> None:
    """Tell the host of every entry."""
    for entry in RENAMED:
        await ComfyAPI().node_replacement.register(entry.replacement())
