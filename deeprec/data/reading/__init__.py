"""Files and frames to columns: what opens a log or a table, parses it, and says in words what is wrong with it.

`sources.open_source` gives any log as a `chunks.Source` of `chunks.Chunk`s (`text_source`, `pair_source`,
`frame_source`); `tables` reads whole tables, `separated` and `text` parse, `hashing` has the hash of text and its
`Vocabulary`, `arrays` takes columns of polars out as NumPy, and `errors` words what goes wrong. Public as
`deeprec.data.open_source`. Knows nothing of what columns mean.
"""
