"""Django's backends, whose connections end with their threads."""
