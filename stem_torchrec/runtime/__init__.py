"""The process that a run lives in: its rank, errors and memory, the output of rank 0, and how hanging ranks are found.

Reading order: errors.py, error_kinds.py, exit_status.py, signals.py, standard_streams.py, command.py (how a command
ends), torchrun.py (and how its ranks end), internals/ (private parts of libraries), versions.py, cgroups.py, memory.py,
threads.py, launch_environment.py, rendezvous.py, process.py, hang_verdict.py, hang_detection.py, progress.py;
file_systems.py (stores), store_path.py, paths.py, path_options.py, staging.py, whole_file.py, themed_svg.py,
report_file.py; owner_file.py, folder_lock.py (one owner for each folder).
Import from the modules. May import nothing of the project.
"""
