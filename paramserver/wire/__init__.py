"""What both ends agree on: dtypes, shapes, layout, codecs, frames."""
