"""An audit as pages that open from disk: findings first, every class with its pictures. No server, no network.

  audit_data.py        what an audit left in the store
  comparison_table.py  figures of groups of rows, side by side
  class_page.py        a class
  scatter.py           its rows as dots
  overview_page.py     the first page
  build_report.py      ``make_report``

Tables, tiles, pictures and the folder of pages are in ``jobs.html``, which other reports use, too.
"""
