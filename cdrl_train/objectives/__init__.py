"""What a phase of training minimises."""
