"""Integer codes of packed rows in Triton, for every packing that `matrix`, `planes` and
`sketch.matrix` describe.

A packing is named by its kind:

* int8, int4: of `matrix`;
* planes: both planes of `planes`; high: its high plane alone, with 7.5 for what is not read;
* sketch2, sketch3, sketch4: of `sketch.matrix`, whose scales belong to 64 columns each.
"""

from __future__ import annotations

from sparseinfer.kernels.triton_language import tl, triton

GROUP = tl.constexpr(32)


@triton.jit
def scale_of(group, KIND: tl.constexpr):
    """Which scale a group of 32 columns has."""
    found = group
    if (KIND == "sketch2") | (KIND == "sketch3") | (KIND == "sketch4"):
        found = group // 2
    return found


@triton.jit
def row_codes(data, high, mask, group, held, KIND: tl.constexpr):
    """Codes fp32 [R, G, 32], to be multiplied by their group's scale.

    Args:
        data: pointers [R, 1, 1] to the first code of each row; of planes, to the low halves.
        high: the same of the high plane; not used for others.
        mask: int1 [R, G, 32], what may be read.
        group: int32 [G], groups of 32 columns.
        held: groups in a row, padding included, an even number.
    """
    lane = tl.arange(0, GROUP)
    if KIND == "int8":
        place = group[:, None] * GROUP + lane[None, :]
        code = tl.load(data + place[None, :, :], mask=mask, other=0).to(tl.float32)
    elif (KIND == "sketch2") | (KIND == "sketch3"):
        # Eight groups share 64 bytes, two bits each; two that are left share 16.
        whole = held // 8 * 8
        left = group >= whole
        byte = tl.where(left, whole * 8 + (group - whole) // 2 * 16, group // 8 * 64)
        half = group % 2
        near = byte[:, None] + half[:, None] * 32 + lane[None, :]
        far = byte[:, None] + lane[None, :] % 16
        place = tl.where(left[:, None], far, near)
        apart = half[:, None] * 4 + lane[None, :] // 16 * 2
        shift = tl.where(left[:, None], apart, (group // 2 % 4 * 2)[:, None])
        packed = tl.load(data + place[None, :, :], mask=mask, other=0).to(tl.int32)
        found = (packed >> shift[None, :, :]) & 3
        if KIND == "sketch3":
            top_place = held * 8 + group[:, None] * 4 + lane[None, :] // 8
            top = tl.load(data + top_place[None, :, :], mask=mask, other=0).to(tl.int32)
            found += ((top >> (lane % 8)[None, None, :]) & 1) * 4
            code = (found - 4).to(tl.float32)
        else:
            code = (found - 2).to(tl.float32)
    else:
        # Four groups share 64 bytes: 0 and 1 the low halves, 2 and 3 the high ones. Two that are
        # left share 32.
        whole = held // 4 * 4
        left = group >= whole
        byte = tl.where(left, whole * 16, group // 4 * 64 + group % 2 * 32)
        shift = tl.where(left, group - whole, group // 2 % 2) * 4
        place = byte[:, None] + lane[None, :]
        packed = tl.load(data + place[None, :, :], mask=mask, other=0).to(tl.int32)
        found = (packed >> shift[None, :, None]) & 15
        if KIND == "planes":
            above = tl.load(high + place[None, :, :], mask=mask, other=0).to(tl.int32)
            found += ((above >> shift[None, :, None]) & 15) * 16
            code = (found - 128).to(tl.float32)
        elif KIND == "high":
            code = ((found - 8) * 16).to(tl.float32) + 7.5
        else:
            code = (found - 8).to(tl.float32)
    return code


__all__ = ["GROUP", "row_codes", "scale_of"]
