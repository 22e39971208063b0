"""The callable side of the SQL statements: their parameters and results. `queries` builds their SQL."""
