"""What a head predicts, and how its labels are read."""
