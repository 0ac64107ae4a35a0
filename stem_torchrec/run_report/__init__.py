"""Finished or running trainings on one page: what their run folders tell.

Reading order: run_record.py reads a run folder, starts.py when it was started and resumed, reliability.py how far
predictions are from labels; charts.py draws, metric_sections.py, gate_section.py, plan_section.py and
operation_sections.py write the sections, write_report.py the page; projector.py writes tables for TensorBoard, with the
raw values that vocabularies.py reads.
Import from the modules. May import `calibration`, `training` and everything below it.
"""
