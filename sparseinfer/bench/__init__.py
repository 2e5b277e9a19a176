"""Measures decoding speed against baselines, each side in a process of its own.

Reading order: `settings` and `plan` (what is measured), `subject` (of which model, on which token
ids), `shapes` and `random_model` (models without a download), `child` and `worker` (processes),
`sides/` (the engines), `protocol` (who runs when), `prepare` (thresholds by `calibrate`, files for
llama.cpp by `gguf_export`), `decode`, `prefill`, `batch` and `quality` (what is measured), `run`
(all of it together), `table`. `kernel` times the gated FFN alone. `spread`, `machine` and
`llama_cpp_library` are details.
"""
