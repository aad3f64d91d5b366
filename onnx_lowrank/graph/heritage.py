"""What new nodes and new constants take over from those whose place they take.

A node hands on its doc string, its metadata, its overload and its device annotations. A constant
hands on its name, where nothing reads the old one any more, with its doc string and metadata, and
the file that it lies in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from onnx import NodeProto, TensorProto

__all__ = ["Names", "heir", "inherited", "renamed", "with_annotations"]


def _annotations(sources: Iterable[NodeProto]) -> NodeProto:
    """A node with the annotations of ``sources`` and nothing else; the first that says wins."""
    merged = NodeProto()
    keys: set[str] = set()
    for source in sources:
        merged.doc_string = merged.doc_string or source.doc_string
        merged.overload = merged.overload or source.overload
        fresh = [p for p in source.metadata_props if p.key not in keys]
        merged.metadata_props.extend(fresh)
        keys.update(p.key for p in fresh)
        if not merged.device_configurations:
            merged.device_configurations.extend(source.device_configurations)
    return merged


def inherited(op: str, old: Sequence[NodeProto], new_ops: Collection[str]) -> NodeProto:
    """The annotations of a new node.

    Args:
        op: its operator.
        old: nodes whose place the new ones take. The new node takes after those of its own
            operator, or after all where there are none.
        new_ops: operators of all the new nodes; an old node that none of them takes after is
            remembered by all of them.
    """
    own = [n for n in old if n.op_type == op] or list(old)
    others = [n for n in old if n.op_type not in new_ops and n not in own]
    return _annotations([*own, *others])


def with_annotations(node: NodeProto, source: NodeProto) -> NodeProto:
    """``node``, changed, with the annotations of ``source``."""
    if source.doc_string:
        node.doc_string = source.doc_string
    if source.overload:
        node.overload = source.overload
    node.metadata_props.extend(source.metadata_props)
    node.device_configurations.extend(source.device_configurations)
    return node


def renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """A copy of a new node with constants under their final names.

    What its device annotations say about tensors that it has no part in is left out.
    """
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    known = {*copy.input, *copy.output}
    for configuration in copy.device_configurations:
        true = [s for s in configuration.sharding_spec if s.tensor_name in known]
        del configuration.sharding_spec[:]
        configuration.sharding_spec.extend(true)
    return copy


class Names:
    """Which constants take over which names, and in which files their values belong."""

    def __init__(self, homes: Mapping[str, str]) -> None:
        self._homes = dict(homes)
        self._claims: dict[str, str] = {}

    def home(self, name: str) -> str:
        """The file that the values of a constant belong in; empty for the model file."""
        return self._homes.get(name, "")

    def settle(self, name: str, home: str) -> None:
        """Let the values of a constant belong in a file."""
        if home:
            self._homes[name] = home

    def claim(self, name: str, origin: str) -> None:
        """Let a constant take the name ``origin`` if nothing else has it in the end."""
        self._claims[name] = self._claims.get(origin, origin)

    def final(self, used: Collection[str], taken: Collection[str]) -> dict[str, str]:
        """Constants that change their names, with the new ones.

        Args:
            used: names that are read.
            taken: names that cannot be had.
        """
        found: dict[str, str] = {}
        gone = set(taken)
        for name in sorted(self._claims.keys() & set(used)):
            origin = self._claims[name]
            if origin not in gone:
                found[name] = origin
                gone.add(origin)
        return found

    def homes(self, used: Iterable[str], final: Mapping[str, str]) -> dict[str, str]:
        """Files of the constants in use, by final name."""
        return {final.get(n, n): self._homes[n] for n in sorted(used) if n in self._homes}


def heir(tensor: TensorProto, name: str, origin: TensorProto | None) -> TensorProto:
    """``tensor`` under another name, with what ``origin`` says beside its values."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    if origin is not None:
        if origin.doc_string:
            copy.doc_string = origin.doc_string
        copy.metadata_props.extend(origin.metadata_props)
    return copy
