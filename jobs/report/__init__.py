"""An audit as pages that open from disk: findings first, every class with its pictures. No server, no network.

page.py      what every page is made of: text, tables, pictures; ``render``
site.py      the folder that pages lie in: ``Site``
sheets.py    pictures, many in one file
"""
