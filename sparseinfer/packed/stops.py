"""Which token ids end a text."""

from __future__ import annotations

import json

from sparseinfer.checkpoint import Checkpoint
from sparseinfer.errors import CheckpointError


def end_of_text_ids(checkpoint: Checkpoint) -> frozenset[int]:
    """`eos_token_id` of generation_config.json where it has one (chat models end turns by it), else
    that of config.json, as transformers' `generate` takes them.

    Raises:
        CheckpointError: a generation_config.json that cannot be read or makes no sense.
    """
    path = checkpoint.path / "generation_config.json"
    try:
        found = json.loads(path.read_text("utf-8")).get("eos_token_id")
    except FileNotFoundError:
        return checkpoint.config.eos_token_ids
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a readable JSON object ({error})") from error
    if found is None:
        return checkpoint.config.eos_token_ids
    ids = found if isinstance(found, list) else [found]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in ids):
        raise CheckpointError(f"{path}: eos_token_id {found!r} is not an id or a list of ids")
    return frozenset(ids)
