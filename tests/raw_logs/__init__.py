"""Drawn files in the raw formats of public data sets, with their names, separators, headers and oddities.

A module for each data set, whose `write_...` writes its files: kuairand.py, tiktok.py, tenrec.py, aliexpress.py,
ali_ccp.py, adult.py and shop.py. They stand on lines.py, which writes text with separators, and draws.py, which draws
skewed ids and labels that depend on them. The same arguments give the same bytes. No row is from a real file.
"""
