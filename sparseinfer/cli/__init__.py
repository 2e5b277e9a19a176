"""The `sparseinfer` command. One thin file per subcommand; heavy imports inside the handlers."""

from sparseinfer.cli.app import main

__all__ = ["main"]
