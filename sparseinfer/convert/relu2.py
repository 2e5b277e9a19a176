"""Squared ReLU in place of the parent's activation."""

from sparseinfer.convert.method import Method

METHOD = Method(
    name="relu2",
    source="ReLU^2 Wins (2402.03804)",
    hidden_act="relu2",
    needs_finetuning=True,
    elsewhere="the same function, dense",
)
