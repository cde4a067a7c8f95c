"""Everything that is measured on a GPU machine, by one command: `python -m scripts.benchmark.gpu`."""
