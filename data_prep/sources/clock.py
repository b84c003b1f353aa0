"""Written times -> nanoseconds."""

import polars as pl


def nanoseconds(text: pl.Expr, shape: str) -> pl.Expr:
    """Int64 of times written as `shape`, which begins with the year; null where a text is none.

    polars lets a time outside of 1677 to 2262 wrap round, into the present too: such a one becomes 0, out of range.
    """
    time = text.str.to_datetime(shape, time_unit="ns", strict=False)
    year = text.str.slice(0, 4).cast(pl.Int32, strict=False)
    near = (time.dt.year() - year).abs() <= 1  # an offset may lead into another year
    return pl.when(near.fill_null(False)).then(time.dt.timestamp("ns")).when(time.is_not_null()).then(0)
