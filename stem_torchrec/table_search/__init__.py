"""Which features deserve a table for each task, found by one training with all tables: `stem-tune --what tables`.

Reading order: options.py reads the command line, linear_images.py fits what stands in for a table, table_worth.py
measures what each table is worth, kept_tables.py chooses some within a memory budget, search_tables.py trains and
judges the choice.
Import from the modules. May import `inspection` and everything below it.
"""
