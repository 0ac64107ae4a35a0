"""Balance between tasks: weights of their losses that learn, and gradients brought together at the shared tables.

Reading order: balance.py, shared_output.py, task_weights.py, task_gradients.py, simplex.py; docs/balance.md tells what
each method costs.
Import from the modules. May import `metrics`, `config` and `runtime`.
"""
