"""OpenAI-compatible HTTP routes over one model.

Reading order: `limits`, `errors` (OpenAI-shaped), `schema/` (requests), `vocabulary` (tokens as
bytes, grammars), `tools/` (calls in texts), `template` (chats to tokens), `served` (a loaded
model), `text` (tokens to an answer's text), `work` and `prompts` (from a request to what the engine
is asked), `job` (a request's answers as the event loop sees them), `engine_thread`, `answers/`
(response shapes), `body` and `streaming` (HTTP in and out), `metrics`, `request_log`, `watch` and
`live` (what is counted), `service` (how a request is answered), `tokens`, `sparsity_route`, `pages`
and `openapi` (the other routes), `front` (who may ask), `app` (all routes), `connection` and
`server` (sockets, signals, shutdown), `memory`, `resident` and `loading` (start-up).
"""

from sparseinfer.serve.app import create_app
from sparseinfer.serve.front import Access
from sparseinfer.serve.limits import Limits
from sparseinfer.serve.loading import ModelSettings, serve_model
from sparseinfer.serve.resident import keep_memory_small
from sparseinfer.serve.served import Served
from sparseinfer.serve.server import Server, run_server

__all__ = [
    "Access",
    "Limits",
    "ModelSettings",
    "Served",
    "Server",
    "create_app",
    "keep_memory_small",
    "run_server",
    "serve_model",
]
