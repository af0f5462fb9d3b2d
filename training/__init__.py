"""Training of the small text-to-image model that ships with the package."""
