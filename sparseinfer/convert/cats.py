"""CATS: one threshold per layer on |phi(x W_gate)|, its quantile over calibration tokens."""

from sparseinfer.convert.method import Method, equal_weights

METHOD = Method(
    name="cats",
    source="CATS (2404.08763)",
    hidden_act=None,
    scores={"gate": equal_weights},
    needs_sparsity=True,
    needs_finetuning=False,
    elsewhere="the dense parent: thresholds are ignored",
)
