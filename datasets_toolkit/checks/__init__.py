"""``verify``: every promise of a data set, tested."""
