"""The files of a source before an engine reads them: which they are, their columns, and their text line by line.

path_columns.py, listing.py: files and folders. csv_text.py, cell_types.py: text, and what errors say of it. columns.py:
the columns that all files have. copies.py: files that an engine cannot read as they are. May import `specs` and
`runtime`.
"""
