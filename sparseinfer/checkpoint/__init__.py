"""Checkpoint folders: Hugging Face layout plus our side-cars.

Reading order: `layout` (file names), `shards` (safetensors files), `hashing` (what binds thresholds
to weights), `reader` (`Checkpoint.open`), `writer` (`write_converted`).
"""

from sparseinfer.checkpoint.reader import Checkpoint, is_converted
from sparseinfer.checkpoint.writer import write_converted

__all__ = ["Checkpoint", "is_converted", "write_converted"]
