"""What pages and tables share."""
