"""Deltas: how large they are by precision and format, and what they cost the run that ships them.

Reading order: run.py (what is measured), shipped.py (one run), blocks.py (one run whose blocks take turns, which
worker.py and turns.py make), report.py.
"""
