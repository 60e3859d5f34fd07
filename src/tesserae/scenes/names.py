"""The classes of the built-in scenes' segmentation, and their colours in masks."""

SEGMENT_NAMES = ("sky", "sun_or_moon", "cloud", "mountain", "snow", "water", "forest", "grass", "sand")
SEGMENT_PALETTE = (
    (135, 190, 235), (255, 214, 64), (225, 225, 235), (122, 106, 98), (250, 250, 255), (40, 96, 170),
    (24, 92, 48), (140, 186, 70), (226, 190, 128),
)  # fmt: skip
