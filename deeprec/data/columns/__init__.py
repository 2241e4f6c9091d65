"""What columns mean: the features of a log or a table declared, drafted and encoded.

`kinds` has the kinds of columns, `schema` the `FeatureSchema` that lists them, `schema_yaml` its YAML,
`schema_inference.infer` a first draft; `encoder.Encoder` is what the columns are in numbers, `fitting` what it learns of
them from train rows (`numbers` for the numeric ones, `tokens` for texts); `inputs` and `rows` are what a model is fed.
Public as `deeprec.data.FeatureSchema`, `Categorical`, `Numeric`, `Bag`, `Cross`, `Sequence`, `Text`, `Vector`, `Image`,
`Audio`, `Video`, `Encoder` and `infer_schema`.
"""
