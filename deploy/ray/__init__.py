"""The server on Ray Serve (extra ``ray``): ``serve run deploy.ray.app:app``."""
