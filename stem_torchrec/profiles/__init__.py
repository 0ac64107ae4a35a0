"""Where the time of a training step goes: the profiler of a run, and its events divided into phases.

Reading order: step_profiler.py, phases.py. Import from the modules. May import `metrics`, `config` and `runtime`.
"""
