"""Trains a small ReLU or ReLU^2 Llama on real text, whose neurons rest for nine tokens of ten.

    python benchmarks/small_relu_model.py OUT [--act relu|relu2] [--steps 500]

A subject for predictors: a model whose activations mean something, which the embedded SiLU model
has too few zeros for. It learns CoQA's text with its own byte-level BPE; a penalty on activations
grows until `RESTING` of the neurons rest, and is held there. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from sparseinfer.sources import CALIBRATION_TEXT, load_text

RESTING = 0.90
VOCABULARY = 2048
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
BATCH, CONTEXT = 16, 256
RATE, WARM_UP = 2e-3, 50


class Activations:
    """What the activation functions of all layers gave in one pass."""

    def __init__(self, model: Any) -> None:
        self._seen: list[Tensor] = []
        for layer in model.model.layers:
            layer.mlp.act_fn.register_forward_hook(self._keep)

    def _keep(self, _module: object, _inputs: object, output: Tensor) -> None:
        self._seen.append(output)

    def take(self) -> tuple[Tensor, float]:
        """Mean magnitude, for the penalty, and the fraction of neurons at rest."""
        magnitude = torch.stack([one.abs().mean() for one in self._seen]).mean()
        rest = sum(float((one == 0).float().mean()) for one in self._seen) / len(self._seen)
        self._seen.clear()
        return magnitude, rest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--act", choices=("relu", "relu2"), default="relu")
    parser.add_argument("--steps", type=int, default=500, help="of 4096 tokens")
    options = parser.parse_args()
    print(json.dumps(train(options.out, options.act, options.steps)))


def train(out: Path, act: str, steps: int) -> dict[str, Any]:
    """Writes the model; returns its loss and the fraction of neurons at rest at the end."""
    torch.manual_seed(0)
    text = load_text(CALIBRATION_TEXT).joined
    tokenizer = learn_tokenizer(text)
    ids = torch.tensor(tokenizer.encode(text).ids)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_act=act, bos_token_id=0, eos_token_id=0, **SHAPE
    )
    # As many tensors would be made again each step: their memory is worth keeping.
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    activations = Activations(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    strength, rest, loss = 1e-3, 0.0, torch.tensor(0.0)
    for step in range(steps):
        starts = torch.randint(len(ids) - CONTEXT, (BATCH,)).tolist()
        batch = torch.stack([ids[start : start + CONTEXT] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        magnitude, rest = activations.take()
        # Towards the wanted rest, slowly: the penalty must not outrun what the weights can follow.
        strength *= 1.03 if rest < RESTING else 0.97
        (loss + strength * magnitude).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.param_groups[0]["lr"] = RATE * min(
            1, (step + 1) / WARM_UP, 4 * (1 - step / steps)
        )
        optimiser.step()
        optimiser.zero_grad()
    model.config.dtype = torch.bfloat16
    model.to(torch.bfloat16).save_pretrained(out)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(out)
    return {"act": act, "steps": steps, "tokens": steps * BATCH * CONTEXT,
            "loss": float(loss.detach()), "at_rest": rest, "out": str(out)}  # fmt: skip


def learn_tokenizer(text: str) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=alphabet, special_tokens=["<|end|>"],
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


if __name__ == "__main__":
    main()
