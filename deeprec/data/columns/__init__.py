"""What columns mean: the features of a log or a table declared, drafted and encoded.

`kinds` has the kinds of columns, `schema` the `FeatureSchema` that lists them, `data_schema` that of a whole data set
(`DataSchema`), `schema_yaml` their YAML,
`schema_inference.infer` a first draft; `encoder.Encoder` is what the columns are in numbers, `fitting` what it learns
of them from train rows (`numbers` for the numeric ones, `tokens` for texts, `hashed` for buckets); `inputs` and `rows`
are what a model is fed, `table.EncodedTable` the encoded rows of users or items by their numbers, `terms.Terms` these
as sparse vectors for towers. Public as
`deeprec.data.FeatureSchema`, `Categorical`, `Numeric`, `Bag`, `Cross`, `Sequence`, `Text`, `Vector`, `Image`, `Audio`,
`Video`, `Encoder`, `EncodedTable`, `Terms`,
`DataSchema` and `infer_schema`.
"""
