"""The process a run lives in: its place among the ranks, its errors, its memory, and what rank 0 prints.

Reading order: errors.py, versions.py, memory.py, process.py, hang_detection.py, signals.py, progress.py, paths.py.
Import from the modules. May import nothing of the project.
"""
