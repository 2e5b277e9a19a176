"""All methods by their `--act` name."""

from sparseinfer.convert import (
    cats,
    chess,
    drelu,
    fatrelu,
    relu,
    relu2,
    sketch,
    teal,
    topk,
    wina,
)
from sparseinfer.convert.method import Method
from sparseinfer.convert.options import MethodOptions
from sparseinfer.errors import ConfigError

METHODS = {
    method.name: method
    for method in (
        relu.METHOD,
        relu2.METHOD,
        drelu.METHOD,
        fatrelu.METHOD,
        cats.METHOD,
        chess.METHOD,
        teal.METHOD,
        wina.METHOD,
        topk.METHOD,
        sketch.METHOD,
    )
}


def choose_method(name: str, options: MethodOptions) -> Method:
    """The method of a name, in the form that its options give it.

    Raises:
        ConfigError: an unknown method, or an option that it does not take.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; choose one of {', '.join(METHODS)}")
    options.check(name, METHODS[name].options)
    return relu.variant(options) if name == "relu" else METHODS[name]
