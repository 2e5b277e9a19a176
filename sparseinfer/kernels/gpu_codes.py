"""Integer codes of packed rows in Triton, for every packing that `matrix`, `planes` and
`sketch.matrix` describe.

A packing is named by its kind:

* int8, int4: of `matrix`;
* planes: both planes of `planes`; high: its high plane alone, with 7.5 for what is not read;
* sketch2, sketch3, sketch4: of `sketch.matrix`, whose scales belong to 64 columns each.

Several codes share a byte: its fields, from the low bits up, belong to columns that lie SPAN apart.
A thread reads 16 bytes in a row, so that it has 16 neighbouring columns of each field.
"""

from __future__ import annotations

from sparseinfer.kernels.triton_language import tl, triton

RUN = tl.constexpr(16)


def fields_of(kind: str) -> int:
    """Codes in a byte."""
    return {"plain": 1, "int8": 1, "sketch2": 4, "sketch3": 4}.get(kind, 2)


@triton.jit
def field_columns(place, FIRST: tl.constexpr, SPAN: tl.constexpr, FIELDS: tl.constexpr):
    """Columns int32 that the lowest fields of the bytes 16 * place belong to; place int32, any
    shape."""
    PER: tl.constexpr = SPAN // RUN
    return FIRST + place // PER * (SPAN * FIELDS) + place % PER * RUN


@triton.jit
def row_codes(
    start,
    high,
    wanted,
    FIRST: tl.constexpr,
    BYTES: tl.constexpr,
    SPAN: tl.constexpr,
    END: tl.constexpr,
    HELD: tl.constexpr,
    ROWS: tl.constexpr,
    KIND: tl.constexpr,
    FIELDS: tl.constexpr,
):
    """A tuple of codes fp32 [ROWS, BYTES / 16, 16], one of each field.

    Args:
        start: pointers [ROWS] to the first code of each row; of planes, to the low halves.
        high: the same of the high plane; not used for others.
        wanted: int1 [ROWS], rows that may be read.
        FIRST: column that the lowest field of the first byte belongs to.
        END: nothing is read from this column on.
        HELD: columns of a row, padding included.
    """
    place = FIRST // FIELDS + tl.arange(0, BYTES)[None, :]
    mask = wanted[:, None]
    if FIRST + BYTES * FIELDS > END:
        mask = mask & (place < END // FIELDS)
    shape: tl.constexpr = [ROWS, BYTES // RUN, RUN]  # pyright: ignore[reportAssignmentType]
    found = tl.reshape(tl.load(start[:, None] + place, mask=mask, other=0), shape)
    above = found
    if KIND == "planes":
        above = tl.reshape(tl.load(high[:, None] + place, mask=mask, other=0), shape)
    codes = ()
    for field in tl.static_range(FIELDS):
        if KIND == "int8":
            code = found.to(tl.float32)
        elif FIELDS == 4:
            low = (found >> (2 * field)) & 3
            if KIND == "sketch3":
                low += _top_bits(start, wanted, FIRST, BYTES, SPAN, END, HELD, field, ROWS) * 4
                code = low.to(tl.float32) - 4
            else:
                code = low.to(tl.float32) - 2
        else:
            half = (found >> (4 * field)) & 15
            if KIND == "planes":
                top = (above >> (4 * field)) & 15
                code = half.to(tl.float32) + (top.to(tl.float32) * 16 - 128)
            elif KIND == "high":
                code = half.to(tl.float32) * 16 + (7.5 - 128)
            else:
                code = half.to(tl.float32) - 8
        codes = codes + (code,)
    return codes


@triton.jit
def _top_bits(
    start,
    wanted,
    FIRST: tl.constexpr,
    BYTES: tl.constexpr,
    SPAN: tl.constexpr,
    END: tl.constexpr,
    HELD: tl.constexpr,
    FIELD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """uint8 [ROWS, BYTES / 16, 16]: third bits of one field, which lie behind the others of a row,
    eight columns a byte."""
    column = field_columns(tl.arange(0, BYTES // RUN), FIRST, SPAN, 4) + FIELD * SPAN
    mask = wanted[:, None] & (column < END)[None, :]
    place = start[:, None] + (HELD // 4 + column // 8)[None, :]
    pair = tl.join(tl.load(place, mask=mask, other=0), tl.load(place + 1, mask=mask, other=0))
    bits = (pair[:, :, :, None] >> tl.arange(0, 8)[None, None, None, :].to(tl.uint8)) & 1
    return tl.reshape(bits, [ROWS, BYTES // RUN, RUN])


__all__ = ["RUN", "field_columns", "fields_of", "row_codes"]
