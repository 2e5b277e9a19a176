"""Rows of an embedding, as fp32: where a token goes in.

`reference` is plain torch, `gpu` decodes; on the CPU it is a part of `decoder`.
"""
