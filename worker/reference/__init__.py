"""The bundled training loop and models."""
