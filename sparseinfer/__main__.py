"""`python -m sparseinfer`, which `accelerate launch -m` needs."""

from sparseinfer.cli import main

main()
