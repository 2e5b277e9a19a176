"""Fine-tuning: text on disk, objectives, the training loop.

Reading order of what the data is made of: `token_store` (a text as token ids on disk), `packing`
(windows of it, by step), `instructions` and `beginnings` (how texts begin that a model writes
itself), `generated_parts` and `self_generated` (those texts).
"""
