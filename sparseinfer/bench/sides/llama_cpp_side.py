"""llama.cpp as a side: its C functions are called directly, so that Python adds next to nothing.

Defaults of llama.cpp throughout (mapped file, weight repacking, F16 cache), flash attention on.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from sparseinfer.bench.llama_cpp_library import library
from sparseinfer.bench.sides.side import DecodeRun
from sparseinfer.errors import ConfigError, SourceError


class LlamaCppSide:
    """A GGUF file in llama.cpp.

    Args:
        path: the file.
        threads: for decoding and for prompts.
        positions: tokens that a sequence may have, prompt included.
        sequences: most sequences decoded together.

    Raises:
        UnsupportedError: llama-cpp-python is missing.
        SourceError: llama.cpp cannot load the file.
    """

    def __init__(self, path: Path, *, threads: int, positions: int, sequences: int = 1) -> None:
        self._llama = llama = library()
        self._path = path
        self._threads = threads
        self._model = llama.llama_model_load_from_file(
            str(path).encode(), llama.llama_model_default_params()
        )
        if not self._model:
            raise SourceError(f"llama.cpp cannot load {path}")
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = positions * sequences
        parameters.n_seq_max = sequences
        parameters.n_threads = threads
        parameters.n_threads_batch = threads
        parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = llama.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise SourceError(f"llama.cpp cannot make a context of {positions} tokens for {path}")
        self._memory = llama.llama_get_memory(self._context)
        self._chunk = llama.llama_n_batch(self._context)
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))

    def describe(self) -> dict[str, Any]:
        from sparseinfer.bench.gguf_export import tensor_bits, tensor_types

        llama = self._llama
        name = ctypes.create_string_buffer(256)
        llama.llama_model_desc(self._model, name, len(name))
        return {
            "engine": "llama.cpp",
            "version": f"llama-cpp-python {metadata.version('llama_cpp_python')}",
            "model": name.value.decode(errors="replace"),
            "build": llama.llama_print_system_info().decode(errors="replace").strip(),
            "threads": self._threads,
            "kv_cache": "fp16",
            "flash_attention": True,
            "bits": tensor_bits(self._path),
            "types": tensor_types(self._path),
        }

    def decode(self, prompts: Sequence[Sequence[int]], steps: int) -> DecodeRun:
        llama = self._llama
        llama.llama_memory_clear(self._memory, True)
        count, length = len(prompts), len(prompts[0])
        batch = _Batch(llama, max(self._chunk, count))
        newest = [self._prompt(batch, prompt, sequence) for sequence, prompt in enumerate(prompts)]
        ids = [[token] for token in newest]
        sequences = list(range(count))
        wanted = [True] * count
        began = time.perf_counter()
        for step in range(steps):
            batch.fill(newest, [length + step] * count, sequences, wanted)
            self._run(batch)
            newest = [self._argmax(row) for row in sequences]
            for sequence, token in enumerate(newest):
                ids[sequence].append(token)
        seconds = time.perf_counter() - began
        return DecodeRun(seconds, steps, ids)

    def prefill(self, ids: Sequence[int]) -> float:
        self._llama.llama_memory_clear(self._memory, True)
        batch = _Batch(self._llama, self._chunk)
        began = time.perf_counter()
        self._prompt(batch, ids, 0)
        return time.perf_counter() - began

    def account(self, context: float) -> dict[str, Any]:
        """Bytes that a token reads: every matrix, one embedding row, keys and values."""
        from sparseinfer.bench.gguf_export import step_bytes, tensor_types

        weights, kv_row = step_bytes(self._path)
        return {
            "weights": tensor_types(self._path)["ffn"],
            "weight_bytes": weights,
            "kv_bytes": round(context) * kv_row,
        }

    def score(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """Negative log-likelihood per token, in nats, of each window after its first token."""
        return [self._score(list(window)) for window in windows]

    def _score(self, ids: list[int]) -> float:
        self._llama.llama_memory_clear(self._memory, True)
        batch = _Batch(self._llama, self._chunk)
        total = 0.0
        for start in range(0, len(ids), self._chunk):
            chunk = ids[start : start + self._chunk]
            positions = range(start, start + len(chunk))
            batch.fill(chunk, positions, [0] * len(chunk), [True] * len(chunk))
            self._run(batch)
            for index, target in enumerate(ids[start + 1 : start + 1 + len(chunk)]):
                row = self._row(index).astype(np.float64)
                top = row.max()
                total += top + np.log(np.exp(row - top).sum()) - row[target]
        return total / (len(ids) - 1)

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits [V] fp32 after the last token."""
        self._llama.llama_memory_clear(self._memory, True)
        self._prompt(_Batch(self._llama, self._chunk), ids, 0)
        return self._row(-1).copy()

    def _prompt(self, batch: _Batch, prompt: Sequence[int], sequence: int) -> int:
        """Fills a sequence of the cache; the most likely next token."""
        last = len(prompt) - 1
        for start in range(0, len(prompt), self._chunk):
            chunk = prompt[start : start + self._chunk]
            positions = range(start, start + len(chunk))
            batch.fill(chunk, positions, [sequence] * len(chunk), [p == last for p in positions])
            self._run(batch)
        return self._argmax(-1)

    def _run(self, batch: _Batch) -> None:
        status = self._llama.llama_decode(self._context, batch.native)
        if status != 0:
            raise ConfigError(
                f"llama.cpp refuses to decode (status {status}): more tokens than its context holds"
            )

    def _row(self, index: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        pointer = self._llama.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))

    def _argmax(self, index: int) -> int:
        return int(self._row(index).argmax())


class _Batch:
    """llama.cpp's batch structure, allocated once."""

    def __init__(self, llama: Any, size: int) -> None:
        self._llama = llama
        self.native = llama.llama_batch_init(size, 0, 1)

    def fill(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        wanted: Sequence[bool],
    ) -> None:
        """`wanted`: for which tokens logits are computed."""
        native = self.native
        native.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            native.token[index] = token
            native.pos[index] = positions[index]
            native.n_seq_id[index] = 1
            native.seq_id[index][0] = sequences[index]
            native.logits[index] = wanted[index]

    def __del__(self) -> None:
        self._llama.llama_batch_free(self.native)
