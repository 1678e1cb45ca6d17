"""Turns an audit into pages that open from disk: findings first, then every class with its pictures. No network.

  audit_data.py        reads what an audit left in the store
  comparison_table.py  values of groups of rows, side by side
  class_page.py        the page of a class
  scatter.py           its rows as a scatter plot
  overview_page.py     the first page
  build_report.py      ``make_report``

Tables, tiles, pictures and the folder of pages are in ``jobs.html``, which ``jobs.compare`` uses, too.
"""
