"""What `benchmarks/accept.py` checks: functions that measure, and return figures with bounds.

`conversion` (converted models against transformers and their parents), `packed` (artifacts on
disk), `decoding` (quantised quality, batches), `speed` (the bounds on reports of `sparseinfer
bench`), `native` (the kernels under sanitizers). `figure` and `command` are what they share.
"""
