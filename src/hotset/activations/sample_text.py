"""A little text of several kinds, to decode where speed depends on what is said. Own words."""

SUBJECTS = {
    "prose": """The ferry left an hour late, because the captain had gone back for his glasses. Nobody on
deck minded much. A woman with a basket of early pears gave one to each child who asked, and to two who did
not, and the gulls followed us as far as the second buoy before they lost interest. Behind us the town grew
small and orderly: first the market, then the long wall of the harbour, and at last only the church tower,
which the old people call the Finger. My uncle stood at the rail and named the hills for me, one after the
other, as his own uncle had done, and when he had forgotten a name he made up a better one. In the evening
it began to rain. We went below, where somebody had found a lamp and a pack of cards, and by the time the
island came in sight I had lost three buttons and won a knife with a broken blade.
""",
    "code": '''def moving_average(values: list[float], width: int) -> list[float]:
    """Mean of every `width` neighbours."""
    if width < 1 or width > len(values):
        raise ValueError(f"width: expected 1 to {len(values)}, found {width}")
    total = sum(values[:width])
    means = [total / width]
    for old, new in zip(values, values[width:]):
        total += new - old
        means.append(total / width)
    return means


class Counter:
    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, key: str, amount: int = 1) -> None:
        self.counts[key] = self.counts.get(key, 0) + amount

    def most_common(self, n: int) -> list[tuple[str, int]]:
        return sorted(self.counts.items(), key=lambda item: -item[1])[:n]
''',
    "explanation": """A heat pump does not make heat; it moves it. A liquid that boils far below zero is led
through a coil outdoors, where even cold air is warm enough to turn it into gas. A compressor squeezes the
gas, which makes it hot, and in a second coil indoors it gives its heat to the water of the radiators and
becomes liquid again. Then a narrow valve lets the pressure drop, the liquid cools, and the circle begins
anew. For one kilowatt hour of electric energy about three to four kilowatt hours of heat arrive in the
house. The colder the air outside and the hotter the water in the radiators, the worse this ratio becomes,
since the compressor has a taller hill to climb. Large radiators, floor heating and good insulation
therefore do more for the bill than a larger pump: they let the water be cooler.
""",
}
"""Text by its kind, about 150 words each."""


def sample_text() -> str:
    """All of it, one kind after the other."""
    return "\n".join(SUBJECTS.values())
