"""What happens inside one pipeline."""
