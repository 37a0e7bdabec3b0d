"""Measurements of this library beside its peers.

`python -m bench` times every row and writes `results/cpu.json` and `results/cpu.html`, `python -m bench.readme` copies
the figures into README.md, and `python -m bench.gpu` does the same rows on a GPU. A timing never fails anything.
"""
