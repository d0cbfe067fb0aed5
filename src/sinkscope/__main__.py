"""`python -m sinkscope`, also under torchrun."""

from sinkscope.cli import main

main()
