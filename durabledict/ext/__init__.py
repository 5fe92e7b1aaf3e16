"""Bridges to frameworks, one folder or file each; importing this one imports none of them."""
