BEGIN; SET LOCAL tcp_keepalives_idle = 15; SET LOCAL tcp_keepalives_interval = 5; SET LOCAL
    tcp_keepalives_count = 3; SHOW transaction_read_only
