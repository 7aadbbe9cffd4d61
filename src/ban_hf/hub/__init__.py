"""The Hub: publish, download, verify."""
