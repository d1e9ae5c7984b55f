"""What methods that read features share."""
