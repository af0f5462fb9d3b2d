"""Where the reference package has its helper."""
