"""One decode step of a whole Llama-family model: embedding, every layer, head.

`cpu` runs it in one native call: a token of a small model takes a few milliseconds, so a crossing
from Python for each of its hundreds of operations would cost as much as the weights do. The parts
(`linear`, `gated_ffn`, attention, norms, RoPE) are the kernels of the other folders; the reference
is the prefill path, which computes the same function of many tokens at once. `gpu` launches those
parts one after the other, to be captured in a CUDA graph.
"""
