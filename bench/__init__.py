"""Measurements that write the tables of docs/: `python -m bench --help`."""
