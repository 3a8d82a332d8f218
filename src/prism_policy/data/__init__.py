"""Demonstrations as files hold them, and as training reads them: episodes, frame cache, windows."""
