"""What an author of an adapter needs to find out whether it keeps its word."""
