"""The systems that the paper compares itself with, in compact form on our windows (docs/compared.md)."""
