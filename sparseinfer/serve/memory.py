"""Whether the memory of the machine holds what the server may come to need."""

from __future__ import annotations

from pathlib import Path

from sparseinfer.config import ModelConfig
from sparseinfer.engine.scheduling import kv_bytes
from sparseinfer.errors import ConfigError
from sparseinfer.formats import WeightFormats
