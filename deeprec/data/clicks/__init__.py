"""Click logs encoded once, for training: in memory or in memory-mapped files.

`log.ClickLog` holds the parts of a log and its encoder, `log.convert` writes one, `part.ClickPart` streams the rows
of a part in shuffled batches, and `files` writes and maps the arrays. Public as `deeprec.data.ClickLog`.
"""
