"""Method A in PyTorch: with PyTorch Geometric as a competent user writes it, and dense in plain PyTorch.

Run as `python -m benchmarks.peers EXPORT.npz` by `python -m ssad_jax.benchmark --peers`; see `__main__.py`.
"""
