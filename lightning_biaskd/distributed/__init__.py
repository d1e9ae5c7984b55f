"""Helpers with which N processes train like one."""
