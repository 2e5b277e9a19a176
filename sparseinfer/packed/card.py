"""README.md of a packed artifact."""

from __future__ import annotations

from sparseinfer.packed.header import Header
from sparseinfer.packed.layout import PACKED_VERSION


def packed_card(name: str, source: str, header: Header) -> str:
    """Markdown text of the card.

    Args:
        name: name of the packed folder.
        source: how the packed model is called (not a path: cards are published).
    """
    method = f"converted with {header.record.method}" if header.record else "dense"
    formats = header.formats
    return "\n".join(
        [
            f"# {name}",
            "",
            f"`{source}` ({method}), packed by sparseinfer {header.written_by} in the layout of "
            "its kernels.",
            "",
            f"- attention and FFN matrices: {formats.layers}",
            f"- embedding and head: {formats.head}",
            "- norms and biases: fp32",
            *_sketch_line(header),
            f"- packed version: {PACKED_VERSION}",
            "",
            "Only sparseinfer runs it:",
            "",
            "```python",
            "import sparseinfer",
            f'model = sparseinfer.load("{name}")',
            "```",
            "",
        ]
    )


def _sketch_line(header: Header) -> list[str]:
    bits = None if header.record is None else header.record.sketch_bits
    if bits is None:
        return []
    where = "their high plane" if header.formats.layers == "int8" else "a copy beside them"
    return [f"- gate and up are sketched in {bits} bits: {where}"]
