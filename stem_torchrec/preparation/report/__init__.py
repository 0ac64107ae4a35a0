"""The fourth stage: what a user should know of a log before training, leaks among it.

counts.py: how often each id occurs. leak_rule.py, leak_check.py: how well one feature alone tells a label. facts.py,
features.py: the numbers. warning_sentences.py: what to look at. write_report.py: report.md and report.html. May import
`writing`, `fitting`, `engines`, `specs`, `expressions`, `data` and `runtime`.
"""
