"""The bits of a decode step depend on a token's own sequence alone."""

from __future__ import annotations

import multiprocessing
import threading

import pytest
import torch
from decoder_oracle import Toy, feed, text, toy
from torch import Tensor

from sparseinfer.kernels.decoder.cpu import MAX_ROWS, CpuDecoder, TokenRow
from sparseinfer.kernels.threads import CpuPool

FORK = multiprocessing.get_context("fork")
THREADS = {1: 33, 2: 33, 3: 7, 5: 7}
"""Numbers of threads, and of tokens: waiting for threads that have no core takes long."""

FORM = {"hidden": 72, "intermediate": 200, "vocabulary": 150, "bias": True, "window": 11}


def model(format, phi="silu") -> Toy:
    made = toy(format, phi=phi, kv_dtype=torch.bfloat16, **FORM)
    for layer in made.layers:
        layer.ffn.threshold.fill_(0.1)  # at which neurons are kept and dropped
    return made


@pytest.mark.parametrize("phi", ["silu", "relu"])
def test_threads_runs_and_chunks_of_one_text(isa, format, phi):
    made = model(format, phi)
    ids, tables = text(33), made.tables(33)
    expected = feed(made.decoder(CpuPool(1), isa), tables, made.sequence(), ids)
    kept = expected[1][:, :, 0].float().mean() / 200
    assert 0.2 < kept < 0.9
    for threads, tokens in THREADS.items():
        decoder = made.decoder(CpuPool(threads), isa)
        for chunk in (1, 2, 5, 16):
            logits, counts = feed(decoder, tables, made.sequence(), ids[:tokens], chunk)
            assert torch.equal(logits, expected[0][:tokens]), (threads, chunk)
            assert torch.equal(counts, expected[1][:, :tokens]), (threads, chunk)


def _together(
    decoder: CpuDecoder, made: Toy, texts: list[list[int]], tables: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Each text's logits, one token of every text that is not at its end per call."""
    sequences = [made.sequence() for _ in texts]
    found: list[list[Tensor]] = [[] for _ in texts]
    for position in range(max(map(len, texts))):
        live = [b for b, ids in enumerate(texts) if position < len(ids)]
        rows = [
            TokenRow(texts[b][position], position, sequences[b].keys, sequences[b].values)
            for b in live
        ]
        for b, logits in zip(live, decoder(rows, *tables)[0], strict=True):
            found[b].append(logits)
    return [torch.stack(parts) for parts in found]


def test_every_batch_gives_each_text_what_it_gets_alone(isa, format):
    made = model(format)
    tables = made.tables(20)
    texts = [text(3 + 5 * b % 17, seed=b) for b in range(MAX_ROWS)]
    alone = made.decoder(CpuPool(1), isa)
    expected = [feed(alone, tables, made.sequence(), ids)[0] for ids in texts]
    for threads, batches in ((1, range(1, MAX_ROWS + 1)), (2, (3, 16)), (5, (2,))):
        decoder = made.decoder(CpuPool(threads), isa)
        for batch in batches:
            for logits, want in zip(
                _together(decoder, made, texts[:batch], tables), expected, strict=False
            ):
                assert torch.equal(logits, want), (threads, batch)


def test_texts_at_different_positions_and_several_tokens_of_one(isa, format):
    """A call as a scheduler may make it: one text goes on by 3 tokens, others by one."""
    made = model(format)
    tables, decoder = made.tables(30), made.decoder(CpuPool(2), isa)
    texts = [text(25, seed=b) for b in range(4)]
    expected = [feed(decoder, tables, made.sequence(), ids)[0] for ids in texts]
    begins = (1, 7, 20, 13)
    sequences = [made.sequence() for _ in texts]
    for ids, sequence, begin in zip(texts, sequences, begins, strict=True):
        feed(decoder, tables, sequence, ids[:begin], chunk=16)
    steps = [(0, 1), (1, 7), (1, 8), (1, 9), (2, 20), (3, 13), (3, 14)]
    rows = [
        TokenRow(texts[b][position], position, sequences[b].keys, sequences[b].values)
        for b, position in steps
    ]
    logits, _ = decoder(rows, *tables)
    for (b, position), found in zip(steps, logits, strict=True):
        assert torch.equal(found, expected[b][position]), (b, position)


def test_two_decoders_on_one_pool_from_two_python_threads():
    pool = CpuPool(3)
    models = [model("int8"), model("bf16")]
    ids = text(12)
    tables = models[0].tables(12)
    decoders = [made.decoder(pool) for made in models]
    expected = [
        feed(decoder, tables, made.sequence(), ids)[0]
        for decoder, made in zip(decoders, models, strict=True)
    ]
    wrong: list[int] = []

    def worker(i: int) -> None:
        for _ in range(20):
            logits, _ = feed(decoders[i], tables, models[i].sequence(), ids)
            if not torch.equal(logits, expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=worker, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def _in_child(decoder: CpuDecoder, made: Toy, tables, ids, expected: list, queue) -> None:
    try:
        feed(decoder, tables, made.sequence(), ids)
        queue.put(("the parent's pool worked", False))
    except RuntimeError as error:
        again = feed(made.decoder(CpuPool(2)), tables, made.sequence(), ids)[0]
        queue.put((str(error), again.tolist() == expected))


def test_a_forked_child_gets_an_error_and_can_start_anew():
    made, ids = model("int4"), text(3)
    tables, decoder = made.tables(3), made.decoder(CpuPool(2))
    expected = feed(decoder, tables, made.sequence(), ids)[0]
    queue = FORK.Queue()
    arguments = (decoder, made, tables, ids, expected.tolist(), queue)
    child = FORK.Process(target=_in_child, args=arguments)
    child.start()
    message, equal = queue.get(timeout=60)
    child.join(60)
    assert "after fork(), make a new one" in message
    assert equal, "a new pool gave other values"
    assert child.exitcode == 0
    assert torch.equal(feed(decoder, tables, made.sequence(), ids)[0], expected)
