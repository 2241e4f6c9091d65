"""What columns mean: the features of a log declared, drafted and encoded.

`schema` has `FeatureSchema` and its kinds `Categorical`, `Numeric`, `Bag` and `Cross`, `schema_yaml` their YAML,
`schema_inference.infer` a first draft; `encoder.Encoder` learns from train rows what the features are in numbers
(`numbers` for the numeric ones); `inputs` and `rows` are what a model is fed. Public as `deeprec.data.FeatureSchema`,
`Categorical`, `Numeric`, `Bag`, `Cross`, `Encoder` and `infer_schema`.
"""
