"""Servicers and interceptors; translation between proto and domain; error mapping."""
