"""ReLU in place of the parent's activation, in the forms of ReLU Strikes Back.

Stage 1 swaps the activation; `shift` b makes it relu(x - b). Stage 2 puts a ReLU after each norm
too, so that what attention and FFN read is sparse: inputs of q, k, v and gate that are 0 are
skipped. Those of up are not, as up is read only for neurons that fire, which skips more.
"""

from dataclasses import replace

from sparseinfer import arch
from sparseinfer.convert.method import Method
from sparseinfer.convert.options import MethodOptions

AFTER_NORMS = ("q", "k", "v", "gate")
"""Projections whose zero inputs are skipped in stage 2."""

METHOD = Method(
    name="relu",
    source="ReLU Strikes Back (2310.04564), stage 1",
    hidden_act="relu",
    needs_finetuning=True,
    elsewhere="the same function, dense",
    options=frozenset({"stage", "shift"}),
)


def variant(options: MethodOptions) -> Method:
    """The form that was asked for."""
    if options.stage != 2 and not options.shift:
        return METHOD
    return replace(
        METHOD,
        source=f"ReLU Strikes Back (2310.04564), stage {options.stage or 1}",
        hidden_act=arch.OWN_RELU,
        elsewhere="refuses to load it unless sparseinfer.modeling is imported first",
    )
