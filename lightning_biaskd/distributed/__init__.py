"""What makes N processes train as one."""
