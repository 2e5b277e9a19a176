"""The linear layer for prompts, in both kinds of arithmetic."""

from __future__ import annotations

import pytest
import torch
from matrices import FORMATS, bundle, matrix, relative

from sparseinfer.kernels import gemm as module
from sparseinfer.kernels.gemm import MATHS, Gemm, blocks, choose_math, has_bf16
from sparseinfer.kernels.isa import isa_available
from sparseinfer.kernels.linear.prefill import linear
from sparseinfer.kernels.scratch import Scratch

SHAPES = [(1, 1), (17, 3), (31, 129), (129, 64), (160, 96), (576, 320)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("math", MATHS)
@pytest.mark.parametrize(("columns", "rows"), SHAPES)
def test_values(pool, isa, columns, rows, math, format):
    weight = matrix(rows, columns, format)
    x, bias = torch.randn(19, columns), torch.randn(rows)
    gemm = Gemm(math, pool, isa)
    for added in (None, bias):
        want = x.double() @ weight.float().double().T + (0 if added is None else bias.double())
        got = linear(x, weight, added, gemm)
        assert got.dtype == torch.float32
        # Three roundings to bf16, of x, of unpacked weights and of the product: 2^-8 each at most.
        size = x.abs().double() @ weight.float().abs().double().T
        bound = (columns + 4) * 2.0**-24 * (size + bias.abs())
        if math == "bf16":
            bound = 3.1 * 2.0**-8 * size + bound
        assert ((got.double() - want).abs() <= bound).all()


def test_fp32_is_far_more_exact_than_bf16(pool):
    weight, x = matrix(300, 500, "bf16"), torch.randn(40, 500)
    want = x.double() @ weight.float().double().T
    assert relative(linear(x, weight, None, Gemm("fp32", pool)), want) < 1e-6
    assert 1e-4 < relative(linear(x, weight, None, Gemm("bf16", pool)), want) < 5e-3


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("math", MATHS)
def test_unpacking_is_exact(pool, isa, format, math):
    for columns in (1, 31, 64, 95, 128, 130, 300):
        both = bundle(matrix(77, columns, format, 1), matrix(77, columns, format, 2))
        for weight in (matrix(77, columns, format), *both):
            got = Gemm(math, pool, isa).weights(weight, 5, 70)
            assert torch.equal(got, weight.float(5, 70).to(got.dtype))


def test_weights_in_the_right_type_are_not_copied(pool):
    for math in MATHS:
        weight = matrix(20, 40, math)
        assert Gemm(math, pool).weights(weight, 3, 9).data_ptr() == weight.data[3:].data_ptr()


@pytest.mark.parametrize("math", MATHS)
def test_several_blocks(pool, monkeypatch, math):
    weight, x, bias = matrix(200, 33, "int8"), torch.randn(21, 33), torch.randn(200)
    whole = linear(x, weight, bias, Gemm(math, pool))
    monkeypatch.setattr(module, "_BLOCK_WEIGHTS", 64 * 33)
    assert list(blocks(200, 33)) == [(0, 64), (64, 128), (128, 192), (192, 200)]
    assert torch.allclose(linear(x, weight, bias, Gemm(math, pool)), whole, atol=1e-5)


@pytest.mark.parametrize("format", ["fp32", "bf16", "int4"])
@pytest.mark.parametrize("math", MATHS)
def test_bits_do_not_depend_on_threads(pool, math, format):
    for tokens in (9, 17, 64, 300):
        weight, x = matrix(330, 200, format), torch.randn(tokens, 200)
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(linear(x, weight, None, Gemm(math, pool)))
        assert all(torch.equal(results[0], other) for other in results[1:])


def test_bad_values_propagate(pool):
    for math in MATHS:
        x = torch.randn(12, 30)
        x[1, 2] = torch.nan
        y = linear(x, matrix(40, 30, "int8"), None, Gemm(math, pool))
        assert torch.isnan(y[1]).all()
        assert torch.isfinite(y[2:]).all()


def test_misuse(pool):
    weight, gemm = matrix(6, 4, "bf16"), Gemm("fp32", pool)
    with pytest.raises(ValueError, match="math must be one of fp32, bf16, not 'fp16'"):
        Gemm("fp16", pool)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="isa 'sse9' is not available"):
        Gemm("fp32", pool, "sse9")
    with pytest.raises(ValueError, match=r"x must be \[B, 4\]"):
        linear(torch.ones(3, 5), weight, None, gemm)
    with pytest.raises(ValueError, match=r"bias must be \[6\]"):
        linear(torch.ones(3, 4), weight, torch.ones(5), gemm)


def test_choice_of_arithmetic(monkeypatch):
    assert choose_math("fp32") == "fp32"
    assert choose_math("int4") == ("bf16" if has_bf16() else "fp32")
    monkeypatch.setattr(module, "has_bf16", lambda: False)
    assert choose_math("bf16") == "fp32"


@pytest.mark.parametrize(
    ("known", "answer"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)],
)
def test_bf16_as_torch_reports_it(monkeypatch, known, answer):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert has_bf16() is answer


def test_bf16_as_older_torch_reports_it(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    for answer in (True, False):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda answer=answer: answer, raising=False
        )
        assert has_bf16() is answer


def test_scratch_is_the_same_memory_until_it_grows():
    scratch = Scratch()
    first = scratch.get("a", (4, 6), torch.float32)
    assert scratch.get("a", (3, 16), torch.bfloat16).data_ptr() == first.data_ptr()
    assert scratch.get("b", (4, 6), torch.float32).data_ptr() != first.data_ptr()
    assert scratch.bytes == 2 * 96
    assert scratch.get("a", (100, 100), torch.float32).shape == (100, 100)
    assert scratch.bytes == 40000 + 96


def test_every_variant_is_tested():
    assert "portable" in isa_available()
