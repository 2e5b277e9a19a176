"""Compute operations, one folder each: a plain-torch fp32 `reference`, `cpu` and `gpu` kernels.

Knows tensors only: no configs, no checkpoints, no transformers.
"""
