"""The installed version, readable from every layer."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sparseinfer")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
