"""FATReLU: x where x >= t, else 0."""

from sparseinfer.convert.cats import METHOD as CATS
from sparseinfer.convert.method import Method

METHOD = Method(
    name="fatrelu",
    source="ProSparse (2402.13516), step 3",
    hidden_act="relu",
    needs_finetuning=True,
    elsewhere="plain ReLU, without the threshold",
    curve=CATS.curve,  # the same rule on another activation
    score=lambda _: "relu",
    constant=0.01,
    options=frozenset({"threshold"}),
)
