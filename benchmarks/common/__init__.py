"""What several benchmarks use: tables, processes, measuring, and the head of a report.

In reading order: table_list.py reads the features of a benchmark from YAML; processes.py starts modules and ranks as
processes; timing.py times steps; machine.py describes the machine, versions and command, and load.py how busy others
keep it; output.py writes result files; traffic.py counts the bytes in collectives, for tests too. It imports
stem_torchrec and none of the other packages.
"""
