"""Data sets by name: where they are, how they are read and fetched, and made-up ones.

`datasets.load` gives interactions, `click_datasets.load_clicks` a click log, `bandit_sets.load_bandit` a log with known
propensities; `fetch.fetch` downloads from what `publishers.SOURCES` lists; `synthetic.synthetic` makes interactions
with a known truth, and `click_datasets.synthetic_clicks` a log. Public as `deeprec.data.load`, `find`, `info`,
`DatasetInfo`, `list_datasets`, `cache_dir`, `search_dirs`, `load_clicks`, `load_bandit`, `fetch`, `SOURCES`,
`synthetic`, `SyntheticInteractions` and `SyntheticTruth`.
"""
