"""What workflows are described with: nodes in columns, and parts of a workflow that are one node."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .project import PACK
from .workflow import Json, default_value


def inputs_of(info: Json) -> Iterator[tuple[str, str | list, Json]]:
    """Yield (name, type, options) of a node type's inputs in the editor's order."""
    for section in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(section, {}).items():
            yield name, kind, rest[0] if rest else {}


def socket_type(kind: str | list) -> str:
    """Return an input's type as sockets name it."""
    return "COMBO" if isinstance(kind, list) else kind


class Node:
    """A node of a workflow.

    Args:
        title: unique in its workflow.
        kind: node type.
        inputs: by name. A socket takes the title of the node that feeds it by its first output of the socket's type;
            (title, name of the output) is a link to that very output, also into a widget; all else is a widget's value.
    """

    def __init__(self, title: str, kind: str, /, **inputs: Any):
        self.title, self.kind, self.inputs = title, kind, inputs

    def but(self, **inputs: Any) -> "Node":
        """Return the node with other or further inputs."""
        return Node(self.title, self.kind, **{**self.inputs, **inputs})


@dataclass(frozen=True)
class Group:
    """The head of a titled column of nodes, with an optional note above it."""

    title: str
    note: str = ""


Workflow = Sequence[Group | Node]  # columns, each a head and its nodes
Output = tuple[str, str]  # title of a node, and the name of its output


@dataclass(frozen=True)
class Subgraph:
    """A part of a workflow that the editor shows as one node.

    Attributes:
        name: of that node.
        description: what it does.
        parts: its columns. Their nodes may be fed by nodes that are not among them.
        inputs: by name, what feeds it: title of such a node, and the type of the output.
        dials: by name, the widgets that the one node has: title of a node of `parts`, and the name of the input.
        outputs: by name.
    """

    name: str
    description: str
    parts: Workflow
    inputs: dict[str, tuple[str, str]]
    dials: dict[str, tuple[str, str]]
    outputs: dict[str, Output]

    @property
    def id(self) -> str:
        """The type of its node in workflows."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PACK}/{self.name}"))

    @property
    def nodes(self) -> dict[str, Node]:
        """Its nodes by title."""
        return {part.title: part for part in self.parts if isinstance(part, Node)}

    def describe(self, object_info: Json) -> Json:
        """Return the description that the server would give of it as a node type."""
        inputs: Json = {name: [kind, {}] for name, (_, kind) in self.inputs.items()}
        for dial, (title, name) in self.dials.items():
            node = self.nodes[title]
            kind, options = next((kind, more) for key, kind, more in inputs_of(object_info[node.kind]) if key == name)
            inputs[dial] = [kind, {**options, "default": node.inputs.get(name, default_value(kind, options))}]
        kinds = []
        for title, name in self.outputs.values():
            info = object_info[self.nodes[title].kind]
            kinds.append(info["output"][info["output_name"].index(name)])
        module = f"custom_nodes.{PACK}"
        return {
            "name": self.id,
            "python_module": module,
            "input": {"required": inputs},
            "output": kinds,
            "output_name": [*self.outputs],
        }


class Packed(Node):
    """A subgraph as a node of a workflow."""

    def __init__(self, subgraph: Subgraph, **inputs: Any):
        super().__init__(subgraph.name, subgraph.id, **inputs)
        self.subgraph = subgraph
