"""Measures decoding speed against baselines, each side in a process of its own.

Reading order: `settings` and `plan` (what is measured), `subject` (of which model, on which token
ids), `shapes`, `random_model` and `planted` (models without a download), `states` (ways to run
ours) with `state_file`, `child` and `worker` (processes), `sides/` (the engines), `protocol` (who
runs when), `prepare` (thresholds by `calibrate` and `calibrate_neurons`, predictors by
`planted_predictors`, files for llama.cpp by `gguf_export`), `decode`, `prefill`, `batch` and
`quality` (what is measured), `plane` (speed against quality), `run` (all of it together), `table`.
`kernel` times the gated FFN alone, in `kernel_variants`. `spread`, `machine` and
`llama_cpp_library` are details.
"""
