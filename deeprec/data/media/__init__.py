"""Media of items: decoding, features, a cache by content. Needs the extra `content`; knows no model, needs no torch."""
