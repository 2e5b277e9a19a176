"""The Triton kernels of decode attention; `gpu` says what they compute.

Within a program each of its slots, a position of a tile modulo their number, keeps a maximum and
sums of its own, so that its threads meet only at the end.
"""

from __future__ import annotations

from sparseinfer.kernels.triton_language import tl, triton


@triton.jit
def _shares(position, splits, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """Of a token at a position: how many positions it sees before its own, tiles of a share, and
    how many shares there are. The last one has the token's own position besides."""
    before = position
    if WINDOW > 0:
        before = tl.minimum(position, WINDOW - 1)
    tiles = tl.maximum(tl.cdiv(before, TILE), 1)
    each = tl.cdiv(tiles, splits)
    return before, each, tl.cdiv(tiles, each)


@triton.jit
def _rounded(x, TYPE: tl.constexpr):
    """fp32 x at the nearest value of a type, fp32 or bf16; ties to even.

    Spelled out, because Triton's interpreter cuts digits off where a GPU rounds.
    """
    nearest = x
    if TYPE.primitive_bitwidth == 16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        nearest = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return nearest


@triton.jit
def _rotated(heads, mask, cos, sin, HEAD_DIM: tl.constexpr, DIM: tl.constexpr):
    """Heads fp32 [N, DIM] turned to a position (RoFormer, 2104.09864).

    Args:
        heads: pointers [N, 1].
        mask: int1 [N, DIM].
        cos, sin: fp32 [DIM].
    """
    lane = tl.arange(0, DIM)
    first = lane < HEAD_DIM // 2
    other = tl.where(first, lane + HEAD_DIM // 2, lane - HEAD_DIM // 2)
    value = tl.load(heads + lane[None, :], mask=mask, other=0.0)
    partner = tl.load(heads + other[None, :], mask=mask, other=0.0)
    return value * cos[None, :] + tl.where(first[None, :], -partner, partner) * sin[None, :]


@triton.jit
def _cache(addresses, row, offset, TYPE: tl.constexpr):
    """Pointer to an element of a sequence's cache."""
    address = tl.multiple_of(tl.load(addresses + row), 16)
    start = tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16)
    return start + offset


@triton.jit(do_not_specialize=["layer"])
def attend_shares(
    qkv,
    positions,
    keys,
    values,
    capacities,
    cos,
    sin,
    sums,
    tops,
    layer,
    scale,
    GROUP: tl.constexpr,
    PADDED_GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    DEEP: tl.constexpr,
    SLOTS: tl.constexpr,
    STAGES: tl.constexpr,
    TYPE: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program attends over one share with all query heads of one key-value head."""
    split, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits, kv_heads = tl.num_programs(0), tl.num_programs(1)
    position = tl.load(positions + row).to(tl.int32)
    before, each, used = _shares(position, splits, WINDOW, TILE)
    if split < used:
        query = tl.arange(0, PADDED_GROUP)
        lane = tl.arange(0, DIM)
        deep = tl.arange(0, DEEP)
        slot = tl.arange(0, SLOTS)
        inner = lane < HEAD_DIM
        # One head's cache has less than 2^31 elements; only what is before it needs int64.
        angle = position * HEAD_DIM + lane
        turn_cos = tl.load(cos + angle, mask=inner, other=0.0)
        turn_sin = tl.load(sin + angle, mask=inner, other=0.0)
        heads = kv_heads * GROUP
        token = qkv + row * (heads + 2 * kv_heads) * HEAD_DIM
        own = token + (head * GROUP + query)[:, None] * HEAD_DIM
        mask = (query < GROUP)[:, None] & inner[None, :]
        # Scores are in units of log 2, so that exp2 makes weights of them.
        q = _rotated(own, mask, turn_cos, turn_sin, HEAD_DIM, DIM) * scale

        capacity = tl.load(capacities + row)
        start = (layer.to(tl.int64) * kv_heads + head) * capacity * HEAD_DIM
        key_rows = _cache(keys, row, start, TYPE)
        value_rows = _cache(values, row, start, TYPE)

        # The token itself: in slot 0 of the last share, whose program stores it.
        one = tl.arange(0, 1)
        key_head = token + (heads + head + one)[:, None] * HEAD_DIM
        key = _rotated(key_head, inner[None, :], turn_cos, turn_sin, HEAD_DIM, DIM)
        key = tl.sum(_rounded(key, TYPE), axis=0)
        value = tl.load(token + (heads + kv_heads + head) * HEAD_DIM + lane, mask=inner, other=0.0)
        value = _rounded(value, TYPE)
        if split == used - 1:
            new = position * HEAD_DIM + lane
            tl.store(key_rows + new, key.to(TYPE), mask=inner)
            tl.store(value_rows + new, value.to(TYPE), mask=inner)
        # Loads are [positions, dim], and all else [group, deep, slot, dim] from here on, so that a
        # thread goes on with what it has loaded: no sum but that over dim asks another thread.
        q = q[:, None, None, :]
        none = tl.zeros([PADDED_GROUP, 1, 1, 1], dtype=tl.float32)
        has = (slot == tl.where(split == used - 1, 0, -1))[None, None, :, None]
        score = tl.sum(q * key[None, None, None, :], axis=3, keep_dims=True)
        top = tl.where(has, score, -float("inf"))
        weight = tl.where(has, none + 1.0, 0.0)
        total = tl.where(has, value[None, None, None, :] + none, 0.0)

        first = position - before + split * each * TILE
        end = tl.minimum(first + each * TILE, position)
        offset = (deep[:, None] * SLOTS + slot[None, :])[None, :, :, None]
        flat = tl.arange(0, TILE)
        place = flat[:, None] * HEAD_DIM + lane[None, :]
        for begin in tl.range(first, end, TILE, num_stages=STAGES):
            inside = begin + offset < end
            there = (begin + flat < end)[:, None] & inner[None, :]
            tile = begin * HEAD_DIM
            k = tl.load(key_rows + tile + place, mask=there, other=0.0)
            v = tl.load(value_rows + tile + place, mask=there, other=0.0)
            k = tl.reshape(k, [1, DEEP, SLOTS, DIM]).to(tl.float32)
            v = tl.reshape(v, [1, DEEP, SLOTS, DIM]).to(tl.float32)
            scores = tl.sum(q * k, axis=3, keep_dims=True)
            scores = tl.where(inside, scores, -float("inf"))
            raised = tl.maximum(top, tl.max(scores, axis=1, keep_dims=True))
            # A slot that has seen nothing yet has no maximum to subtract.
            base = tl.where(raised == -float("inf"), 0.0, raised)
            weights = tl.exp2(scores - base)
            faded = tl.exp2(top - base)
            weight = weight * faded + tl.sum(weights, axis=1, keep_dims=True)
            total = total * faded + tl.sum(weights * v, axis=1, keep_dims=True)
            top = raised

        highest = tl.max(top, axis=2, keep_dims=True)
        base = tl.where(highest == -float("inf"), 0.0, highest)
        faded = tl.exp2(top - base)
        share = (((row * heads + head * GROUP + query) * splits) + split)[:, None, None, None]
        real = (query < GROUP)[:, None, None, None]
        tl.store(tops + share * 2, highest, mask=real)
        tl.store(tops + share * 2 + 1, tl.sum(weight * faded, axis=2, keep_dims=True), mask=real)
        whole = tl.sum(total * faded, axis=2, keep_dims=True)
        dim = lane[None, None, None, :]
        tl.store(sums + share * HEAD_DIM + dim, whole, mask=real & (dim < HEAD_DIM))


@triton.jit
def combine_shares(
    sums,
    tops,
    positions,
    attended,
    splits,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program puts the shares of one query head together."""
    head, row = tl.program_id(0), tl.program_id(1)
    position = tl.load(positions + row).to(tl.int32)
    _, _, used = _shares(position, splits, WINDOW, TILE)
    own = row * tl.num_programs(0) + head
    split = tl.arange(0, SPLITS)
    lane = tl.arange(0, DIM)
    there, inner = split < used, lane < HEAD_DIM
    share = own * splits + split
    top = tl.load(tops + share * 2, mask=there, other=-float("inf"))
    weight = tl.load(tops + share * 2 + 1, mask=there, other=0.0)
    highest = tl.max(top, axis=0)
    faded = tl.exp2(top - tl.where(highest == -float("inf"), 0.0, highest))
    part = tl.load(
        sums + share[:, None] * HEAD_DIM + lane[None, :],
        mask=there[:, None] & inner[None, :],
        other=0.0,
    )
    result = tl.sum(part * faded[:, None], axis=0) / tl.sum(weight * faded, axis=0)
    tl.store(attended + own * HEAD_DIM + lane, result, mask=inner)


__all__ = ["attend_shares", "combine_shares"]
