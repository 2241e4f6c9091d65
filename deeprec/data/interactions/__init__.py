"""Who met what: interactions with their ids and side information, read, built, selected and divided.

`interactions` has `Interactions`, `OfficialSplit` and `Split`, `ids` has `IdMap`; `readers` and `build.from_frame`
make them of files and frames, `features.with_features` adds tables of users and items, `encoded.encode_tables` encodes
them, `domains.Domains` holds several domains with the same users, apart or as one set whose items know theirs,
`selection.positives` turns ratings to likes, and `splits` and `new_users` hold rows out and draw candidates. Public as
`deeprec.data.Interactions`, `OfficialSplit`, `Split`, `IdMap`, `UnknownIdError`, `from_frame`, `with_features`,
`encode_tables`, `Domains`, `domains_of`, `positives`, `leave_one_out`, `official`, `random_holdout`, `time_holdout`,
`items_holdout`, `new_users_holdout` and `sampled_negatives`.
"""
