"""An audit as pages that open from disk: findings first, every class with its pictures. No server, no network.

Of any report:
  page.py        what a page is made of: text, figures, tables; ``render``
  site.py        the folder that pages lie in
  sheets.py      small pictures, many in one file
  pictures.py    rows and mean maps as pictures
Of the audit's:
  audited.py     what an audit left in the store
  figures.py     figures of groups of rows, side by side
  class_page.py  a class
  scatter.py     its rows as dots
  overview.py    the first page
  make.py        ``make_report``
"""
