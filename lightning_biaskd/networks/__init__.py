"""Any network: its weights, what it sees, its features, and its classes."""
