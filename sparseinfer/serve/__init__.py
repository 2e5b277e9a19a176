"""OpenAI-compatible HTTP routes over one model.

Reading order: `limits`, `errors` (OpenAI-shaped), `schema` (requests), `prompts` (from a request to
token ids), `job` (one generation as the event loop sees it), `engine_thread` (the queue and the
thread that decodes), `answers` (response shapes), `body` and `streaming` (HTTP in and out), `app`
(routes), `server` (socket, signals, shutdown).
"""

from sparseinfer.serve.app import create_app
from sparseinfer.serve.limits import Limits
from sparseinfer.serve.server import Server, run_server

__all__ = ["Limits", "Server", "create_app", "run_server"]
