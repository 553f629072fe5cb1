"""Saved workflows (the front end's own format) to prompts (what the server runs).

The front end saves a picture of the graph: nodes with positions, widget values as a bare list, links as numbers.
The server wants every node with its inputs by name. `to_prompt` does what the front end does when one presses Run,
including muted and bypassed nodes, reroutes, primitive nodes and subgraphs. What it cannot do the same way it refuses
with a `ValueError`, so that a prompt that comes out is the one the front end would have sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .widgets import (
    FOREIGN_NODES,
    control_widgets,
    default,
    has_upload_button,
    ordered_inputs,
    refuse_evaluated,
    socket_type,
    widget_type,
)

Prompt = dict[str, dict[str, Any]]

# Node modes, as saved.
MUTED, BYPASSED = 2, 4
# Nodes that exist in the front end only.
NOTES = {"Note", "MarkdownNote"}
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
# Id of a subgraph's own input side, where links from the outside arrive.
SUBGRAPH_INPUT = -10


def to_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> Prompt:
    """The prompt that the front end sends for a saved workflow.

    Args:
        workflow: a saved workflow (`nodes`, `links`, and `definitions` where it has subgraphs).
        object_info: the server's answer to `/object_info`: each node's inputs in order.

    Returns:
        `{node id: {"inputs": {name: value or [node id, output]}, "class_type": ..., "_meta": {"title": ...}}}`,
        nodes in the order in which the front end would run them.

    Raises:
        ValueError: no saved workflow, a node the server does not know, a link that leads nowhere or round in a loop,
            too many widget values for a node, or something that only the front end can evaluate.
    """
    if not isinstance(workflow.get("nodes"), list):
        raise ValueError("workflow has no list of nodes; it must be saved with Export, not with Export (API).")
    if workflow.get("extra", {}).get("groupNodes"):
        raise ValueError("workflow has group nodes, which are not supported; convert them to subgraphs.")
    definitions = {d["id"]: d for d in workflow.get("definitions", {}).get("subgraphs", [])}
    graph = _Graph(workflow, object_info, definitions)
    graph.apply_primitives()

    prompt: Prompt = {}
    for owner, node in graph.executable_nodes():
        inputs = dict(owner.widgets(node))
        for slot, socket in enumerate(owner.slots(node)):
            try:
                source = owner.resolve_input(node, slot)
            except RecursionError:
                where = f"Node {owner.path(node)}, input {socket['name']!r}"
                raise ValueError(f"{where}: the links form a loop that no node makes a value for.") from None
            if source is not None:
                inputs[socket["name"]] = source.as_input()
        definition = object_info[node["type"]]
        title = node.get("title") or definition["display_name"] or definition["name"]
        prompt[owner.path(node)] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}

    # A link to a muted node is dropped, so that the server reports the missing input by name.
    for entry in prompt.values():
        entry["inputs"] = {k: v for k, v in entry["inputs"].items() if not isinstance(v, list) or v[0] in prompt}
    return prompt


@dataclass(frozen=True)
class _Source:
    """Where an input gets its value: an output of a node, or a value written on a subgraph's outside."""

    path: str = ""
    output: int = 0
    value: Any = None

    def as_input(self) -> Any:
        return [self.path, self.output] if self.path else _wrap(self.value)


@dataclass
class _Graph:
    """The root graph or one instance of a subgraph (then with the node it is an instance of, and that node's graph)."""

    data: dict[str, Any]
    info: dict[str, Any]
    definitions: dict[str, Any]
    instance: dict[str, Any] | None = None
    parent: _Graph | None = None
    nodes: dict[Any, dict[str, Any]] = field(init=False)
    links: dict[Any, tuple[Any, int, Any]] = field(init=False)  # id -> origin node, origin slot, target node
    primitive_values: dict[tuple[Any, str], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = {node["id"]: node for node in self.data["nodes"]}
        self.links = dict(_link(link) for link in self.data.get("links", []))
        for node in self.nodes.values():
            kind = node["type"]
            if kind not in self.info and kind not in self.definitions and kind not in {*NOTES, REROUTE, PRIMITIVE}:
                raise ValueError(f"Node {node['id']} is a {kind!r}, which the server does not know.")

    def path(self, node: dict[str, Any]) -> str:
        own = str(node["id"])
        return f"{self.parent.path(self.instance)}:{own}" if self.parent and self.instance else own

    def executable_nodes(self) -> list[tuple[_Graph, dict[str, Any]]]:
        found: list[tuple[_Graph, dict[str, Any]]] = []
        for node in sorted(self.nodes.values(), key=lambda n: n.get("order", 0)):
            if node["type"] in self.definitions:
                found += self.inside(node).executable_nodes()
            elif node["type"] in self.info and node.get("mode", 0) not in (MUTED, BYPASSED):
                found.append((self, node))
        return found

    def inside(self, node: dict[str, Any]) -> _Graph:
        outer: _Graph | None = self
        while outer is not None and outer.instance is not None:
            if outer.instance["type"] == node["type"]:
                raise ValueError(f"Subgraph node {self.path(node)} contains itself.")
            outer = outer.parent
        return _Graph(self.definitions[node["type"]], self.info, self.definitions, instance=node, parent=self)

    # -- inputs by name --------------------------------------------------------------------------------------------

    def widgets(self, node: dict[str, Any]) -> dict[str, Any]:
        """Values of a node's widgets by name. Saved by position, with an extra value behind each seed."""
        if node["type"] in FOREIGN_NODES:
            raise ValueError(f"Node {self.path(node)} is a {node['type']}, which only the front end can read.")
        saved = node.get("widgets_values") or []
        if not isinstance(saved, list):
            raise ValueError(f"Node {self.path(node)} ({node['type']}) saves its widgets by name: not supported.")
        definition = self.info[node["type"]]
        specs = [(name, spec) for name, spec in ordered_inputs(definition) if widget_type(name, spec)]
        values: dict[str, Any] = {}
        position = 0
        for name, spec in specs:
            value = saved[position] if position < len(saved) else default(spec)
            value = self.primitive_values.get((node["id"], name), value)
            refuse_evaluated(f"Node {self.path(node)} ({node['type']}), {name}", name, value, spec)
            if position < len(saved) or value is not None:  # a list without choices has no value at all
                values[name] = _wrap(value)
            position += 1 + control_widgets(name, spec)
        position += any(has_upload_button(spec) for _, spec in specs)
        if len(saved) > position:
            raise ValueError(
                f"Node {self.path(node)} ({node['type']}) has {len(saved)} widget values; the server's node has "
                f"{position}. The workflow was saved with another version of this node."
            )
        return values

    def slots(self, node: dict[str, Any]) -> list[dict[str, Any]]:
        """A node's input sockets in full. Files leave out unused sockets of widgets; bypassing counts them."""
        saved = {slot["name"]: slot for slot in node.get("inputs") or []}
        if node["type"] not in self.info:
            return list(saved.values())
        inputs = ordered_inputs(self.info[node["type"]])
        inputs.sort(key=lambda item: bool(widget_type(*item)))
        full = [{"name": n, "type": socket_type(spec), "link": saved.pop(n, {}).get("link")} for n, spec in inputs]
        return full + list(saved.values())

    def apply_primitives(self) -> None:
        """A primitive node writes its value into the widgets it is linked to."""
        for node in self.nodes.values():
            if node["type"] != PRIMITIVE or not node.get("widgets_values"):
                continue
            if node.get("properties", {}).get("Run widget replace on values"):
                raise ValueError(f"Primitive node {node['id']} replaces text in its value: not supported.")
            links = {link for output in node.get("outputs") or [] for link in output.get("links") or []}
            for target in self.nodes.values():
                for slot in self.slots(target):
                    if slot.get("link") in links:
                        self.primitive_values[target["id"], slot["name"]] = node["widgets_values"][0]

    # -- links -----------------------------------------------------------------------------------------------------

    def resolve_input(self, node: dict[str, Any], slot: int, wanted: str | None = None) -> _Source | None:
        """Follow the link at an input to the node that really makes the value; None where nothing is connected."""
        socket = self.slots(node)[slot]
        if socket.get("link") is None:
            return None
        if socket["link"] not in self.links:
            raise ValueError(f"Node {self.path(node)}, input {socket['name']!r}: there is no link {socket['link']}.")
        origin, output, _ = self.links[socket["link"]]
        if self.parent and self.instance and origin == SUBGRAPH_INPUT:
            return self._resolve_outside(output)
        if origin not in self.nodes:
            raise ValueError(f"Node {self.path(node)}, input {socket['name']!r}: there is no node {origin}.")
        return self._resolve_output(self.nodes[origin], output, wanted or str(socket["type"]))

    def _resolve_outside(self, index: int) -> _Source | None:
        """From a subgraph's input side to what its node is connected to, or has written in its widget."""
        assert self.parent is not None
        assert self.instance is not None
        name = self.data["inputs"][index]["name"]
        sockets = self.parent.slots(self.instance)
        for slot, socket in enumerate(sockets):
            if socket["name"] == name and socket.get("link") is not None:
                return self.parent.resolve_input(self.instance, slot)
        promoted = self._promoted_values()
        return _Source(value=promoted[name]) if promoted.get(name) is not None else None

    def _promoted_values(self) -> dict[str, Any]:
        """Values of the widgets that a subgraph's node owns (listed as node -1; the rest belong to inner nodes)."""
        assert self.instance is not None
        values = self.instance.get("widgets_values") or []
        listed = self.instance.get("properties", {}).get("proxyWidgets")
        if listed is None:
            listed = [["-1", slot["name"]] for slot in self.instance.get("inputs") or [] if slot.get("widget")]
        return {name: value for (owner, name), value in zip(listed, values, strict=False) if owner == "-1"}

    def _resolve_output(self, node: dict[str, Any], output: int, wanted: str) -> _Source | None:
        if node.get("mode", 0) == BYPASSED:
            slot = self._bypass_slot(node, output, wanted)
            return None if slot is None else self.resolve_input(node, slot)
        if node["type"] in self.definitions:
            return self._resolve_inside(node, output, wanted)
        if node["type"] == REROUTE:
            return self.resolve_input(node, output, wanted)
        if node["type"] == PRIMITIVE:
            return None
        return _Source(self.path(node), output)

    def _resolve_inside(self, node: dict[str, Any], output: int, wanted: str) -> _Source | None:
        inner = self.inside(node)
        for link in inner.data["outputs"][output].get("linkIds") or []:
            origin, slot, _ = inner.links[link]
            if origin == SUBGRAPH_INPUT:
                raise ValueError(f"Subgraph node {self.path(node)} passes an input straight through: not supported.")
            return inner._resolve_output(inner.nodes[origin], slot, wanted)
        return None

    def _bypass_slot(self, node: dict[str, Any], output: int, wanted: str) -> int | None:
        """The input that stands in for a bypassed node's output: same position, else same type, else a fitting type."""
        types = [str(slot["type"]) for slot in self.slots(node)]
        made = str(node["outputs"][output]["type"])
        if wanted in ("*", ""):
            return output if output < len(types) else 0
        if output < len(types) and _fits(types[output], made) and _fits(types[output], wanted):
            return output
        if wanted in types:
            return types.index(wanted)
        return next((i for i, t in enumerate(types) if _fits(t, made) and _fits(t, wanted)), None)


def _link(link: Any) -> tuple[Any, tuple[Any, int, Any]]:
    """Links are lists in the root graph and objects in subgraphs."""
    if isinstance(link, dict):
        return link["id"], (link["origin_id"], link["origin_slot"], link["target_id"])
    return link[0], (link[1], link[2], link[3])


def _wrap(value: Any) -> Any:
    """A list would read as a link, so the front end hides it in an object."""
    return {"__value__": value} if isinstance(value, list) else value


def _fits(a: str, b: str) -> bool:
    """Whether two socket types may be joined: equal but for case, a common entry of comma lists, or a wildcard."""
    if a in ("", "*", "0") or b in ("", "*", "0"):
        return True
    return bool(set(a.lower().split(",")) & set(b.lower().split(",")))
