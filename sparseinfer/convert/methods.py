"""All methods by their `--act` name."""

from sparseinfer.convert import cats, chess, drelu, fatrelu, relu, relu2

METHODS = {
    method.name: method
    for method in (
        relu.METHOD,
        relu2.METHOD,
        drelu.METHOD,
        fatrelu.METHOD,
        cats.METHOD,
        chess.METHOD,
    )
}
