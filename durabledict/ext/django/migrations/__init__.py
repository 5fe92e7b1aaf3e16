"""The migrations of the app's own table."""
