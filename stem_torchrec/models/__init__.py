"""STEM and its baselines, each on the frame tables -> arch -> towers.

Reading order: stem.py, gated_experts.py, frame.py, layers.py, loss.py; then one file a family, and build.py.
Import from the modules. May import `tables`, `data`, `config` and `runtime`.
"""
