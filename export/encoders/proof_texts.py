"""The texts that every exported encoder is proved on: short and long, several languages, code, names and numbers."""

from __future__ import annotations

TEXTS = (
    "A man is eating food.",
    "Someone has lunch.",
    "The girl carries a baby through the rain.",
    "How do I reset my password?",
    "To change your password, open the settings and choose 'security'.",
    "water",
    "An invoice is due within 30 days; after that, 1.5 % interest is charged per month.",
    "def mean(values):\n    return sum(values) / len(values)",
    "SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 3;",
    "Die Katze schläft auf dem warmen Ofen.",
    "Le chat dort sur le poêle chaud.",
    "El gato duerme sobre la estufa caliente.",
    "Кошка спит на тёплой печке.",
    "猫が暖かいストーブの上で眠っている。",
    "القطة نائمة على الموقد الدافئ.",
    "The mitochondrion is the organelle in which most of a cell's energy is produced.",
    "Cells turn sugar into energy in small bodies called mitochondria.",
    "The stock closed at $184.20, down 3.7 % after the earnings call on 12 March.",
    "It is not true that the bridge was never closed.",
    "The bridge was closed.",
    "A recipe for bread: mix 500 g of flour, 350 ml of water, 10 g of salt and a little yeast; let it rise "
    "overnight in a cool place, fold it twice, shape a loaf, and bake it for 40 minutes at 230 degrees in a "
    "covered pot.",
    "Sailors on the northern route kept watch in pairs. One looked for ice, the other for lights; when the fog "
    "came down they rang a bell every two minutes and listened for an answer. On the fourth night a bell did "
    "answer, close on the port side, and the mate had the wheel put over before anyone could say what ship it "
    "was. In the morning there was nothing to be seen but the long swell and a few gulls, and the captain wrote "
    "in the log that the sea had been empty all night.",
)
PAIRS = (
    ("How do I reset my password?", "To change your password, open the settings and choose 'security'."),
    ("How do I reset my password?", "A man is eating food."),
    ("where do cells get their energy", "Cells turn sugar into energy in small bodies called mitochondria."),
    ("where do cells get their energy", "The stock closed at $184.20, down 3.7 % after the earnings call on 12 March."),
    ("bread", TEXTS[20]),
    ("what did the captain write", TEXTS[21]),
    ("what did the captain write", "The bridge was closed."),
    ("sleeping cat", "Die Katze schläft auf dem warmen Ofen."),
    ("sleeping cat", "Le chat dort sur le poêle chaud."),
    ("compute an average in Python", "def mean(values):\n    return sum(values) / len(values)"),
    ("compute an average in Python", "SELECT name, COUNT(*) FROM orders GROUP BY name HAVING COUNT(*) > 3;"),
    ("was the bridge open", "It is not true that the bridge was never closed."),
)
