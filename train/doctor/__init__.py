"""The checks that a careful person makes before a long run, each a file of its own; `examination` goes through them."""
