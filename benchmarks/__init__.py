"""Measurements against published settings and rivals, on the demo world. Run by `python -m benchmarks.<name>`."""
