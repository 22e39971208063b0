"""Statements as they are called: their parameters, and what comes of them. Their SQL is built in `queries`."""
