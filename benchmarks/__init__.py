"""Measurements against baselines and peers, each a ratio in one run. Figures and pedigree: BENCHMARKS.md."""
