"""What is measured, trained and made, beside the package; run as `python -m scripts.GROUP.NAME`."""
