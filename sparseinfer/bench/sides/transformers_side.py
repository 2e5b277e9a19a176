"""transformers as a side: bf16, eager or through torch.compile with a static cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from sparseinfer.bench.sides.side import DecodeRun


class TransformersSide:
    """A checkpoint folder in transformers, weights bf16.

    Args:
        model: the folder.
        threads: of torch.
        positions: tokens that a sequence may have, prompt included.
        compiled: decode steps through `torch.compile`; the first call compiles, for a minute or so.
    """

    def __init__(self, model: str, *, threads: int, positions: int, compiled: bool = False) -> None:
        torch.set_num_threads(threads)
        self._threads = threads
        self._positions = positions
        self._compiled = compiled
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, local_files_only=True
        )
        self._model = loaded.eval()
        self._step: Any = torch.compile(self._model.forward) if compiled else self._model

    def describe(self) -> dict[str, Any]:
        return {
            "engine": "transformers",
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "mode": "torch.compile" if self._compiled else "eager",
            "threads": self._threads,
            "kv_cache": "bf16",
            "attention": self._model.config._attn_implementation,
            "bits": dict.fromkeys(("ffn", "attention", "embedding", "lm_head"), 16.0),
        }

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Sequence[int]], steps: int) -> DecodeRun:
        cache = self._new_cache()
        newest = self._prompt(prompts, cache)
        length = len(prompts[0])
        columns = [newest]
        began = time.perf_counter()
        for step in range(steps):
            position = torch.tensor([length + step])
            logits = self._step(
                input_ids=newest,
                past_key_values=cache,
                cache_position=position,
                position_ids=position[None],
            ).logits
            newest = logits[:, -1].argmax(-1, keepdim=True)
            columns.append(newest)
        seconds = time.perf_counter() - began
        return DecodeRun(seconds, steps, torch.cat(columns, dim=1).tolist())

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int]) -> float:
        cache = self._new_cache()
        began = time.perf_counter()
        self._prompt([ids], cache)
        return time.perf_counter() - began

    def account(self, context: float) -> dict[str, Any]:
        """Bytes that a token reads: every matrix, one embedding row, keys and values."""
        config = self._model.config
        total = sum(parameter.nbytes for parameter in self._model.parameters())
        table = self._model.get_input_embeddings().weight
        if not config.tie_word_embeddings:
            total -= table.nbytes - table[0].nbytes
        kv_row = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        return {"weights": "bf16", "weight_bytes": total, "kv_bytes": round(context) * kv_row}

    def _prompt(self, prompts: Sequence[Sequence[int]], cache: Any) -> torch.Tensor:
        """The most likely next tokens [B, 1]."""
        ids = torch.tensor([list(prompt) for prompt in prompts])
        logits = self._model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    def _new_cache(self) -> Any:
        if not self._compiled:
            return transformers.DynamicCache(config=self._model.config)
        # Compiled code is kept only for tensors whose shapes do not change from step to step.
        return transformers.StaticCache(config=self._model.config, max_cache_len=self._positions)
