"""The app with the two pages."""
