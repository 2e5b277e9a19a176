"""FATReLU: x where x >= t, else 0."""

from sparseinfer.convert.method import Method, equal_weights

METHOD = Method(
    name="fatrelu",
    source="ProSparse (2402.13516), step 3",
    hidden_act="relu",
    scores={"relu": equal_weights},
    needs_sparsity=False,
    needs_finetuning=True,
    elsewhere="plain ReLU, without the threshold",
    constant=0.01,
)
