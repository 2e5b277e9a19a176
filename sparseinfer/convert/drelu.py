"""dReLU: ReLU on gate and on up, max(0, x W_gate) * max(0, x W_up)."""

from sparseinfer.convert.method import Method

METHOD = Method(
    name="drelu",
    source="TurboSparse (2406.05955)",
    hidden_act="drelu",
    needs_finetuning=True,
    elsewhere="refuses to load it unless sparseinfer.modeling is imported first",
)
