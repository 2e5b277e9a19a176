"""ReLU in place of the parent's activation."""

from sparseinfer.convert.method import Method

METHOD = Method(
    name="relu",
    source="ReLU Strikes Back (2310.04564), stage 1",
    hidden_act="relu",
    scores={},
    needs_sparsity=False,
    needs_finetuning=True,
    elsewhere="the same function, dense",
)
