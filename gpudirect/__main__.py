"""``python -m gpudirect``."""

from .cli import main

main()
