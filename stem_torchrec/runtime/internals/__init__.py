"""Private and undocumented parts of torch, torchrec, tyro and iopath: no other module names any of them.

A new version of a library that changes one breaks a file of this package and its test in tests/test_internals.py.
Checked with both stacks (torch 2.13, torchrec 1.8, fbgemm 1.8; torch 2.11, torchrec 1.6.1, fbgemm 1.6), tyro 1.0.17 and
iopath 0.1.10; nothing here is promised by the libraries. What only one version needs names that version.

pytorch.py: sharded tensors, copies of state dicts, optimizers in the backward pass. torchrec_hooks.py: what a sharded
collection and a train pipeline let a subclass replace. profiler_ranges.py: names of ranges in a profile.
tyro_errors.py: why a command line was refused. path_handlers.py: iopath's handlers of paths. build_files.py: for what
torch and fbgemm were built. export.py: programs for serving. needless_warnings.py: what torch 2.11 and its stack warn
of. May import no other module of the project, and each only the library that it is about, so that a command line is
parsed without torch.
"""
