"""What a tuning minimises."""
