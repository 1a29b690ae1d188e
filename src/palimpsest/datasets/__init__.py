"""Data sets: files and names to EditRequests."""
