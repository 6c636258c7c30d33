"""Campaigns of crashes, faults and damage; `python -m campaigns --help`."""
