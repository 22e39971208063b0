"""How queues, processes and the database stand."""
