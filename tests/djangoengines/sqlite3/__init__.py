"""Django's backend, whose connections end with their threads."""
