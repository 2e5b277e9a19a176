"""Compute operations, one folder each: a plain-torch fp32 `reference` beside its `cpu` kernel.

Knows tensors only: no configs, no checkpoints, no transformers.
"""
