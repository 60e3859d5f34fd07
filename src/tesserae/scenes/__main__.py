"""Renders the landscapes into data/: python -m tesserae.scenes --params params.yaml"""

from tesserae.scenes.render import main

main()
