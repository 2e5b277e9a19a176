"""What `benchmarks/accept.py` checks: functions that measure, and return figures with bounds.

`conversion` (converted models against transformers and their parents), `packed` (artifacts on
disk), `decoding` (quantised quality, batches), `speed` (the bounds on reports of `sparseinfer
bench`), `native` (the kernels under sanitizers), `server_fuzz` and `server_soak` (hostile and long
use of the server). `figure`, `command` and `server_process` are what they share.
"""
