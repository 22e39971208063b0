"""How to call the SQL statements: their parameters and results. `queries` builds their SQL."""
