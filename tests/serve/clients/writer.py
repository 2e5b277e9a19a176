"""A tiny model that writes whole characters, of one to four tokens each.

A random model over bytes writes hardly anything else than broken characters, so it cannot show
that a server breaks none. This one's final hidden state has a few coordinates that only the newest
token decides; its head reads there which bytes may follow, and everything else from the rest, which
depends on the whole text as in any model.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

LETTERS = "abcé€😀"
"""What it writes. Their bytes are all different, so the newest byte says what may follow; none is
white space, which JSON takes anywhere and which would fill it."""
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }}: <tool_call>\n{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}\n{% endfor %}assistant:"
)
"""Offers tools as the templates do that write calls between <tool_call> tags."""
_WANTED = 6.0
"""Size of the coordinates that say what may follow, in the hidden state,"""
_FORBIDDEN = -40.0
"""and weight of a token that may not."""
_UNLIKE_ITSELF = 0.2
"""How much of a letter's embedding is taken from the head's row of the same letter."""
_RARE = -2.0
"""Weight of the end-of-text token after a whole character."""


def write_writer(parent: Path, folder: Path) -> Path:
    """Makes one of a tiny random checkpoint whose head is not tied to its embeddings."""
    model = transformers.AutoModelForCausalLM.from_pretrained(parent)
    tokenizer = transformers.AutoTokenizer.from_pretrained(parent)
    spelled = [tuple(tokenizer(letter).input_ids) for letter in LETTERS]
    begun = [()] + [ids[:size] for ids in spelled for size in range(1, len(ids))]
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        head = model.get_output_embeddings().weight
        model.model.norm.weight.fill_(1)
        states = len(begun)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[:states] = 0
            layer.mlp.down_proj.weight[:states] = 0
        # Else its own embedding makes each letter most likely to follow itself.
        for ids in spelled:
            head[ids[0]] -= _UNLIKE_ITSELF * embeddings[ids[-1]]
        embeddings[:, :states] = 0
        embeddings[:, 0] = _WANTED
        head *= 2  # far from uniform, so that seeds and thresholds matter
        head[:, :states] = _FORBIDDEN
        head[tokenizer.eos_token_id, 0] = _RARE
        for ids in spelled:
            for size, token in enumerate(ids):
                state = begun.index(ids[:size])
                head[token, state] = 0
                if size + 1 < len(ids):
                    embeddings[token, 0] = 0
                    embeddings[token, begun.index(ids[: size + 1])] = _WANTED
    model.save_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder
