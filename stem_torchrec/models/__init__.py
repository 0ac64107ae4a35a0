"""STEM and its baselines, each on the frame tables -> arch -> towers.

Reading order: stem.py, aftb.py, gated_experts.py, group_experts.py, frame.py, outputs.py, gates.py, layers.py,
covariance.py, loss.py, links.py, trained_by.py, weight_groups.py, kept_tasks.py, balanced.py; then duet.py, moe.py,
ple.py, home.py, pepnet.py, sequential.py, entire_space.py, counterfactual.py, escm2.py, dcmt.py and shared_bottom.py
with options.py; table.py, which lists all models, and build.py.
docs/add_a_model.md adds one.
Import from the modules. May import `losses`, `tables`, `balance`, `metrics`, `data`, `config` and `runtime`.
"""
