"""Names and annotations that new nodes and constants inherit from those that they replace.

A node inherits doc string, metadata, overload and device annotations. A constant inherits the file
that it is stored in, and, if nothing reads the old constant any more, its name, doc string and
metadata.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from onnx import NodeProto, TensorProto

__all__ = ["Names", "heir", "inherited", "renamed", "with_annotations"]


def _annotations(sources: Iterable[NodeProto]) -> NodeProto:
    """Make a node with nothing but the annotations of ``sources``; the first of each kind wins."""
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
    """The annotations that a new node inherits.

    Args:
        op: operator of the new node.
        old: nodes that are replaced. The new node inherits from those of its own operator, or
            from all where there are none.
        new_ops: operators of all the new nodes. All of them inherit from an old node whose
            operator none of them has.
    """
    own = [n for n in old if n.op_type == op] or list(old)
    others = [n for n in old if n.op_type not in new_ops and n not in own]
    return _annotations([*own, *others])


def with_annotations(node: NodeProto, source: NodeProto) -> NodeProto:
    """Add the annotations of ``source`` to ``node``, and return it."""
    if source.doc_string:
        node.doc_string = source.doc_string
    if source.overload:
        node.overload = source.overload
    node.metadata_props.extend(source.metadata_props)
    node.device_configurations.extend(source.device_configurations)
    return node


def renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """Copy a new node with its constants under their final names.

    Device annotations about tensors that the node neither reads nor makes are left out.
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
    """Names that new constants inherit, and the files that their values are stored in."""

    def __init__(self, homes: Mapping[str, str]) -> None:
        self._homes = dict(homes)
        self._claims: dict[str, str] = {}

    def home(self, name: str) -> str:
        """Name of the file that a constant is to be stored in; empty for the model file."""
        return self._homes.get(name, "")

    def settle(self, name: str, home: str) -> None:
        """Record the file that a constant is to be stored in."""
        if home:
            self._homes[name] = home

    def claim(self, name: str, origin: str) -> None:
        """Record that a constant inherits the name ``origin`` if nothing else has it in the end."""
        self._claims[name] = self._claims.get(origin, origin)

    def final(self, used: Collection[str], taken: Collection[str]) -> dict[str, str]:
        """Final names of the constants that change theirs, by the names they have now.

        Args:
            used: names that are read.
            taken: names that other tensors have.
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
        """Names of the files of the constants in use, by final name."""
        return {final.get(n, n): self._homes[n] for n in sorted(used) if n in self._homes}


def heir(tensor: TensorProto, name: str, origin: TensorProto | None) -> TensorProto:
    """Copy ``tensor`` under another name, with the doc string and metadata of ``origin``."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    if origin is not None:
        if origin.doc_string:
            copy.doc_string = origin.doc_string
        copy.metadata_props.extend(origin.metadata_props)
    return copy
